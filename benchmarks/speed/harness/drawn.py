"""Drawn data to measure on, since no dataset is here: a recording, embeddings, a cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from benchmarks.demos.dataset import image_feature, new_dataset, vector_feature
from benchmarks.demos.episode import DemoEpisode
from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.source.episodes import Episodes, split_episodes

CAMERA = "observation.image"
CameraDtype = Literal["image", "video"]
EPISODE_LENGTH = 100
FPS = 20
VECTOR_NAMES = ("x", "y", "vx", "vy")  # of the state and of the action

RowKind = Literal["episodes", "noise"]
NUM_SCENES = 400
MOTION_DIMS = 24

CACHE_NAME = "synthetic/libero_sized"
NUM_TASKS = 40
NUM_TOKENS = 1024
LIBERO_EPISODE_LENGTH = 160
STATE_DIM, ACTION_DIM = 8, 7  # LIBERO's
_BLOCK = 16_384


def draw_dataset(
    root: Path,
    num_frames: int,
    image_size: int,
    camera_dtype: CameraDtype = "image",
    episode_length: int = EPISODE_LENGTH,
) -> None:
    """Record one task with one camera.

    LeRobot writes it, so that layout, PNG compression and video codec are those of a recording.

    Args:
        root: a folder that does not exist yet.
        num_frames: N.
        image_size: side of the square frames.
        camera_dtype: PNG images in parquet, or an mp4 file of many episodes.
        episode_length: frames of an episode; the last may be shorter.
    """
    rng = np.random.default_rng(0)
    features = {
        CAMERA: image_feature(image_size, image_size, camera_dtype == "video"),
        "observation.state": vector_feature(VECTOR_NAMES),
        "action": vector_feature(VECTOR_NAMES),
    }
    with new_dataset(f"bench/{root.name}", root, FPS, features, "drawn") as append:
        for start, stop in blocks(num_frames, episode_length):
            shape = (2, stop - start, len(VECTOR_NAMES))
            state, action = rng.normal(size=shape).astype(np.float32)
            frames = np.stack([_draw_frame(rng, image_size) for _ in range(start, stop)])
            columns = {CAMERA: frames, "observation.state": state, "action": action}
            append(DemoEpisode("move the square", columns, signals={}))


def _draw_frame(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a square somewhere over a gradient with a little noise."""
    rows, columns = np.mgrid[0:size, 0:size] * (200 // size + 1)
    image = np.stack([rows, columns, rows + columns], axis=-1) % 256
    image = image + rng.integers(0, 4, image.shape)
    top, left = rng.integers(0, size - size // 4, 2)
    image[top : top + size // 4, left : left + size // 4] = rng.integers(0, 256, 3)
    frame: np.ndarray = image.astype(np.uint8)
    return frame


def write_rows(path: Path, kind: RowKind, num_frames: int, dim: int) -> None:
    """Write embeddings to fit codebooks to, a float16 array [N, D], block by block.

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
    for start, stop in blocks(num_frames, EPISODE_LENGTH):
        block = rng.standard_normal((stop - start, dim), dtype=np.float32)
        if kind == "episodes":
            steps = 0.3 * rng.standard_normal((stop - start, MOTION_DIMS), dtype=np.float32)
            scene = scenes[rng.integers(NUM_SCENES)]
            block = scene + np.cumsum(steps, axis=0) @ motions + 0.3 * scale * block
        # Mapped again, since pages that were written stay resident as long as their map.
        np.load(path, mmap_mode="r+")[start:stop] = block


def draw_cache(cache_dir: Path, num_frames: int, embedding_dim: int) -> Cache:
    """Write a complete cache of random arrays, unless it is there."""
    cache = Cache(cache_dir, CACHE_NAME)
    if cache.manifest_path.exists():
        return cache
    rng = np.random.default_rng(0)
    episode_index = np.arange(num_frames, dtype=np.int32) // LIBERO_EPISODE_LENGTH
    task_index = (episode_index % NUM_TASKS).astype(np.int32)
    writer = CacheWriter(cache, "precompute", {"num_frames": num_frames, "dim": embedding_dim})
    writer.open("embeddings", (num_frames, embedding_dim))
    for start, stop in blocks(num_frames, _BLOCK):
        block = rng.standard_normal((stop - start, embedding_dim), dtype=np.float32)
        writer.write(start, {"embeddings": block.astype(np.float16)})
    writer.put("world_tokens", rng.integers(0, NUM_TOKENS, num_frames, dtype=np.int32))
    for name, shape in (
        ("codebook_centroids", (NUM_TOKENS, embedding_dim)),
        ("states", (num_frames, STATE_DIM)),
        ("actions", (num_frames, ACTION_DIM)),
    ):
        writer.put(name, rng.standard_normal(shape, dtype=np.float32))
    writer.put("episode_index", episode_index)
    writer.put("task_index", task_index)
    split = split_episodes(Episodes.from_frames(episode_index, task_index), 0.1, 0)
    writer.publish(
        {
            "dataset": {
                "name": CACHE_NAME,
                "num_frames": num_frames,
                "tasks": {str(task): f"task {task}" for task in range(NUM_TASKS)},
            },
            "encoder": {"name": "random numbers", "note": None},
            "codebook": {"num_tokens": NUM_TOKENS},
            "split": {"train": split.train, "val": split.val},
        }
    )
    return cache


def blocks(num_frames: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield where each block starts and stops."""
    for start in range(0, num_frames, length):
        yield start, min(start + length, num_frames)
