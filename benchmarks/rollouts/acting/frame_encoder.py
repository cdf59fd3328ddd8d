"""A checkpoint's own encoder and codebook: camera images in, embeddings and world tokens out."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, Int, Int32
from threadpoolctl import ThreadpoolController

from benchmarks.rollouts.config import RolloutConfig
from world_modality.encode.vision_encoders import VisionEncoder, load_encoder
from world_modality.precompute.embedding_pass import to_float16
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import load_quantiser
from world_modality.tokens.quantiser import Quantiser

if TYPE_CHECKING:
    import torch

    from world_modality.policy.checkpoint import Checkpoint


def single_thread() -> AbstractContextManager[Any]:
    """Return a context in which numpy, torch and faiss compute with one thread."""
    return _loaded_libraries().limit(limits=1)


@cache
def _loaded_libraries() -> ThreadpoolController:
    # Libraries that are loaded later would not be limited; finding them takes milliseconds.
    import faiss  # noqa: F401
    import torch  # noqa: F401

    return ThreadpoolController()


def filled_groups(count: int, size: int) -> Iterator[Int[np.ndarray, " size"]]:
    """Yield the positions 0…count-1 in groups of one size; the last is filled up with copies.

    Matrix products of different sizes may differ in the last bit, so that a result would depend on
    how many others are computed beside it.
    """
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


@dataclass(frozen=True)
class FrameEncoder:
    """Embeds frames as the cache holds them, whatever other frames are embedded beside them.

    Attributes:
        encoder: rebuilt from the checkpoint's manifest.
        quantiser: the checkpoint's codebook.
        group_size: frames that go through the encoder at a time.
    """

    encoder: VisionEncoder
    quantiser: Quantiser
    group_size: int

    @classmethod
    def of(
        cls, checkpoint: "Checkpoint", config: RolloutConfig, device: "torch.device"
    ) -> "FrameEncoder":
        """Rebuild a checkpoint's encoder and check that its codebook belongs to it.

        Raises:
            InvalidInputError: the vision model is not the checkpoint's, or the codebook is missing,
                of another encoder, or of other dimensions than encoder and policy.
        """
        arrays = {name: array.cpu().numpy() for name, array in checkpoint.cache_arrays.items()}
        encoder = load_encoder(
            checkpoint.manifest["encoder"],
            arrays,
            device,
            model_name=config.vision_model_name,
            trust_remote_code=config.trust_remote_code,
        )
        quantiser = load_quantiser(checkpoint.manifest["codebook"], arrays)
        _require_own_codebook(checkpoint, encoder, quantiser)
        return cls(
            encoder=encoder,
            quantiser=quantiser,
            group_size=config.policy_batch_size or (1 if device.type == "cpu" else 16),
        )

    def embed(self, images: Sequence[np.ndarray]) -> Float16[np.ndarray, "n D"]:
        """Embed uint8 [H, W, 3] images of one size, rounded as the cache rounds them.

        Raises:
            InvalidInputError: an embedding is not finite in float16.
        """
        rows = np.empty((len(images), self.encoder.embedding_dim), dtype=np.float16)
        # A vision transformer gains from more threads, even beside busy environments.
        with nullcontext() if self.encoder.uses_threads else single_thread():
            for chosen in filled_groups(len(images), self.group_size):
                block = np.stack([images[i] for i in chosen])
                rows[chosen] = to_float16(self.encoder.encode(block), int(chosen[0]))
        return rows

    def tokens(self, embeddings: Float16[np.ndarray, "n D"]) -> Int32[np.ndarray, " n"]:
        """Assign world tokens to embeddings that `embed` returned."""
        tokens = np.empty(len(embeddings), dtype=np.int32)
        with single_thread():
            for chosen in filled_groups(len(embeddings), self.group_size):
                tokens[chosen] = self.quantiser.encode(embeddings[chosen])
        return tokens


def _require_own_codebook(
    checkpoint: "Checkpoint", encoder: VisionEncoder, quantiser: Quantiser
) -> None:
    policy = checkpoint.policy_config.frame
    num_tokens, dim = quantiser.num_codes, quantiser.embedding_dim
    found = {"the encoder": encoder.embedding_dim, "the policy": policy.observation.embedding_dim}
    for part, expected in found.items():
        if dim != expected:
            raise InvalidInputError(
                f"the checkpoint's codebook has D={dim} but {part} has D={expected}: the codebook "
                f"is not that of the encoder {encoder.name}; train again on one cache"
            )
    if num_tokens != policy.world.num_world_tokens:
        raise InvalidInputError(
            f"the checkpoint's codebook has V={num_tokens} but its policy was built for "
            f"V={policy.world.num_world_tokens}; train again on one cache"
        )
    for name, array in quantiser.arrays.items():
        if _file_sha256(array) != checkpoint.manifest["arrays"].get(name, {}).get("sha256"):
            raise InvalidInputError(
                "the checkpoint's codebook is not the one that its manifest describes (the SHA-256 "
                f"of {name} differs): it may be of another encoder than {encoder.name}; train "
                "again on one cache"
            )


def _file_sha256(array: np.ndarray) -> str:
    """Return the SHA-256 of the .npy file that the array makes, as the manifest records it."""
    content = io.BytesIO()
    np.save(content, array)
    return hashlib.sha256(content.getvalue()).hexdigest()
