"""Embeddings to fit codebooks to, for measuring: drawn, since no dataset is here."""

from pathlib import Path
from typing import Literal

import numpy as np

RowKind = Literal["episodes", "noise"]
EPISODE_LENGTH = 100
NUM_SCENES = 400
MOTION_DIMS = 24


def write_rows(path: Path, kind: RowKind, num_frames: int, dim: int) -> None:
    """Write a float16 array [N, D], block by block.

    `episodes`: each of 100 frames, in one of 400 scenes (task, layout); within it a random walk in
    24 directions that all episodes share (what moves), and noise of every frame. Scenes, directions
    and noise all have a variance that falls as 1/i over the dims, as an encoder's principal
    components do. `noise`: independent standard normal numbers, where there is nothing to find and
    every step of the fit counts.
    """
    rng = np.random.default_rng(0)
    scale = np.arange(1, dim + 1, dtype=np.float32) ** -0.5
    scenes = rng.standard_normal((NUM_SCENES, dim), dtype=np.float32) * scale
    motions = rng.standard_normal((MOTION_DIMS, dim), dtype=np.float32) * scale / 5
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(num_frames, dim))
    for start in range(0, num_frames, EPISODE_LENGTH):
        length = min(EPISODE_LENGTH, num_frames - start)
        block = rng.standard_normal((length, dim), dtype=np.float32)
        if kind == "episodes":
            steps = 0.3 * rng.standard_normal((length, MOTION_DIMS), dtype=np.float32)
            scene = scenes[rng.integers(NUM_SCENES)]
            block = scene + np.cumsum(steps, axis=0) @ motions + 0.3 * scale * block
        # Mapped anew, since pages that were written stay resident as long as their map.
        np.load(path, mmap_mode="r+")[start : start + length] = block
