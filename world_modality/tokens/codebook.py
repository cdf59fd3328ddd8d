"""The codebook: k-means centroids over frame embeddings, and the world tokens they assign.

Everything here works in one space: embeddings as the encoder gives them, or scaled to unit length
under `--l2_normalize` (k-means then runs on the unit vectors; the centroids are their means and
stay as they are, within the unit ball).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Int

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.kmeans import Rows, fit_kmeans, nearest_centroids

if TYPE_CHECKING:
    import torch

VqBackend = Literal["faiss", "sklearn", "torch"]
BLOCK_ROWS = 2_048


@dataclass(frozen=True)
class Codebook:
    """A fitted codebook.

    Attributes:
        centroids: float32, one per token.
        inertia: mean squared distance of the fitted embeddings to their centroid.
        num_fit_frames: how many embeddings it was fitted on.
    """

    centroids: Float[np.ndarray, "V D"]
    inertia: float
    num_fit_frames: int


def l2_normalize(embeddings: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Scale each embedding to unit length, in float32; a zero vector stays zero."""
    vectors = np.asarray(embeddings, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: np.ndarray = vectors / np.where(norms > 0, norms, 1)
    return scaled


def in_codebook_space(
    embeddings: Float[np.ndarray, "N D"], *, normalize: bool
) -> Float[np.ndarray, "N D"]:
    """Bring stored embeddings into the space of the centroids, as float32.

    Args:
        embeddings: rows of `train_embeddings.fp16.npy`, or an encoder's output in float16.
        normalize: the manifest's `codebook.l2_normalize`.
    """
    return l2_normalize(embeddings) if normalize else np.asarray(embeddings, dtype=np.float32)


def fit_codebook(
    embeddings: Rows,
    num_tokens: int,
    *,
    backend: VqBackend = "faiss",
    seed: int = 0,
    num_iterations: int = 25,
    device: "torch.device | None" = None,
) -> Codebook:
    """Fit V centroids by k-means (Lloyd, 1982), minimising the mean squared L2 distance.

    The same arguments give the same centroids. A cluster that runs empty takes over part of a large
    one; where there are fewer distinct embeddings than V some codes stay unused.

    Args:
        embeddings: float32 [N, D] array of training frames, in the codebook's space, or rows that
            are read where they are needed; only `torch` never holds them all.
        num_tokens: V.
        backend: `faiss` or `sklearn`: random rows (sklearn: k-means++), then Lloyd iterations over
            all embeddings; `torch`: see `world_modality.tokens.kmeans`.
        seed: of the initial centroids.
        num_iterations: at most this many Lloyd iterations (`torch`: on each of its samples).
        device: computes with `torch`; the CPU by default.

    Raises:
        InvalidInputError: more tokens than embeddings, or an embedding that is not finite.
    """
    if num_tokens < 1 or num_iterations < 1:
        raise InvalidInputError("--vq_num_tokens and --vq_iterations must be at least 1")
    if num_tokens > len(embeddings):
        raise InvalidInputError(
            f"--vq_num_tokens {num_tokens} is more than the {len(embeddings)} training frames the "
            "codebook is fitted on; lower it (or raise --vq_fit_frames)"
        )
    if backend == "torch":
        return _fit_torch(embeddings, num_tokens, device, seed, num_iterations)
    # Indexing copies, so that the caller's array stays as it is.
    vectors = np.ascontiguousarray(embeddings[np.arange(len(embeddings))], dtype=np.float32)
    _require_finite(vectors, "embedding")
    # Distances do not change under translation, but float32 loses less of them near the origin.
    center = vectors.mean(axis=0)
    vectors -= center
    fit = _fit_faiss if backend == "faiss" else _fit_sklearn
    centroids = fit(vectors, num_tokens, seed, num_iterations)
    tokens = assign_world_tokens(vectors, centroids)
    inertia = float(np.mean(((vectors - centroids[tokens]) ** 2).sum(axis=1), dtype=np.float64))
    return Codebook((centroids + center).astype(np.float32), inertia, len(vectors))


class _FiniteRows:
    """Rows that are checked as they are read."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        vectors = np.asarray(self.rows[indices], dtype=np.float32)
        _require_finite(vectors, "embedding", indices)
        return vectors


def _fit_torch(
    embeddings: Rows, num_tokens: int, device: "torch.device | None", seed: int, num_rounds: int
) -> Codebook:
    import torch

    centroids, inertia = fit_kmeans(
        _FiniteRows(embeddings),
        num_tokens,
        device=device or torch.device("cpu"),
        seed=seed,
        num_rounds=num_rounds,
    )
    return Codebook(centroids, inertia, len(embeddings))


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
    from sklearn.cluster import KMeans

    kmeans = KMeans(num_tokens, n_init=1, max_iter=num_iterations, random_state=seed)
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
        embeddings: float32, in the space the codebook was fitted in (see `in_codebook_space`).
        centroids: float32 codebook written by `precompute_world_tokens`.
        device: torch computes there; by default faiss does, on the CPU. They agree but where the
            two nearest centroids are as near as float32 can tell.

    Returns:
        int32 world tokens in [0, V).

    Raises:
        InvalidInputError: D differs between the arrays, or a number is not finite.
    """
    if embeddings.shape[1] != centroids.shape[1]:
        raise InvalidInputError(
            f"embeddings have D={embeddings.shape[1]} but the codebook has D={centroids.shape[1]}"
        )
    _require_finite(centroids, "centroid")
    if device is not None:
        _require_finite(embeddings, "embedding")
        return nearest_centroids(embeddings, centroids, device)
    import faiss

    center = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids - center))
    tokens = np.empty(len(embeddings), dtype=np.int32)
    for start in range(0, len(embeddings), BLOCK_ROWS):
        block = np.asarray(embeddings[start : start + BLOCK_ROWS], dtype=np.float32)
        _require_finite(block, "embedding", range(start, start + len(block)))
        tokens[start : start + len(block)] = index.search(np.ascontiguousarray(block - center), 1)[
            1
        ][:, 0]
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


def rounding_to_spread(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Return float16's rounding error over the embeddings' spread, both as root mean squares.

    The error of rounding to a grid of spacing u is u / sqrt(12); the spread is the distance to the
    mean. Near 1 the stored embeddings are mostly rounding; below 0.01 rounding does not matter.

    Args:
        embeddings: a sample of stored (float16) embeddings.
    """
    stored = np.asarray(embeddings, dtype=np.float16)
    rounding = np.spacing(stored).astype(np.float64) / np.sqrt(12)
    spread = stored.astype(np.float64) - stored.mean(axis=0, dtype=np.float64)
    total = float(np.sqrt(np.mean(spread**2)))
    return float(np.sqrt(np.mean(rounding**2))) / total if total > 0 else float("inf")
