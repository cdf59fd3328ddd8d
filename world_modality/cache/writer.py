"""Writing arrays of the cache so that a kill at any moment loses at most one block."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.cache.contract import (
    FORMAT,
    OPTIONAL_SECTIONS,
    Cache,
    sha256_of_file,
    sha256_of_json,
    with_checksum,
    without_checksum,
)
from world_modality.system.atomic import partial_path, publish, write_json
from world_modality.system.errors import InvalidInputError, MissingFileError

READ_BYTES = 1 << 20
# A manifest is written in milliseconds.
MANIFEST_WAIT_S = 60.0


class CacheWriter:
    """A set of arrays that is written block by block and appears under its final names when whole.

    The blocks go into `<array>.npy.partial`; a progress file beside them says how many rows are
    safe, and the SHA-256 of the file up to there: what a disk or a hand has changed since is
    written again. A second writer with the same `identity` goes on there; with another identity it
    starts from the beginning.

    Args:
        cache: where the arrays belong.
        stage: short name of the writing step; steps with different names do not disturb each other.
        identity: JSON of all that determines the arrays' content.
    """

    def __init__(self, cache: Cache, stage: str, identity: dict[str, Any]) -> None:
        self.cache = cache
        self._progress_path = cache.folder / f"{cache.split}_{stage}_progress.json"
        self._identity = sha256_of_json(identity)
        self._dtypes: dict[str, str] = {}
        self._rows: dict[str, int] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._found_digests: dict[str, str] = {}
        self._records: dict[str, dict[str, Any]] = {}
        cache.folder.mkdir(parents=True, exist_ok=True)
        self._read_progress()

    def _read_progress(self) -> None:
        try:
            progress = without_checksum(json.loads(self._progress_path.read_text(encoding="utf-8")))
            if progress["identity"] == self._identity:
                self._rows, self._records = progress["rows"], progress["records"]
                self._found_digests = progress["digests"]
        except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError):
            return

    def _save_progress(self) -> None:
        digests = {name: digest.hexdigest() for name, digest in self._digests.items()}
        content = {
            "identity": self._identity,
            "rows": self._rows,
            "digests": {**self._found_digests, **digests},
            "records": self._records,
        }
        write_json(self._progress_path, with_checksum(content))

    def open(self, name: str, shape: tuple[int, ...], dtype: str | None = None) -> int:
        """Create the array, or go on with it, and return how many rows are already written.

        `dtype` is needed for an array that only one encoder or quantiser has.
        """
        self._dtypes[name] = self.cache.array_spec(name, dtype).dtype
        if self._is_recorded(name):
            return shape[0]
        if name in self._found_digests and self._is_intact(name, shape):
            return self._rows[name]
        # Before the file is touched, so that no older progress vouches for what it overwrites.
        self._found_digests.pop(name, None)
        self._digests.pop(name, None)
        self._rows[name] = 0
        self._save_progress()
        path = self._partial(name)
        path.unlink(missing_ok=True)  # a link left there would be written through
        np.lib.format.open_memmap(path, mode="w+", dtype=self._dtypes[name], shape=shape)
        self._reserve(path)
        self._digests[name] = self._digest_up_to(name, shape, 0)
        return 0

    def write(self, start: int, blocks: dict[str, np.ndarray]) -> None:
        """Write rows `start…` of several arrays, at most where they end, and put them on the disk.

        Each block is mapped, written, synced and unmapped, so that memory does not grow with N.
        """
        for name, block in blocks.items():
            target = np.load(self._partial(name), mmap_mode="r+", allow_pickle=False)
            if start != self._rows[name]:
                self._digests[name] = self._digest_up_to(name, target.shape, start)
            target[start : start + len(block)] = block
            target.flush()
            self._digests[name].update(target[start : start + len(block)].tobytes())
            self._rows[name] = start + len(block)
        self._save_progress()

    def put(self, name: str, array: np.ndarray) -> None:
        """Write a whole array at once."""
        if self.open(name, array.shape, str(array.dtype)) < len(array):
            self.write(0, {name: array})

    def read_back(self, name: str) -> np.ndarray:
        """Map the array read-only before it is published."""
        path = self._partial(name)
        array: np.ndarray = np.load(path if path.exists() else self._final(name), mmap_mode="r")
        return array

    def publish(self, sections: dict[str, Any], remove: tuple[str, ...] = ()) -> None:
        """Rename the arrays to their final names, then write the manifest.

        A kill in between leaves an old manifest whose checksums no longer fit, which readers
        refuse; the same stage run again finishes the job.

        Args:
            sections: manifest sections that describe these arrays.
            remove: arrays that the new sections make stale; they leave the manifest and the disk.

        Raises:
            InvalidInputError: a file is not what was written into it.
        """
        for name in self._rows:
            if name not in self._records:
                self._records[name] = self._describe(name)
        self._save_progress()
        for name in self._records:
            if self._partial(name).exists():
                publish(self._partial(name), self._final(name))
        stale = [self.cache.array_path(name) for name in remove]
        update_manifest(self.cache, sections, {**self._records, **dict.fromkeys(remove)})
        for path in stale:
            path.unlink(missing_ok=True)
        self._progress_path.unlink()

    def _is_recorded(self, name: str) -> bool:
        """Say whether the array was whole when an earlier run began to publish, and still is."""
        record = self._records.get(name)
        if record is None:
            return False
        for path in (self._partial(name), self._final(name)):
            if path.exists():
                if sha256_of_file(path) == record["sha256"]:
                    return True
                break
        del self._records[name]
        self._found_digests.pop(name, None)
        return False

    def _is_intact(self, name: str, shape: tuple[int, ...]) -> bool:
        """Say whether the rows that an earlier run has written are unchanged; then go on there."""
        path = self._partial(name)
        if not path.exists() or path.is_symlink():
            return False
        digest = self._digest_up_to(name, shape, self._rows[name])
        if digest.hexdigest() != self._found_digests[name]:
            print(f"{path} was changed since it was written; it is written again")
            return False
        self._digests[name] = digest
        return True

    def _digest_up_to(self, name: str, shape: tuple[int, ...], num_rows: int) -> "hashlib._Hash":
        """Hash the file from its first byte to the end of a row."""
        path = self._partial(name)
        row_bytes = math.prod(shape[1:]) * np.dtype(self._dtypes[name]).itemsize
        left = path.stat().st_size - (shape[0] - num_rows) * row_bytes
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while left > 0 and (piece := file.read(min(left, READ_BYTES))):
                digest.update(piece)
                left -= len(piece)
        return digest

    def _reserve(self, path: Path) -> None:
        """Take the file's blocks now: a full disk met through a memory map kills the process."""
        try:
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from error

    def _final(self, name: str) -> Path:
        return self.cache.array_path(name, self._dtypes[name])

    def _partial(self, name: str) -> Path:
        return partial_path(self._final(name))

    def _describe(self, name: str) -> dict[str, Any]:
        path = self._partial(name)
        sha256 = sha256_of_file(path)
        if sha256 != self._digests[name].hexdigest():
            self._progress_path.unlink()  # the next run writes it again
            raise InvalidInputError(
                f"{path} is not what was written into it: another program changed it, or the disk "
                "did; give the same command again"
            )
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return {
            "file": self._final(name).name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "sha256": sha256,
        }


