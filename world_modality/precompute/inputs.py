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


@dataclass(frozen=True)
class PrecomputeInputs:
    """The dataset as the steps see it."""

    source: LeRobotSource
    image_key: str
    keys: ColumnKeys
    scan: ColumnScan
    split: Split
    split_section: dict[str, Any]

    @classmethod
    def read(
        cls,
        name: str,
        *,
        dataset_root: Path | None,
        revision: str | None,
        image_key: str | None,
        keys: dict[str, str | None],
        split: tuple[float, int],
    ) -> "PrecomputeInputs":
        """Open the dataset, check its columns, and draw the validation episodes.

        Raises:
            UserError: whatever is wrong with the dataset, a key or the split.
        """
        source = open_dataset(
            name,
            dataset_root=dataset_root,
            revision=revision,
            image_key=image_key,
            needs_images=True,
        )
        camera = source.camera(image_key)
        column_keys = ColumnKeys.of(source, **keys)
        scan = scan_columns(source, column_keys)
        val_fraction, seed = split
        drawn = split_episodes(scan.episodes, val_fraction, seed)
        section = {
            "val_fraction": val_fraction,
            "seed": seed,
            "train": drawn.train,
            "val": drawn.val,
        }
        return cls(source, camera, column_keys, scan, drawn, section)

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
            **self.source.describe(self.image_key),
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
