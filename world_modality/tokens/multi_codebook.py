"""Quantisers of several codebooks, whose tokens together say of a vector what one says coarsely.

With L levels of V centroids a vector has L tokens, each in [0, V), and is read back from them with
V^L different values: residual quantisation (Juang and Gray, 1982) as the sum of a centroid of each
level, product quantisation (Jegou, Douze and Schmid, 2011) with a centroid for each part of the
vector. Each level is fitted by k-means, in the way that `--vq_backend` says; the first level of a
residual quantiser is the codebook that k-means alone would fit.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float, Int

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.kmeans import (
    FittedCentroids,
    KMeans,
    PreparedRows,
    assign_world_tokens,
    explained_variance,
    fit_centroids,
    in_codebook_space,
    require_fit,
    row_dim,
)
from world_modality.tokens.quantiser import Quantiser, Rows

if TYPE_CHECKING:
    import torch

    from world_modality.tokens.codebook import CodebookFlags

QuantiserT = TypeVar("QuantiserT", bound="MultiCodebook")


@dataclass(frozen=True)
class MultiCodebook(Quantiser):
    """What residual and product quantisation share.

    Attributes:
        centroids: float32 codebooks, one a level, in the space that assignment uses.
        l2_normalize: whether that is the space of unit-length embeddings.
        inertia: mean squared distance of the fitted embeddings to what is read back from their
            tokens; after a fit.
        explained_variance: see `Quantiser`.
        device: torch computes there; None where faiss does, on the CPU.
    """

    default_levels: ClassVar[int]

    centroids: Float[np.ndarray, "levels V width"] = field(repr=False)
    l2_normalize: bool
    inertia: float | None = None
    explained_variance: float | None = None
    device: "torch.device | None" = None

    @classmethod
    def levels(cls, flags: "CodebookFlags") -> int:
        """Return how many levels the flags ask for."""
        return cls.default_levels if flags.vq_levels is None else flags.vq_levels

    @classmethod
    def settings(cls, flags: "CodebookFlags") -> dict[str, Any]:
        """Return what the manifest's `codebook` says of this kind alone."""
        return {"levels": cls.levels(flags), **KMeans.settings(flags)}

    @classmethod
    def check(cls, flags: "CodebookFlags", num_vectors: int) -> None:
        """Refuse settings that cannot be fitted to so many vectors."""
        super().check(flags, num_vectors)
        if cls.levels(flags) < 2:
            raise InvalidInputError(
                f"--vq_levels must be at least 2, not {flags.vq_levels}; one level is "
                "--vq_kind kmeans"
            )
        require_fit(flags, num_vectors)

    @classmethod
    def fit(
        cls: type[QuantiserT], flags: "CodebookFlags", rows: Rows, device: str = "auto"
    ) -> QuantiserT:
        """Fit each level in turn, with the same settings; see `fit_centroids`.

        Raises:
            InvalidInputError: more tokens than embeddings, an embedding that is not finite, a
                dimension that cannot be divided into the parts, or a memory that is too small.
        """
        cls.check(flags, len(rows))
        prepared = PreparedRows(rows, normalize=flags.l2_normalize)
        fit = partial(
            fit_centroids,
            num_tokens=flags.vq_num_tokens,
            flags=flags,
            seed=flags.seed,
            device=device,
        )
        found = list(cls._fit_levels(prepared, cls.levels(flags), fit))
        inertia = cls._total_inertia([level.inertia for level in found])
        return cls(
            np.stack([level.centroids for level in found]),
            flags.l2_normalize,
            inertia,
            explained_variance(prepared, inertia),
            found[0].device,
        )

    @classmethod
    @abstractmethod
    def _fit_levels(
        cls, rows: Rows, num_levels: int, fit: "partial[FittedCentroids]"
    ) -> Iterator[FittedCentroids]:
        """Fit one level after the other; `fit` takes rows."""

    @staticmethod
    @abstractmethod
    def _total_inertia(of_levels: list[float]) -> float:
        """Return the squared error of all levels together."""

    @classmethod
    def load(
        cls: type[QuantiserT], record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> QuantiserT:
        """Rebuild it from the manifest's `codebook` and the cache's array."""
        return cls(arrays[cls.array_names[0]], bool(record["l2_normalize"]))

    @property
    def num_codes(self) -> int:
        """V, of each level."""
        return int(self.centroids.shape[1])

    @property
    def num_levels(self) -> int:
        """How many tokens a vector has."""
        return len(self.centroids)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache stores of it, by cache array name."""
        return {self.array_names[0]: self.centroids}

    @property
    def fit_record(self) -> dict[str, Any]:
        """What the manifest says of the fit."""
        return {"inertia": self.inertia, "explained_variance": self.explained_variance}

    def encode(self, embeddings: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "N levels"]:
        """Return the int32 world tokens of stored embeddings, level by level."""
        return self._encode(in_codebook_space(embeddings, normalize=self.l2_normalize))

    @abstractmethod
    def _encode(self, vectors: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "N levels"]: ...


class _Residuals:
    """What the levels before leave of the rows; computed as it is read."""

    def __init__(self, rows: Rows, level: FittedCentroids) -> None:
        self.rows, self.level = rows, level

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        vectors = self.rows[indices]
        left: np.ndarray = vectors - self.level.centroids[self.level.assign(vectors)]
        return left


@dataclass(frozen=True)
class ResidualQuantiser(MultiCodebook):
    """Each level quantises what the levels before it have left; the tokens run coarse to fine.

    Greedy: a vector takes the nearest centroid of each level in turn (no beam search).
    """

    array_names: ClassVar[tuple[str, ...]] = ("residual_centroids",)
    default_levels: ClassVar[int] = 2

    @classmethod
    def _fit_levels(
        cls, rows: Rows, num_levels: int, fit: "partial[FittedCentroids]"
    ) -> Iterator[FittedCentroids]:
        for _ in range(num_levels):
            level: FittedCentroids = fit(rows)
            yield level
            rows = _Residuals(rows, level)

    @staticmethod
    def _total_inertia(of_levels: list[float]) -> float:
        return of_levels[-1]

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.centroids.shape[2])

    def _encode(self, vectors: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "N levels"]:
        tokens = np.empty((len(vectors), self.num_levels), dtype=np.int32)
        for level, centroids in enumerate(self.centroids):
            tokens[:, level] = assign_world_tokens(vectors, centroids, self.device)
            vectors = vectors - centroids[tokens[:, level]]
        return tokens


class _Part:
    """Some columns of the rows."""

    def __init__(self, rows: Rows, columns: slice) -> None:
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B width"]:
        return np.ascontiguousarray(self.rows[indices][:, self.columns])


@dataclass(frozen=True)
class ProductQuantiser(MultiCodebook):
    """Each level quantises its own part of the vector: D / L numbers after one another."""

    array_names: ClassVar[tuple[str, ...]] = ("product_centroids",)
    default_levels: ClassVar[int] = 4

    @classmethod
    def _fit_levels(
        cls, rows: Rows, num_levels: int, fit: "partial[FittedCentroids]"
    ) -> Iterator[FittedCentroids]:
        dim = row_dim(rows)
        if dim % num_levels:
            divisors = [n for n in range(2, dim + 1) if dim % n == 0]
            raise InvalidInputError(
                f"--vq_levels {num_levels} does not divide the D={dim} numbers of a vector into "
                f"parts of one size; {', '.join(map(str, divisors[:12]))} do"
            )
        width = dim // num_levels
        for start in range(0, dim, width):
            yield fit(_Part(rows, slice(start, start + width)))

    @staticmethod
    def _total_inertia(of_levels: list[float]) -> float:
        return sum(of_levels)

    @property
    def embedding_dim(self) -> int:
        """D."""
        return int(self.centroids.shape[0] * self.centroids.shape[2])

    def _encode(self, vectors: Float[np.ndarray, "N D"]) -> Int[np.ndarray, "N levels"]:
        parts = np.split(vectors, self.num_levels, axis=1)
        found = [
            assign_world_tokens(np.ascontiguousarray(part), centroids, self.device)
            for part, centroids in zip(parts, self.centroids, strict=True)
        ]
        return np.stack(found, axis=1)
