"""k-means: the token is the nearest of V centroids, fitted by faiss, scikit-learn or in torch.

Everything works in one space: embeddings as the encoder gives them, or scaled to unit length under
`--l2_normalize` (k-means then runs on the unit vectors; the centroids are their means and stay as
they are, within the unit ball).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.quantiser import Quantiser, Rows
from world_modality.tokens.torch_kmeans import fit_in_torch, full_precision, nearest, split

if TYPE_CHECKING:
    import torch

    from world_modality.tokens.codebook import CodebookFlags

VqBackend = Literal["faiss", "sklearn", "torch"]
ASSIGNED_ROWS = 2_048
# What faiss and sklearn hold at once: float16 rows, float32 rows, and three copies of them.
FIT_BYTES_PER_NUMBER = 18
# Rows whose spread is added up at a time.
SPREAD_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class KMeansFlags:
    """Flags of every kind of quantiser that k-means fits."""

    l2_normalize: bool = False
    """Fit and assign in the space of unit-length embeddings."""
    vq_backend: VqBackend = "faiss"
    """Library of the k-means fit. torch runs on --device, starts with k-means++ on growing samples,
    reads in blocks what memory cannot hold, and assigns the tokens, too; else faiss does."""
    vq_iterations: int = 25
    """Lloyd iterations at most; for torch, on each of its samples."""


@dataclass(frozen=True)
class FittedCentroids:
    """What a fit found.

    Attributes:
        centroids: float32, in the space of the rows.
        inertia: mean squared distance of the rows to their nearest centroid.
        device: torch computes there; None where faiss does, on the CPU.
    """

    centroids: Float[np.ndarray, "V D"] = field(repr=False)
    inertia: float
    device: "torch.device | None" = None

    def assign(self, vectors: Float[np.ndarray, "N D"]) -> Int[np.ndarray, " N"]:
        """Return the nearest centroid of each row."""
        return assign_world_tokens(vectors, self.centroids, self.device)


class PreparedRows:
    """Rows in the space of the centroids, checked as they are read."""

    def __init__(self, rows: Rows, *, normalize: bool) -> None:
        self.rows, self.normalize = rows, normalize

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        vectors = in_codebook_space(self.rows[indices], normalize=self.normalize)
        _require_finite(vectors, "embedding", indices)
        return vectors


def in_codebook_space(
    embeddings: Float[np.ndarray, "N D"], *, normalize: bool
) -> Float[np.ndarray, "N D"]:
    """Bring stored embeddings into the space of the centroids; a zero vector stays zero."""
    vectors = np.asarray(embeddings, dtype=np.float32)
    if not normalize:
        return vectors
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(norms > 0, norms, 1)
    return scaled


def row_dim(rows: Rows) -> int:
    """Return D."""
    return int(rows[np.arange(1)].shape[1])


def spread_of(rows: Rows) -> float:
    """Return the mean squared distance of rows to their mean; they are read in blocks.

    Blocks are merged as by Chan, Golub and LeVeque (1979, eq. 2.1), since far from the origin the
    difference of two large sums would be rounding.
    """
    count, squares = 0, 0.0
    mean = np.zeros(row_dim(rows))
    for start in range(0, len(rows), SPREAD_ROWS):
        block = rows[np.arange(start, min(start + SPREAD_ROWS, len(rows)))].astype(np.float64)
        shift = block.mean(axis=0) - mean
        merged = count + len(block)
        squares += float(np.square(block - block.mean(axis=0)).sum())
        squares += float(np.square(shift).sum()) * count * len(block) / merged
        mean += shift * (len(block) / merged)
        count = merged
    return squares / count


def explained_variance(rows: Rows, inertia: float) -> float | None:
    """Return which share of the rows' spread is not quantisation error; None where none varies."""
    spread = spread_of(rows)
    return 1 - inertia / spread if spread > 0 else None


def require_fit(flags: "CodebookFlags", num_vectors: int) -> None:
    """Refuse settings of k-means that cannot be fitted to so many vectors of training frames.

    Raises:
        InvalidInputError: no iteration, or more centroids than vectors.
    """
    if flags.vq_iterations < 1:
        raise InvalidInputError("--vq_iterations must be at least 1")
    if flags.vq_num_tokens > num_vectors:
        what = "training frames" if flags.world_slots == "frame" else "vectors of training frames"
        raise InvalidInputError(
            f"--vq_num_tokens {flags.vq_num_tokens} is more than the {num_vectors} {what} that the "
            f"codebook is fitted on; lower it (--vq_fit_frames is {flags.vq_fit_frames})"
        )


