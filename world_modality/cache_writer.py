"""Writing arrays of the cache so that a kill at any moment loses at most one block."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.atomic import partial_path, publish, write_json
from world_modality.cache import ARRAYS, Cache, sha256_of_file, sha256_of_json, update_manifest


class CacheWriter:
    """A set of arrays that is written block by block and appears under its final names when whole.

    The blocks go into `<array>.npy.partial`; a progress file beside them says how many rows are
    safe. A second writer with the same `identity` goes on there; with another identity it starts
    anew.

    Args:
        cache: where the arrays belong.
        stage: short name of the writing step; steps with different names do not disturb each other.
        identity: JSON of all that determines the arrays' content.
    """

    def __init__(self, cache: Cache, stage: str, identity: dict[str, Any]) -> None:
        self.cache = cache
        self._progress_path = cache.folder / f"{cache.split}_{stage}_progress.json"
        self._identity = sha256_of_json(identity)
        self._rows: dict[str, int] = {}
        self._records: dict[str, dict[str, Any]] = {}
        cache.folder.mkdir(parents=True, exist_ok=True)
        self._read_progress()

    def _read_progress(self) -> None:
        if not self._progress_path.exists():
            return
        try:
            progress = json.loads(self._progress_path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError):
            return
        if isinstance(progress, dict) and progress.get("identity") == self._identity:
            self._rows = progress["rows"]
            self._records = progress["records"]

    def _save_progress(self) -> None:
        content = {"identity": self._identity, "rows": self._rows, "records": self._records}
        write_json(self._progress_path, content)

    def open(self, name: str, shape: tuple[int, ...]) -> int:
        """Create the array, or go on with it, and return how many rows are already written."""
        path = self._partial(name)
        if name in self._records:
            return shape[0]
        if name in self._rows and path.exists():
            existing = np.load(path, mmap_mode="r", allow_pickle=False)
            if existing.shape == shape and str(existing.dtype) == ARRAYS[name].dtype:
                return self._rows[name]
        # Before the file is touched, so that no older progress vouches for what it overwrites.
        self._rows[name] = 0
        self._save_progress()
        np.lib.format.open_memmap(path, mode="w+", dtype=ARRAYS[name].dtype, shape=shape)
        self._reserve(path)
        return 0

    def write(self, start: int, blocks: dict[str, np.ndarray]) -> None:
        """Write rows `start…` of several arrays and put them on the disk.

        Each block is mapped, written, synced and unmapped, so that memory does not grow with N.
        """
        for name, block in blocks.items():
            target = np.load(self._partial(name), mmap_mode="r+", allow_pickle=False)
            target[start : start + len(block)] = block
            target.flush()
            self._rows[name] = start + len(block)
        self._save_progress()

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a whole array at once."""
        if self.open(name, array.shape) < len(array):
            self.write(0, {name: array})

    def read_back(self, name: str) -> np.ndarray:
        """Map the array read-only before it is published."""
        path = self._partial(name)
        array: np.ndarray = np.load(
            path if path.exists() else self.cache.array_path(name), mmap_mode="r"
        )
        return array

    def publish(self, sections: dict[str, Any], remove: tuple[str, ...] = ()) -> None:
        """Rename the arrays to their final names, then write the manifest.

        A kill in between leaves an old manifest whose checksums no longer fit, which readers
        refuse; the same stage run again finishes the job.

        Args:
            sections: manifest sections that describe these arrays.
            remove: arrays that the new sections make stale; they leave the manifest and the disk.
        """
        for name in self._rows:
            if name not in self._records:
                self._records[name] = self._describe(name)
        self._save_progress()
        for name in self._records:
            if self._partial(name).exists():
                publish(self._partial(name), self.cache.array_path(name))
        update_manifest(self.cache, sections, {**self._records, **dict.fromkeys(remove)})
        for name in remove:
            self.cache.array_path(name).unlink(missing_ok=True)
        self._progress_path.unlink()

    def _reserve(self, path: Path) -> None:
        """Take the file's blocks now: a full disk met through a memory map kills the process."""
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _partial(self, name: str) -> Path:
        return partial_path(self.cache.array_path(name))

    def _describe(self, name: str) -> dict[str, Any]:
        path = self._partial(name)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return {
            "file": self.cache.array_path(name).name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "sha256": sha256_of_file(path),
        }
