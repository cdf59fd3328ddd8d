"""The flags that recording demonstrations has in every suite."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from world_modality.system.cli import config_dict
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class DemoConfig:
    """Record a suite's scripted experts as a LeRobot dataset."""

    dataset_name: str
    """LeRobot repository id of the dataset to record."""
    dataset_root: Path | None = None
    """Folder to write. Default: where LeRobot looks for it, HF_LEROBOT_HOME/<dataset_name>."""
    tasks: tuple[str, ...] = ()
    """Names of the tasks to record."""
    episodes_per_task: int = 25
    """Solved episodes to keep of each task; attempts that do not solve it are discarded."""
    seed: int = 0
    """Seed of the layouts and the noise. Evaluation draws its layouts from another stream, whatever
    the seed."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on the executed action, before clipping to [-1, 1]."""
    action_label: Literal["executed", "expert"] = "executed"
    """Which action is stored: the executed one, noise included, or the expert's own."""
    max_steps: int | None = None
    """Steps after which an attempt has failed. Default: the suite's standard limit."""
    success_hold: int = 10
    """Frames recorded after the first solved one: action chunks end in real actions, and a policy
    learns to go on into the region of success instead of stopping at its border."""
    image_size: int | None = 128
    """Height and width of the images in pixels."""
    use_videos: bool = False
    """Store images as video (lossy) instead of PNG."""
    max_attempts_per_episode: int = 5
    """Give up when a task needs more than this many attempts per wanted episode."""
    num_workers: int = len(os.sched_getaffinity(0))
    """Worker processes; each keeps one core busy."""
    overwrite: bool = False
    """Delete an existing dataset or unfinished recording of that name and start again."""

    NOT_IN_RECIPE: ClassVar[tuple[str, ...]] = (
        *("dataset_root", "max_attempts_per_episode"),
        *("num_workers", "overwrite"),
    )
    """Flags that do not decide the data."""

    def recipe_flags(self) -> dict[str, Any]:
        """Return the flags that decide the data."""
        flags = config_dict(self)
        return {name: value for name, value in flags.items() if name not in self.NOT_IN_RECIPE}

    def require_ranges(self, max_steps: int) -> None:
        """Check the numbers.

        Args:
            max_steps: the suite's limit.

        Raises:
            InvalidInputError: a flag is out of range.
        """
        bounds: dict[str, tuple[float, float]] = {
            "episodes_per_task": (1, np.inf),
            "seed": (0, np.inf),
            "action_noise": (0, np.inf),
            "max_steps": (1, max_steps),
            "success_hold": (0, max_steps),
            "image_size": (8, 4096),
            "max_attempts_per_episode": (1, np.inf),
            "num_workers": (1, np.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InvalidInputError(f"--{name} must be within [{low}, {high}], got {value}")
