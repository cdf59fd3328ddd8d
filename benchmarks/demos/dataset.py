"""Writes recorded episodes as a LeRobot dataset (format v3); knows no benchmark suite.

The differences between LeRobot 0.4.4 and 0.6.1 on the writing side stay in this file.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from benchmarks.demos.episode import DemoEpisode
from world_modality.system.errors import UserError

Feature = dict[str, Any]
_IMAGE_WRITER_THREADS = 4


@contextmanager
def unchanged_scheduling() -> Iterator[None]:
    """Give this thread back the scheduling that it has now.

    Run as root, the AV1 encoder (SVT-AV1) puts the thread that opens it under SCHED_FIFO with the
    highest priority. Every thread and process that is started later inherits it, and a Go program
    such as rclone then starves its own threads for ever.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def image_feature(height: int, width: int, use_videos: bool) -> Feature:
    """Describe a camera: uint8 [height, width, 3], stored as PNG or as video."""
    return {
        "dtype": "video" if use_videos else "image",
        "shape": (height, width, 3),
        "names": ["height", "width", "channels"],
    }


@contextmanager
def counted_image_statistics() -> Iterator[None]:
    """Let LeRobot compute the statistics of 8-bit images by counting the 256 values of a channel.

    It takes a tenth of the time of sorting millions of bytes. LeRobot 0.4 squares bytes as bytes,
    which gives a wrong standard deviation; 0.6 does not.
    """
    from lerobot.datasets import compute_stats

    original = compute_stats.get_feature_stats

    def statistics(
        array: np.ndarray, axis: Any, keepdims: bool, quantile_list: list[float] | None = None
    ) -> dict[str, np.ndarray]:
        if array.dtype == np.uint8 and array.ndim == 4 and axis == (0, 2, 3) and keepdims:
            return _counted(array, quantile_list or compute_stats.DEFAULT_QUANTILES)
        found: dict[str, np.ndarray] = original(array, axis, keepdims, quantile_list)
        return found

    compute_stats.get_feature_stats = statistics
    try:
        yield
    finally:
        compute_stats.get_feature_stats = original


def _counted(
    images: UInt8[np.ndarray, "B C H W"], quantiles: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return min, max, mean, std and quantiles of each channel, [1, C, 1, 1], and count."""
    counts = np.stack(
        [
            np.bincount(images[:, channel].ravel(), minlength=256)
            for channel in range(images.shape[1])
        ]
    )
    values, num_pixels = np.arange(256.0), counts.sum(axis=1)
    mean = counts @ values / num_pixels
    up_to = counts.cumsum(axis=1)
    found = {
        "min": (counts > 0).argmax(axis=1),
        "max": 255 - (counts[:, ::-1] > 0).argmax(axis=1),
        "mean": mean,
        "std": np.sqrt((counts * (values - mean[:, None]) ** 2).sum(axis=1) / num_pixels),
    }
    for share in quantiles:
        found[f"q{int(share * 100):02d}"] = (up_to < share * num_pixels[:, None]).sum(axis=1)
    shaped = {name: value.astype(np.float64).reshape(1, -1, 1, 1) for name, value in found.items()}
    return {**shaped, "count": np.array([len(images)])}


def vector_feature(names: Sequence[str]) -> Feature:
    """Describe a float32 vector by the names of its dimensions."""
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


def lerobot_version() -> str:
    """Return LeRobot's version without importing it.

    Raises:
        UserError: LeRobot is not installed.
    """
    if importlib.util.find_spec("lerobot") is None:
        raise UserError("lerobot is not installed; pip install lerobot")
    return importlib.metadata.version("lerobot")


@contextmanager
def new_dataset(
    repo_id: str, root: Path, fps: int, features: Mapping[str, Feature], robot_type: str
) -> Iterator[Callable[[DemoEpisode], None]]:
    """Create a dataset and yield what appends an episode, whose columns are the features.

    Args:
        repo_id: LeRobot's name of the dataset, such as `local/demo`.
        root: folder to write, which does not exist yet; it can be loaded after the `with` block.
        fps: frames per second.
        features: LeRobot feature name to its description.
        robot_type: LeRobot's metadata field.
    """
    import datasets
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    datasets.disable_progress_bars()  # one bar per episode otherwise
    dataset = LeRobotDataset.create(
        repo_id=repo_id,
        fps=fps,
        features=dict(features),
        root=root,
        robot_type=robot_type,
        use_videos=any(feature["dtype"] == "video" for feature in features.values()),
        image_writer_threads=_IMAGE_WRITER_THREADS,
    )

    def append(episode: DemoEpisode) -> None:
        for index in range(episode.num_frames):
            frame = {name: column[index] for name, column in episode.columns.items()}
            dataset.add_frame({**frame, "task": episode.instruction})
        with unchanged_scheduling(), counted_image_statistics():
            dataset.save_episode()

    try:
        try:
            yield append
        finally:
            # LeRobot 0.6 stops its image threads in finalize, 0.4 leaves them to the caller.
            if getattr(dataset, "image_writer", None) is not None:
                dataset.stop_image_writer()
        dataset.finalize()
    finally:
        datasets.enable_progress_bars()
    # LeRobot leaves the folders of its temporary PNG files behind.
    for folder in sorted(root.glob("images/**"), reverse=True):
        folder.rmdir()
