"""A policy's own encoder and codebook: camera images in, embeddings and world tokens out."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float16, Int, Int32
from threadpoolctl import ThreadpoolController

from world_modality.cache.contract import sha256_of_array
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.encode.observation_encoder import (
    ObservationEmbeddings,
    ObservationEncoder,
    load_observation_encoder,
)
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.world_slots import FIRST_SLOTS
from world_modality.tokens.world_tokens import WorldTokeniser, load_tokeniser

if TYPE_CHECKING:
    import torch

    from world_modality.policy.checkpoint import Checkpoint


def threads_of(group_size: int | None) -> AbstractContextManager[Any]:
    """Return a context in which numpy, torch and faiss compute groups of such a size.

    Small groups gain nothing from a second thread; where there are no groups, the libraries choose.
    """
    return nullcontext() if group_size is None else _loaded_libraries().limit(limits=1)


@cache
def _loaded_libraries() -> ThreadpoolController:
    # Libraries that are loaded later would not be limited; finding them takes milliseconds.
    import faiss  # noqa: F401
    import torch  # noqa: F401

    return ThreadpoolController()


def filled_groups(count: int, group_size: int | None) -> Iterator[Int[np.ndarray, " size"]]:
    """Yield the positions 0…count-1 in groups of one size; the last is filled up with copies.

    Matrix products of different sizes may differ in the last bit, so that a result would depend on
    how many others are computed beside it. None makes one group of all.
    """
    size = group_size or count
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


@dataclass(frozen=True)
class FrameEncoder:
    """Embeds frames as the cache holds them, whatever other frames are embedded beside them.

    Attributes:
        encoder: of all views, rebuilt from the manifest's record of it.
        tokeniser: the policy's codebook, and what of a frame it quantises.
        group_size: frames that go through the encoder at a time; None takes all at once, whose
            number may then move an embedding by a float16 step.
    """

    encoder: ObservationEncoder
    tokeniser: WorldTokeniser
    group_size: int | None = None

    @classmethod
    def of(
        cls,
        checkpoint: "Checkpoint",
        device: "torch.device",
        *,
        group_size: int | None = None,
        vision_model_name: str | None = None,
        trust_remote_code: bool = False,
    ) -> "FrameEncoder":
        """Rebuild a checkpoint's encoder and check that its codebook belongs to it.

        Args:
            checkpoint: of the policy.
            device: where the encoder runs.
            group_size: as the attribute.
            vision_model_name: the vision model's folder or hub name where it has moved since.
            trust_remote_code: run code that the vision model's repository brings along.

        Raises:
            InvalidInputError: the vision model is not the checkpoint's, or the codebook is missing,
                of another encoder, or of other dimensions than encoder and policy.
        """
        arrays = {name: array.cpu().numpy() for name, array in checkpoint.cache_arrays.items()}
        encoder = load_observation_encoder(
            checkpoint.manifest,
            arrays,
            device,
            model_name=vision_model_name,
            trust_remote_code=trust_remote_code,
        )
        tokeniser = load_tokeniser(checkpoint.manifest, arrays)
        _require_own_codebook(checkpoint, encoder, tokeniser)
        return cls(encoder, tokeniser, group_size)

    def embed(self, views: Sequence[Sequence[np.ndarray]]) -> ObservationEmbeddings:
        """Embed frames as the cache holds them, rounded to float16.

        Args:
            views: for each view, the uint8 [H, W, 3] images of all frames, which have one size.

        Raises:
            InvalidInputError: an embedding is not finite in float16.
        """
        num_frames, shape = len(views[0]), self.encoder.shape
        pooled = np.empty((num_frames, self.encoder.encoder.embedding_dim), dtype=np.float16)
        of_frame = (shape.num_vectors, shape.embedding_dim)
        stores_cells = self.encoder.stores_cells
        cells = np.empty((num_frames, *of_frame), dtype=np.float16) if stores_cells else None
        # A vision transformer gains from more threads, even beside busy environments.
        with nullcontext() if self.encoder.encoder.uses_threads else threads_of(self.group_size):
            for chosen in filled_groups(num_frames, self.group_size):
                blocks = [np.stack([images[i] for i in chosen]) for images in views]
                embedded = self.encoder.encode(blocks).rounded(int(chosen[0]))
                pooled[chosen] = embedded.pooled
                if cells is not None and embedded.cells is not None:
                    cells[chosen] = embedded.cells
        return ObservationEmbeddings(pooled, cells)

    def read(self, embeddings: ObservationEmbeddings) -> Float16[np.ndarray, "n *P M"]:
        """Return what the policy reads of frames that `embed` embedded."""
        return embeddings.read(self.encoder.shape)

    def tokens(self, embeddings: ObservationEmbeddings) -> Int32[np.ndarray, " n *W"]:
        """Assign world tokens to frames that `embed` embedded."""
        pooled, cells = embeddings.pooled, embeddings.cells
        world_axis = () if self.tokeniser.num_slots == 1 else (self.tokeniser.num_slots,)
        tokens = np.empty((len(pooled), *world_axis), dtype=np.int32)
        with threads_of(self.group_size):
            for chosen in filled_groups(len(pooled), self.group_size):
                own = None if cells is None else cells[chosen]
                tokens[chosen] = self.tokeniser.encode(pooled[chosen], own)
        return tokens


def _require_own_codebook(
    checkpoint: "Checkpoint", encoder: ObservationEncoder, tokeniser: WorldTokeniser
) -> None:
    policy, quantiser = checkpoint.policy_config.frame, tokeniser.quantiser
    name, dim = encoder.encoder.name, quantiser.embedding_dim
    of_frame = tokeniser.slots == FIRST_SLOTS
    own_dim = encoder.encoder.embedding_dim if of_frame else encoder.shape.embedding_dim
    found = {"the encoder": own_dim}
    if encoder.shape.embedding_dim == own_dim:
        found["the policy"] = policy.observation.embedding_dim
    for part, expected in found.items():
        if dim != expected:
            raise InvalidInputError(
                f"the checkpoint's codebook has D={dim} but {part} has D={expected}: the codebook "
                f"is not that of the encoder {name}; train again on one cache"
            )
    if policy.observation != encoder.shape:
        raise InvalidInputError(
            f"the checkpoint's policy was built for {_in_words(policy.observation)}, but its "
            f"manifest describes {_in_words(encoder.shape)}; train again on one cache"
        )
    counts = {
        "V": (tokeniser.num_codes, policy.world.num_world_tokens),
        "W": (tokeniser.num_slots, policy.world.num_world_slots),
    }
    for axis, (own, expected) in counts.items():
        if own != expected:
            raise InvalidInputError(
                f"the checkpoint's codebook has {axis}={own} but its policy was built for "
                f"{axis}={expected}; train again on one cache"
            )
    for array_name, array in quantiser.arrays.items():
        recorded = checkpoint.manifest["arrays"].get(array_name, {}).get("sha256")
        if sha256_of_array(array) != recorded:
            raise InvalidInputError(
                "the checkpoint's codebook is not the one that its manifest describes (the SHA-256 "
                f"of {array_name} differs): it may be of another encoder than {name}; train "
                "again on one cache"
            )


def _in_words(shape: ObservationShape) -> str:
    return (
        f"{shape.num_views} views of {shape.grid_size}x{shape.grid_size} vectors of dimension "
        f"{shape.embedding_dim}"
    )
