"""LeRobot's own way of reading a dataset, to compare with."""

import time
from pathlib import Path

from benchmarks.speed.harness.drawn_dataset import CAMERA

VIDEO_BACKEND = "pyav"  # torchcodec, the default, needs FFmpeg's shared libraries


def frame_by_frame_rate(root: Path, num_frames: int) -> float:
    """Return frames per second of `LeRobotDataset[i]` for the first frames, one after another."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"bench/{root.name}", root=root, video_backend=VIDEO_BACKEND)
    dataset[0][CAMERA]  # opens the files
    began = time.monotonic()
    for index in range(num_frames):
        dataset[index][CAMERA]
    return num_frames / (time.monotonic() - began)