def update_manifest(cache: Cache, sections: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Write `sections` and `arrays` into the manifest, keeping what other stages wrote.

    Stages that run side by side wait here for each other.

    Args:
        cache: whose manifest is written, atomically.
        sections: top-level entries to set (`dataset`, `encoder`, `codebook`, `split`, `text`);
            those of `steps` are set one by one, and None forgets a step, or an optional section.
        arrays: per-array record `{file, shape, dtype, sha256}`; None removes the array's entry.
    """
    with cache.lock("manifest", wait_s=MANIFEST_WAIT_S):
        cache._manifest = None  # another stage may have written meanwhile
        try:
            manifest = cache.manifest
        except (MissingFileError, InvalidInputError):
            # Nothing in an unreadable manifest can be kept, and this very write is what mends it.
            manifest = {"format": FORMAT, "arrays": {}}
        records: dict[str, Any] = {**manifest["arrays"], **arrays}
        steps = {**(manifest.get("steps") or {}), **sections.get("steps", {})}
        manifest = {**manifest, **sections}
        for name in OPTIONAL_SECTIONS:
            if manifest.get(name) is None:
                manifest.pop(name, None)
        if steps:
            manifest["steps"] = {name: step for name, step in steps.items() if step is not None}
        manifest["arrays"] = {name: r for name, r in records.items() if r is not None}
        write_json(cache.manifest_path, with_checksum(manifest))
        cache._manifest = manifest