def fit_centroids(
    rows: Rows, num_tokens: int, flags: KMeansFlags, seed: int, device: str
) -> FittedCentroids:
    """Fit V centroids (Lloyd, 1982), minimising the mean squared L2 distance.

    The same arguments give the same centroids. A cluster that runs empty takes over part of a
    large one; where there are fewer distinct rows than V some centroids stay without rows.

    Args:
        rows: float32, in the space of the centroids; only `torch` never holds them all.
        num_tokens: V.
        flags: `faiss` and `sklearn` begin with random rows (sklearn: k-means++) and iterate over
            all rows; for `torch` see `torch_kmeans`.
        seed: of what is drawn.
        device: where `torch` computes, as `--device` has it.

    Raises:
        InvalidInputError: a memory that is too small.
    """
    if flags.vq_backend == "torch":
        from world_modality.system.device import resolve_device

        on = resolve_device(device)
        centroids, inertia = fit_in_torch(
            rows, num_tokens, device=on, seed=seed, num_rounds=flags.vq_iterations
        )
        return FittedCentroids(centroids, inertia, on)
    _require_memory(rows, flags.vq_backend)
    vectors = np.ascontiguousarray(rows[np.arange(len(rows))])
    # Distances do not change under translation, but float32 loses less of them near the origin.
    center = vectors.mean(axis=0)
    vectors -= center
    fit = _fit_faiss if flags.vq_backend == "faiss" else _fit_sklearn
    centroids = fit(vectors, num_tokens, seed, flags.vq_iterations)
    tokens = assign_world_tokens(vectors, centroids)
    inertia = float(np.mean(((vectors - centroids[tokens]) ** 2).sum(axis=1), dtype=np.float64))
    return FittedCentroids((centroids + center).astype(np.float32), inertia)


def _require_memory(rows: Rows, backend: str) -> None:
    num_rows, dim = len(rows), row_dim(rows)
    needed = num_rows * dim * FIT_BYTES_PER_NUMBER
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise InvalidInputError(
            f"--vq_backend {backend} holds all frames it is fitted on: {num_rows} frames of {dim} "
            f"numbers need {needed / 1e9:.0f} GB, this machine has {memory / 1e9:.0f} GB; lower "
            "--vq_fit_frames (0 is all), or give --vq_backend torch, which reads them in blocks; "
            "the embeddings are kept"
        )


def _fit_faiss(vectors: np.ndarray, num_tokens: int, seed: int, num_iterations: int) -> np.ndarray:
    import faiss

    kmeans = faiss.Kmeans(
        vectors.shape[1],
        num_tokens,
        niter=num_iterations,
        seed=seed,
        # The caller's sample is taken whole; faiss would silently draw a smaller one.
        max_points_per_centroid=len(vectors),
        min_points_per_centroid=1,
    )
    kmeans.train(vectors)
    return np.asarray(kmeans.centroids, dtype=np.float32).reshape(num_tokens, -1)


def _fit_sklearn(
    vectors: np.ndarray, num_tokens: int, seed: int, num_iterations: int
) -> np.ndarray:
    from sklearn.cluster import KMeans as SklearnKMeans

    kmeans = SklearnKMeans(num_tokens, n_init=1, max_iter=num_iterations, random_state=seed)
    return np.asarray(kmeans.fit(vectors).cluster_centers_, dtype=np.float32)


def assign_world_tokens(
    embeddings: Float[np.ndarray, "N D"],
    centroids: Float[np.ndarray, "V D"],
    device: "torch.device | None" = None,
) -> Int[np.ndarray, " N"]:
    """Map each frame embedding to its nearest centroid.

    Squared L2 distance, as in VQ-VAE (van den Oord et al., 2017, eq. 1); ties go to the lowest
    index.

    Args:
        embeddings: float32, in the space of the centroids.
        centroids: float32, all finite.
        device: torch computes there; by default faiss does, on the CPU. They agree but where the
            two nearest centroids are as near as float32 can tell.

    Raises:
        InvalidInputError: D differs between the arrays, or a number is not finite.
    """
    if embeddings.shape[1] != centroids.shape[1]:
        raise InvalidInputError(
            f"embeddings have D={embeddings.shape[1]} but the codebook has D={centroids.shape[1]}"
        )
    _require_finite(centroids, "centroid")
    center = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
    table = np.ascontiguousarray(centroids - center)
    if device is not None:
        import torch

        _require_finite(embeddings, "embedding")
        rows = torch.from_numpy(embeddings - center).to(device)
        near = torch.from_numpy(table).to(device)
        with full_precision():
            found = [tokens for _, tokens, _ in nearest(split(rows, len(near)), near)]
        return torch.cat(found).to(torch.int32).cpu().numpy()
    import faiss

    index = faiss.IndexFlatL2(table.shape[1])
    index.add(table)
    tokens = np.empty(len(embeddings), dtype=np.int32)
    for start in range(0, len(embeddings), ASSIGNED_ROWS):
        block = np.asarray(embeddings[start : start + ASSIGNED_ROWS], dtype=np.float32)
        _require_finite(block, "embedding", range(start, start + len(block)))
        _, closest = index.search(np.ascontiguousarray(block - center), 1)
        tokens[start : start + len(block)] = closest[:, 0]
    return tokens


def _require_finite(
    vectors: np.ndarray, what: str, numbers: np.ndarray | range | None = None
) -> None:
    """Check some of the rows, which are numbered from 0 unless `numbers` says otherwise."""
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        number = first if numbers is None else int(numbers[first])
        raise InvalidInputError(f"{bad.sum()} {what}s are not finite, the first is number {number}")


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
