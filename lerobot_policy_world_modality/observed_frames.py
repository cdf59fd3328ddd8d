"""From LeRobot's observations to what the network reads: embeddings, states, world tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from torch import Tensor

from lerobot_policy_world_modality.configuration_world_modality import WorldModalityConfig
from world_modality.encode.vision_encoders import VisionEncoder, load_encoder
from world_modality.export.policy_record import PolicyRecord
from world_modality.precompute.embedding_pass import to_float16
from world_modality.system.errors import InvalidInputError, missing_key
from world_modality.tokens.codebook import load_quantiser
from world_modality.tokens.quantiser import Quantiser


@dataclass(frozen=True)
class ObservedFrame:
    """One frame of each of B robots or environments.

    Attributes:
        embeddings: as a cache holds them.
        states: in raw units.
        tokens: the world token that is read; 0 where none is.
    """

    embeddings: Float16[np.ndarray, "B D"]
    states: Float32[np.ndarray, "B S"]
    tokens: Int64[np.ndarray, " B"]


@dataclass(frozen=True)
class FrameReader:
    """Reads observations as the policy's cache was read.

    Attributes:
        record: of the policy.
        encoder: rebuilt from its record.
        quantiser: the codebook.
    """

    record: PolicyRecord
    encoder: VisionEncoder
    quantiser: Quantiser

    @classmethod
    def of(
        cls, config: WorldModalityConfig, arrays: Mapping[str, np.ndarray], device: torch.device
    ) -> "FrameReader":
        """Rebuild encoder and codebook.

        Raises:
            InvalidInputError: the vision model cannot be loaded, or is not the one of the record.
        """
        record = config.policy_record
        encoder = load_encoder(
            record.encoder,
            arrays,
            device,
            model_name=config.vision_model_name,
            trust_remote_code=config.trust_remote_code,
        )
        expected = record.policy.frame.observation.embedding_dim
        if encoder.embedding_dim != expected:
            raise InvalidInputError(
                f"the vision encoder {encoder.name} gives D={encoder.embedding_dim}, but the "
                f"policy was trained on D={expected}; export the checkpoint again"
            )
        return cls(record, encoder, load_quantiser(record.codebook, arrays))

    def read(self, batch: Mapping[str, Any]) -> ObservedFrame:
        """Encode one observation.

        Raises:
            MissingKeyError: the camera or the state is not in it; lists what is.
            InvalidInputError: an image or a state is not of the form that the policy takes.
        """
        images = _whole_numbers(_entry(batch, self.record.observed_image))
        states = self._states(batch)
        if len(states) != len(images):
            raise InvalidInputError(
                f"the observation has {len(images)} images but {len(states)} states"
            )
        embeddings = to_float16(self.encoder.encode(images), 0)
        if self.record.reads_own_token:
            tokens = self.quantiser.encode(embeddings).astype(np.int64)
        else:
            tokens = np.full(len(images), self.record.constant_token, dtype=np.int64)
        return ObservedFrame(embeddings, states, tokens)

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
