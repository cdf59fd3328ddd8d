"""The dataset as the precompute stage sees it: columns checked, validation episodes drawn."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from world_modality.precompute.dataset_columns import (
    ColumnKeys,
    ColumnScan,
    joined_columns,
    scan_columns,
)
from world_modality.source.episodes import Episodes, Split, split_episodes
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_source import LeRobotSource


@dataclass(frozen=True, kw_only=True)
class DatasetFlags:
    """Flags of the dataset, its columns, and the split of its episodes."""

    dataset_name: str
    """Repository id (HuggingFaceVLA/libero), or the name given to a local dataset."""
    dataset_root: Path | None = None
    """Folder of a local dataset; without it HF_LEROBOT_HOME is searched, then the hub."""
    revision: str | None = None
    """Hub revision (tag, branch or commit) to pin the dataset to."""
    convert: bool = False
    """Read a dataset of format v2.1 from `<folder>_v3` beside it, which LeRobot's converter writes
    where it is not there yet; the dataset itself stays as it is."""
    image_key: tuple[str, ...] = ()
    """Camera to embed, or several, each of which is a view of the frame; may be left out where
    there is only one."""
    proprio_key: str = "observation.state"
    """Column of the robot's state; several names joined by + are concatenated."""
    action_key: str = "action"
    """Column of the action."""
    episode_id_key: str = "episode_index"
    """Column that numbers the episodes."""
    task_index_key: str = "task_index"
    """Column that numbers the tasks."""
    environment_state_key: str | None = None
    """Column of the simulator's own state; by default observation.environment_state where it
    exists."""
    val_fraction: float = 0.1
    """Share of the episodes that are held out for validation, in every later stage too."""
    split_seed: int = 0
    """Seed of the choice of held-out episodes."""


@dataclass(frozen=True)
class PrecomputeInputs:
    """The dataset as the steps see it."""

    source: LeRobotSource
    image_keys: tuple[str, ...]
    keys: ColumnKeys
    scan: ColumnScan
    split: Split
    split_section: dict[str, Any]

    @classmethod
    def read(cls, flags: DatasetFlags) -> "PrecomputeInputs":
        """Open the dataset, check its columns, and draw the validation episodes.

        Raises:
            UserError: whatever is wrong with the dataset, a key or the split.
        """
        source = open_dataset(
            flags.dataset_name,
            dataset_root=flags.dataset_root,
            revision=flags.revision,
            image_keys=flags.image_key,
            needs_images=True,
            convert_older=flags.convert,
        )
        image_keys = source.cameras(flags.image_key)
        keys = ColumnKeys.of(
            source,
            state=flags.proprio_key,
            action=flags.action_key,
            episode=flags.episode_id_key,
            task=flags.task_index_key,
            environment_state=flags.environment_state_key,
        )
        scan = scan_columns(source, keys)
        drawn = split_episodes(scan.episodes, flags.val_fraction, flags.split_seed)
        section = {
            "val_fraction": flags.val_fraction,
            "seed": flags.split_seed,
            "train": drawn.train,
            "val": drawn.val,
        }
        return cls(source, image_keys, keys, scan, drawn, section)

    @property
    def episodes(self) -> Episodes:
        """Where episodes begin and end."""
        return self.scan.episodes

    @property
    def dataset_section(self) -> dict[str, Any]:
        """The manifest's `dataset`."""
        keys = self.keys.arrays
        names = {
            f"{name}_names": self._dim_names(keys[array], self.scan.dims[array])
            for name, array in (("state", "states"), ("environment_state", "environment_states"))
            if array in keys
        }
        numbered = self.scan.numbered_ids
        return {
            **self.source.describe(self.image_keys),
            **self.keys.record,
            **names,
            **({} if numbered is None else {"episode_ids": numbered}),
            "columns_sha256": self.scan.sha256,
        }

    def _dim_names(self, key: str, num_dims: int) -> list[str] | None:
        columns = joined_columns(key)
        if len(columns) == 1:
            return self.source.dim_names(key, num_dims)
        shapes = [self.source.features[column]["shape"] for column in columns]
        named = [
            self.source.dim_names(column, math.prod(shape))
            for column, shape in zip(columns, shapes, strict=True)
        ]
        names = [name for part in named for name in part or []]
        return names if len(set(names)) == len(names) == num_dims else None

    def training_sample(self, num_frames: int, seed: int) -> Int[np.ndarray, " N"]:
        """Draw frames of training episodes, in ascending order; all where they are fewer."""
        frames = self.episodes.frames_of(self.split.train)
        if len(frames) <= num_frames:
            return frames
        return np.sort(np.random.default_rng(seed).choice(frames, num_frames, replace=False))
