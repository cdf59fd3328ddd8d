"""Tiny LeRobot datasets, written through `LeRobotDataset.create` as a recording is."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.demo_dataset import unchanged_scheduling

TASKS = ("push the block", "lift the block", "open the drawer")
FPS = 10
# Named as a hand's position is, so that the rules can label the episodes.
STATE_NAMES = ("x", "y", "z", "speed")
STATE_DIM = len(STATE_NAMES)
ACTION_DIM = 2


def frame_image(position: np.ndarray, task: int, height: int, width: int) -> np.ndarray:
    """Draw a bright square at `position`, two numbers in [0, 1], over a gradient."""
    rows, columns = np.mgrid[0:height, 0:width]
    image = np.stack(
        [rows * 120 / height, columns * 120 / width, np.full((height, width), 40 + 60 * task)],
        axis=-1,
    )
    side = max(height // 5, 2)
    top = int(position[0] * (height - side))
    left = int(position[1] * (width - side))
    image[top : top + side, left : left + side] = (250, 220 - 60 * task, 30)
    return image.astype(np.uint8)


def make_dataset(
    root: Path,
    *,
    num_episodes: int = 6,
    num_frames: int = 12,
    image_size: tuple[int, int] = (48, 40),
    camera_dtype: str = "image",
    cameras: tuple[str, ...] = ("observation.image",),
    environment_state: bool = False,
    seed: int = 0,
) -> Path:
    """Record `num_episodes` episodes of `num_frames + episode % 3` frames, tasks in turn.

    The state is (x, y, x velocity, y velocity) of the square that each camera sees.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    height, width = image_size
    features: dict[str, dict[str, Any]] = {
        camera: {
            "dtype": camera_dtype,
            "shape": (height, width, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in cameras
    }
    features["observation.state"] = {
        **_vector("float32", STATE_DIM),
        "names": list(STATE_NAMES),
    }
    features["action"] = _vector("float32", ACTION_DIM)
    if environment_state:
        features["observation.environment_state"] = _vector("float32", 3)
    dataset = LeRobotDataset.create(
        repo_id="local/tiny",
        fps=FPS,
        features=features,
        root=root,
        use_videos=camera_dtype == "video",
    )
    rng = np.random.default_rng(seed)
    for episode in range(num_episodes):
        task = episode % len(TASKS)
        position, velocity = rng.random(2), rng.normal(0, 0.05, 2)
        for _ in range(num_frames + episode % 3):
            velocity = velocity + rng.normal(0, 0.02, 2)
            position = np.clip(position + velocity, 0, 1)
            frame: dict[str, Any] = {
                camera: frame_image(position if i == 0 else position[::-1], task, height, width)
                for i, camera in enumerate(cameras)
            }
            frame["observation.state"] = np.concatenate([position, velocity]).astype(np.float32)
            frame["action"] = velocity.astype(np.float32)
            if environment_state:
                frame["observation.environment_state"] = np.append(position, task).astype(
                    np.float32
                )
            dataset.add_frame({**frame, "task": TASKS[task]})
        with unchanged_scheduling():
            dataset.save_episode()
    dataset.finalize()
    recording = {"simulator": "drawn", "seed": seed, "episodes": [{}] * num_episodes}
    (root / "meta" / "recording.json").write_text(json.dumps(recording))
    return root


def _vector(dtype: str, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": (size,), "names": [f"x{i}" for i in range(size)]}
