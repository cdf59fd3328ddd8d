"""Writes recorded episodes as a LeRobot dataset (format v3); knows no benchmark suite.

The differences between LeRobot 0.4.4 and 0.6.1 on the writing side stay in this file.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

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


class DemoDatasetWriter:
    """A LeRobot dataset under construction; leave its `with` block to make it loadable."""

    def __init__(
        self,
        repo_id: str,
        root: Path,
        fps: int,
        features: dict[str, Feature],
        robot_type: str,
        use_videos: bool = False,
    ) -> None:
        """Create an empty dataset.

        Args:
            repo_id: LeRobot's name of the dataset, such as `local/demo`.
            root: folder to write, which does not exist yet.
            fps: frames per second.
            features: LeRobot feature name to its description.
            robot_type: LeRobot's metadata field.
            use_videos: store cameras as video (lossy) instead of PNG.
        """
        import datasets
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        datasets.disable_progress_bars()  # one bar per episode otherwise
        self._enable_progress_bars = datasets.enable_progress_bars
        self._dataset = LeRobotDataset.create(
            repo_id=repo_id,
            fps=fps,
            features=features,
            root=root,
            robot_type=robot_type,
            use_videos=use_videos,
            image_writer_threads=_IMAGE_WRITER_THREADS,
        )

    def __enter__(self) -> "DemoDatasetWriter":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # LeRobot 0.6 stops its image threads in finalize, 0.4 leaves them to the caller.
        if getattr(self._dataset, "image_writer", None) is not None:
            self._dataset.stop_image_writer()
        if error_type is None:
            self._dataset.finalize()
            self._remove_empty_image_folders()
        self._enable_progress_bars()

    def add_episode(self, episode: DemoEpisode) -> None:
        """Append one episode; its columns are the features."""
        for index in range(episode.num_frames):
            frame: dict[str, Any] = {
                name: column[index] for name, column in episode.columns.items()
            }
            frame["task"] = episode.instruction
            self._dataset.add_frame(frame)
        with unchanged_scheduling():
            self._dataset.save_episode()

    def _remove_empty_image_folders(self) -> None:
        # LeRobot leaves the folders of its temporary PNG files behind.
        images = Path(self._dataset.root) / "images"
        for folder in sorted(images.rglob("*"), reverse=True):
            folder.rmdir()
        if images.exists():
            images.rmdir()
