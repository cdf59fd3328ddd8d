"""A recorded episode, and the one file it is staged in."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demos.png_images import PngImages
from world_modality.system.atomic import replacing
from world_modality.system.errors import InvalidInputError

_ENDS_SUFFIX = "/png_ends"
_DIGEST_BYTES = hashlib.sha256().digest_size
_SIGNAL_PREFIX = "signal/"


@dataclass(frozen=True)
class DemoEpisode:
    """One solved task, frame by frame: what was seen, then what was done in it."""

    instruction: str
    """The task in words, the same for every frame."""
    columns: Mapping[str, np.ndarray | PngImages]
    """By LeRobot feature name: float32 [N, dim], or for images uint8 [N, height, width, 3] or their
    PNG files, which `load` gives and a dataset takes as they are."""
    signals: dict[str, np.ndarray]
    """What the recorder knows beside the features: float32 [N, dim] by name (see `recording`)."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in {**self.columns, **self.signals}.items()}
        assert len(set(lengths.values())) == 1, f"columns differ in length: {lengths}"

    @property
    def num_frames(self) -> int:
        """Length of every column."""
        return len(next(iter(self.columns.values())))

    def save(self, path: Path) -> None:
        """Write the episode atomically as npz without pickle; images become (lossless) PNG.

        The SHA-256 of the archive follows it: a zip's own checksums do not cover its directory, in
        which a flipped bit can hide a column.
        """
        arrays: dict[str, Any] = {"instruction": np.array(self.instruction)}
        for name, column in self.columns.items():
            if isinstance(column, np.ndarray) and column.dtype == np.uint8 and column.ndim == 4:
                column = PngImages.encode(column)
            if isinstance(column, PngImages):
                arrays[name], arrays[name + _ENDS_SUFFIX] = column.encoded, column.ends
            else:
                arrays[name] = column
        for name, signal in self.signals.items():
            arrays[_SIGNAL_PREFIX + name] = signal
        archive = io.BytesIO()
        np.savez(archive, **arrays)
        content = archive.getvalue()
        with replacing(path) as partial:
            partial.write_bytes(content + hashlib.sha256(content).digest())

    @classmethod
    def load(cls, path: Path) -> "DemoEpisode":
        """Read an episode that `save` wrote.

        Raises:
            InvalidInputError: the file is damaged.
        """
        content = path.read_bytes()
        content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise InvalidInputError(
                f"{path} is damaged (its SHA-256 differs); delete it and run the same command again"
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays: dict[str, Any] = {name: archive[name] for name in archive.files}
        instruction = str(arrays.pop("instruction"))
        ends = {name: arrays.pop(name) for name in list(arrays) if name.endswith(_ENDS_SUFFIX)}
        for name, image_ends in ends.items():
            image_name = name.removesuffix(_ENDS_SUFFIX)
            arrays[image_name] = PngImages(arrays[image_name], image_ends)
        signals = {
            name.removeprefix(_SIGNAL_PREFIX): arrays.pop(name)
            for name in list(arrays)
            if name.startswith(_SIGNAL_PREFIX)
        }
        return cls(instruction=instruction, columns=arrays, signals=signals)


def stack_frames(frames: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Turn frames (name to value) into columns (name to [N, …])."""
    return {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
