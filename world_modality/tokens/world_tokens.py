"""The world tokens of a frame: what is quantised of it, and in which order its tokens stand.

The state of the world may be one token of the frame, one of each view, or one of each cell of the
views' grids: each is quantised from a vector of its own, and all by one codebook. A quantiser of
several levels gives each of these vectors several tokens: W = vectors x levels, vector by vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.cache.frame_shapes import ObservationShape
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import load_quantiser
from world_modality.tokens.quantiser import Quantiser
from world_modality.tokens.world_slots import (
    FIRST_SLOTS,
    WorldSlots,
    num_slot_vectors,
    slot_vectors,
)


@dataclass(frozen=True)
class WorldTokeniser:
    """Frames' embeddings in, world tokens out.

    Attributes:
        quantiser: of all vectors alike.
        slots: which vectors of a frame have tokens.
        shape: of the cells that the cache keeps of a frame.
    """

    quantiser: Quantiser
    slots: WorldSlots
    shape: ObservationShape

    @property
    def num_slots(self) -> int:
        """W."""
        return num_slot_vectors(self.shape, self.slots) * self.quantiser.num_levels

    @property
    def num_codes(self) -> int:
        """V."""
        return self.quantiser.num_codes

    def encode(
        self,
        pooled: Float[np.ndarray, "B D"] | None,
        cells: Float[np.ndarray, "B P M"] | None = None,
    ) -> Int[np.ndarray, " B *W"]:
        """Return the int32 world tokens of frames: [B], or [B, W] for several a frame.

        Args:
            pooled: as the cache stores them (rounded to float16); only `frame` needs them.
            cells: likewise; only `view` and `cell` need them.
        """
        vectors = slot_vectors(pooled, cells, self.shape, self.slots)
        tokens = self.quantiser.encode(vectors.reshape(-1, vectors.shape[-1]))
        return tokens.reshape(len(vectors), *((self.num_slots,) if self.num_slots > 1 else ()))


def load_tokeniser(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> WorldTokeniser:
    """Rebuild what gave the frames of a cache their tokens, from its manifest or a checkpoint's.

    Args:
        manifest: with the sections `codebook`, `encoder` and, where cells are stored,
            `observation`.
        arrays: those of the cache or the checkpoint.

    Raises:
        InvalidInputError: as `load_quantiser`, or the kind of slots is unknown, or the number of
            tokens is not the manifest's.
    """
    codebook, section = manifest["codebook"], manifest.get("observation")
    slots = codebook.get("slots", FIRST_SLOTS)
    if slots not in ("frame", "view", "cell"):
        raise InvalidInputError(
            f"the codebook has tokens of {slots!r}; this release knows frame, view and cell"
        )
    if section is None:
        shape = ObservationShape(int(manifest["encoder"]["embedding_dim"]))
    else:
        num_views = len(section["image_keys"])
        shape = ObservationShape(section["embedding_dim"], num_views, section["grid_size"])
    tokeniser = WorldTokeniser(load_quantiser(codebook, arrays), slots, shape)
    recorded = codebook.get("num_slots", 1)
    if tokeniser.num_slots != recorded:
        raise InvalidInputError(
            f"the codebook gives {tokeniser.num_slots} tokens a frame, but its manifest says "
            f"{recorded}; precompute or train again"
        )
    return tokeniser
