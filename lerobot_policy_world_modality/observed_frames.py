"""From LeRobot's observations to what the network reads: embeddings, states, world tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor

from lerobot_policy_world_modality.configuration_world_modality import WorldModalityConfig
from world_modality.encode.observation_encoder import ObservationEncoder, load_observation_encoder
from world_modality.export.policy_record import PolicyRecord, require_own_shape
from world_modality.system.errors import InvalidInputError, missing_key
from world_modality.tokens.world_tokens import WorldTokeniser


@dataclass(frozen=True)
class ObservedFrame:
    """One frame of each of B robots or environments.

    Attributes:
        embeddings: what the policy reads, as a cache holds it.
        states: in raw units.
        tokens: the world token or tokens that are read; 0 where none is.
    """

    embeddings: Float16[np.ndarray, "B *P M"]
    states: Float32[np.ndarray, "B S"]
    tokens: Int64[np.ndarray, " B *W"]


@dataclass(frozen=True)
class FrameReader:
    """Reads observations as the policy's cache was read.

    Attributes:
        record: of the policy.
        encoder: of all views, rebuilt from its record.
        tokeniser: the codebook, and what of a frame it quantises.
    """

    record: PolicyRecord
    encoder: ObservationEncoder
    tokeniser: WorldTokeniser

    @classmethod
    def of(
        cls, config: WorldModalityConfig, arrays: Mapping[str, np.ndarray], device: torch.device
    ) -> "FrameReader":
        """Rebuild encoder and codebook.

        Raises:
            UserError: the vision model cannot be loaded, or is not the one of the record; or
                components or codebook do not belong to it or to the network.
        """
        record = config.policy_record
        encoder = load_observation_encoder(
            record.manifest,
            arrays,
            device,
            model_name=config.vision_model_name,
            trust_remote_code=config.trust_remote_code,
        )
        require_own_shape(encoder.shape, record.policy.frame.observation)
        return cls(record, encoder, record.load_tokeniser(arrays))

    def read(self, batch: Mapping[str, Any]) -> ObservedFrame:
        """Encode one observation.

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
        embedded = self.encoder.encode(views).rounded()
        frame = self.record.policy.frame
        if self.record.reads_own_token:
            tokens = self.tokeniser.encode(embedded.pooled, embedded.cells).astype(np.int64)
        else:
            unread = (len(states), *frame.world.axis)
            tokens = np.full(unread, self.record.constant_token, dtype=np.int64)
        return ObservedFrame(embedded.read(frame.observation), states, tokens)

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
