"""k-means: the token is the nearest of V centroids."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from world_modality.tokens.centroids import (
    PreparedRows,
    assign_world_tokens,
    explained_variance,
    fit_centroids,
    in_codebook_space,
    require_fit,
)
from world_modality.tokens.quantiser import Quantiser, Rows

if TYPE_CHECKING:
    import torch

    from world_modality.tokens.codebook import CodebookFlags


@dataclass(frozen=True)
class KMeans(Quantiser):
    """The token of an embedding is its nearest centroid.

    Attributes:
        centroids: float32, one per token, in the space that assignment uses.
        l2_normalize: whether that is the space of unit-length embeddings.
        inertia: mean squared distance of the fitted embeddings to their centroid; after a fit.
        explained_variance: see `Quantiser`.
        device: torch computes there; None where faiss does, on the CPU.
    """

    array_names: ClassVar[tuple[str, ...]] = ("codebook_centroids",)

    centroids: Float[np.ndarray, "V D"] = field(repr=False)
    l2_normalize: bool
    inertia: float | None = None
    explained_variance: float | None = None
    device: "torch.device | None" = None

    @classmethod
    def settings(cls, flags: "CodebookFlags") -> dict[str, Any]:
        """Return what the manifest's `codebook` says of k-means alone."""
        return {
            "l2_normalize": flags.l2_normalize,
            "backend": flags.vq_backend,
            "iterations": flags.vq_iterations,
        }

    @classmethod
    def check(cls, flags: "CodebookFlags", num_vectors: int) -> None:
        """Refuse settings that cannot be fitted to so many vectors."""
        super().check(flags, num_vectors)
        require_fit(flags, num_vectors)

    @classmethod
    def fit(cls, flags: "CodebookFlags", rows: Rows, device: str = "auto") -> "KMeans":
        """Fit V centroids; see `fit_centroids`.

        Raises:
            InvalidInputError: more tokens than embeddings, an embedding that is not finite, or a
                memory that is too small.
        """
        cls.check(flags, len(rows))
        prepared = PreparedRows(rows, normalize=flags.l2_normalize)
        found = fit_centroids(prepared, flags.vq_num_tokens, flags, flags.seed, device)
        explained = explained_variance(prepared, found.inertia)
        return cls(found.centroids, flags.l2_normalize, found.inertia, explained, found.device)

    @classmethod
    def load(cls, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "KMeans":
        """Rebuild it from the manifest's `codebook` and the cache's array."""
        return cls(arrays["codebook_centroids"], bool(record["l2_normalize"]))

    @property
    def num_codes(self) -> int:
        """V."""
        return len(self.centroids)

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.centroids.shape[1])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache stores of it, by cache array name."""
        return {"codebook_centroids": self.centroids}

    @property
    def fit_record(self) -> dict[str, Any]:
        """What the manifest says of the fit."""
        return {"inertia": self.inertia}

    def encode(self, embeddings: Float[np.ndarray, "N D"]) -> Int[np.ndarray, " N"]:
        """Return the int32 world tokens of stored embeddings."""
        vectors = in_codebook_space(embeddings, normalize=self.l2_normalize)
        return assign_world_tokens(vectors, self.centroids, self.device)
