"""Datasets for the speed benchmarks: drawn frames, recorded through LeRobot as images or video."""

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from benchmarks.demos.dataset import image_feature, new_dataset, vector_feature
from benchmarks.demos.episode import DemoEpisode

CAMERA = "observation.image"
CameraDtype = Literal["image", "video"]
EPISODE_LENGTH = 100
FPS = 20
VECTOR_NAMES = ("x", "y", "vx", "vy")  # of the state and of the action


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
        for start in range(0, num_frames, episode_length):
            length = min(episode_length, num_frames - start)
            state, action = rng.normal(size=(2, length, len(VECTOR_NAMES))).astype(np.float32)
            frames = np.stack([draw_frame(rng, image_size) for _ in range(length)])
            columns = {CAMERA: frames, "observation.state": state, "action": action}
            append(DemoEpisode("move the square", columns, signals={}))


def draw_frame(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "H W 3"]:
    """Draw a square somewhere over a gradient with a little noise."""
    rows, columns = np.mgrid[0:size, 0:size] * (200 // size + 1)
    image = np.stack([rows, columns, rows + columns], axis=-1) % 256
    image = image + rng.integers(0, 4, image.shape)
    top, left = rng.integers(0, size - size // 4, 2)
    image[top : top + size // 4, left : left + size // 4] = rng.integers(0, 256, 3)
    frame: np.ndarray = image.astype(np.uint8)
    return frame
