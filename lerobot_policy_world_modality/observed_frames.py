"""From LeRobot's observations to what the policy was trained on: whole-number images, states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from world_modality.export.policy_record import PolicyRecord
from world_modality.system.errors import InvalidInputError, missing_key


@dataclass(frozen=True)
class ObservedFrame:
    """One frame of each of B robots or environments.

    Attributes:
        views: the images of each camera, in the order of the policy's views.
        states: in raw units.
    """

    views: tuple[UInt8[np.ndarray, "B _ _ 3"], ...]
    states: Float32[np.ndarray, "B S"]


@dataclass(frozen=True)
class FrameReader:
    """Reads observations as the policy's dataset was read.

    Attributes:
        record: of the policy.
    """

    record: PolicyRecord

    def read(self, batch: Mapping[str, Any]) -> ObservedFrame:
        """Take images and states from one observation.

        Raises:
            MissingKeyError: a camera or the state is not in it; lists what is.
            InvalidInputError: an image or a state is not of the form that the policy takes.
        """
        views = [_whole_numbers(_entry(batch, key)) for key in self.record.observed_images]
        states = self._states(batch)
        for key, images in zip(self.record.observed_images, views, strict=True):
            if len(states) != len(images):
                raise InvalidInputError(
                    f"the observation has {len(images)} images of {key} but {len(states)} states"
                )
        return ObservedFrame(tuple(views), states)

    def _states(self, batch: Mapping[str, Any]) -> Float32[np.ndarray, "B S"]:
        parts = [_entry(batch, key).float() for key in self.record.observed_states]
        states = torch.cat([part.flatten(1) for part in parts], dim=1)
        expected = self.record.policy.frame.state_dim
        if states.shape[1] != expected:
            raise InvalidInputError(
                f"the policy was trained on {expected} state dimensions "
                f"({self.record.state_key}), but {' + '.join(self.record.observed_states)} has "
                f"{states.shape[1]}; rename_map chooses another observation"
            )
        values: np.ndarray = states.cpu().numpy()
        return values


def _entry(batch: Mapping[str, Any], key: str) -> Tensor:
    if key not in batch:
        found = [name for name in batch if name.startswith("observation.")]
        where = "the observation (--rename_map says which of them it is)"
        raise missing_key("observation", key, found, where)
    value = batch[key]
    if not isinstance(value, Tensor):
        raise InvalidInputError(f"{key} is a {type(value).__name__}, expected a tensor")
    return value


def _whole_numbers(images: Tensor) -> UInt8[np.ndarray, "B H W 3"]:
    """Return the images that LeRobot made floats in [0, 1] of.

    Rounded, since cutting off loses 1 of a value that another way to divide by 255 put below.

    Args:
        images: [B, 3, H, W].
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise InvalidInputError(
            f"expected images of shape [B, 3, H, W], found {list(images.shape)}"
        )
    if images.dtype != torch.uint8:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):
            raise InvalidInputError(
                f"expected images in [0, 1], found numbers from {low:g} to {high:g}: the policy's "
                "own processors leave images as LeRobot makes them"
            )
        images = (images * 255).round().to(torch.uint8)
    pixels: np.ndarray = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return pixels
