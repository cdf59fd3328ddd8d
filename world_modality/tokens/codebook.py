"""The codebook of a cache: its flags, and the table of quantisers that it can be made by.

A kind is a class that fulfils `Quantiser`, in a module of its own, and its row in `QUANTISERS`;
flags of its own are a dataclass beside it that `CodebookFlags` inherits.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from world_modality.system.errors import InvalidInputError, missing_key
from world_modality.tokens.kmeans import KMeans, KMeansFlags
from world_modality.tokens.multi_codebook import ProductQuantiser, ResidualQuantiser
from world_modality.tokens.quantiser import Quantiser
from world_modality.tokens.world_slots import FIRST_SLOTS, WorldSlots

# What made a codebook whose record names no kind.
FIRST_KIND = "kmeans"
QUANTISERS: dict[str, type[Quantiser]] = {
    FIRST_KIND: KMeans,
    "residual": ResidualQuantiser,
    "product": ProductQuantiser,
}


@dataclass(frozen=True, kw_only=True)
class CodebookFlags(KMeansFlags):
    """Flags of the codebook."""

    vq_kind: str = FIRST_KIND
    """Kind of the quantiser: kmeans gives each vector one token; residual gives it one token for
    each level, where a level quantises what the levels before it left; product gives it one token
    for each of several parts."""
    vq_levels: int | None = None
    """Levels of residual (2 unless it is given), or parts of product (4)."""
    vq_num_tokens: int = 1024
    """Size V of the codebook; residual and product have one of this size for each level."""
    world_slots: WorldSlots = FIRST_SLOTS
    """What has world tokens of its own: frame is the pooled embedding of the first view; view is
    each view, by the mean of its cells; cell is each cell of each view. All share one codebook."""
    vq_fit_frames: int = 65_536
    """Largest number of training frames that are sampled to fit the codebook, and fewer frames
    where each has several vectors, so that there are no more vectors; 0 takes all."""
    seed: int = 0
    """Seed of the sample and of the fit."""

    @property
    def quantiser(self) -> type[Quantiser]:
        """The kind asked for.

        Raises:
            MissingKeyError: there is no such kind.
            InvalidInputError: it has no levels, and a number of them is given.
        """
        if self.vq_kind not in QUANTISERS:
            raise missing_key("--vq_kind", self.vq_kind, QUANTISERS, "this release")
        if self.vq_levels is not None and self.vq_kind == FIRST_KIND:
            raise InvalidInputError(
                f"--vq_levels {self.vq_levels} has no effect on --vq_kind {FIRST_KIND}, which has "
                "one level; give --vq_kind residual or product"
            )
        return QUANTISERS[self.vq_kind]

    @property
    def max_fit_frames(self) -> int:
        """How many training frames the codebook is fitted on, where there are so many.

        Raises:
            InvalidInputError: the number is negative.
        """
        if self.vq_fit_frames < 0:
            raise InvalidInputError(
                f"--vq_fit_frames {self.vq_fit_frames} is negative; give how many training frames "
                "the codebook is fitted on, or 0 for all"
            )
        return self.vq_fit_frames or sys.maxsize

    @property
    def codebook_settings(self) -> dict[str, Any]:
        """All settings of the codebook, as the manifest has them.

        k-means is named by no kind, and tokens of whole frames by no slots.
        """
        return {
            **({} if self.vq_kind == FIRST_KIND else {"kind": self.vq_kind}),
            **({} if self.world_slots == FIRST_SLOTS else {"slots": self.world_slots}),
            "num_tokens": self.vq_num_tokens,
            **self.quantiser.settings(self),
            "fit_frames": self.vq_fit_frames,
            "seed": self.seed,
        }


def load_quantiser(record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Quantiser:
    """Rebuild the quantiser of a cache or a checkpoint.

    Args:
        record: the manifest's `codebook` section.
        arrays: those of the cache or the checkpoint.

    Raises:
        InvalidInputError: the kind is unknown, or one of its arrays is not there.
    """
    kind = record.get("kind", FIRST_KIND)
    if kind not in QUANTISERS:
        raise InvalidInputError(
            f"the codebook is of the kind {kind!r}; this release knows {', '.join(QUANTISERS)}"
        )
    missing = [name for name in QUANTISERS[kind].array_names if name not in arrays]
    if missing:
        raise InvalidInputError(
            f"the cache or checkpoint holds no {', '.join(missing)}, which its codebook is made "
            "of; precompute or train again"
        )
    return QUANTISERS[kind].load(record, arrays)
