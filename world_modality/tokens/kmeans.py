"""k-means: the token is the nearest of V centroids, fitted by faiss, scikit-learn or in torch.

Everything works in one space: embeddings as the encoder gives them, or scaled to unit length under
`--l2_normalize` (k-means then runs on the unit vectors; the centroids are their means and stay as
they are, within the unit ball).

Three things make the fit in torch cheaper than Lloyd's rounds over all rows from random rows: the
start is drawn by k-means++ (Arthur & Vassilvitskii, 2007); rounds begin on a small random sample
that doubles until it is everything (nested batches: Newling & Fleuret, 2016); and a sample is left
as soon as its objective hardly falls any more. Rows pass in blocks, and no N x V matrix is held.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.quantiser import Quantiser, Rows

if TYPE_CHECKING:
    import torch

    from world_modality.tokens.codebook import CodebookFlags

VqBackend = Literal["faiss", "sklearn", "torch"]
ASSIGNED_ROWS = 2_048
# What faiss and sklearn hold at once: float16 rows, float32 rows, and three copies of them.
FIT_BYTES_PER_NUMBER = 18
# In torch the start, and the first rounds, use this many rows a centroid.
START_ROWS_PER_CENTROID = 32
# A sample is left when a round lowers its objective by less than this share.
SAMPLE_TOLERANCE = 1e-2
FINAL_TOLERANCE = 2e-3
# Of the rows that stay in memory; where there are more, the last rounds read them block by block.
RESIDENT_BYTES = 1 << 30
STREAM_ROWS = 16_384
# Of one block's distances to all centroids.
CPU_SCORE_BYTES = 16 << 20
GPU_SCORE_BYTES = 256 << 20
# A squared distance below this share of the squared norms is float32's rounding.
ROUNDING = 4e-6

Blocks = Callable[[], Iterable["torch.Tensor"]]


@dataclass(frozen=True, kw_only=True)
class KMeansFlags:
    """Flags of k-means alone."""

    l2_normalize: bool = False
    """Fit and assign in the space of unit-length embeddings."""
    vq_backend: VqBackend = "faiss"
    """Library that fits k-means. torch runs on --device, starts with k-means++ on growing samples,
    reads in blocks what memory cannot hold, and assigns the tokens, too; with the others faiss
    assigns them."""
    vq_iterations: int = 25
    """Largest number of Lloyd iterations; for torch, on each of its samples."""


@dataclass(frozen=True)
class KMeans(Quantiser):
    """The token of an embedding is its nearest centroid.

    Attributes:
        centroids: float32, one per token, in the space that assignment uses.
        l2_normalize: whether that is the space of unit-length embeddings.
        inertia: mean squared distance of the fitted embeddings to their centroid; after a fit.
        device: torch computes there; None where faiss does, on the CPU.
    """

    array_names: ClassVar[tuple[str, ...]] = ("codebook_centroids",)

    centroids: Float[np.ndarray, "V D"] = field(repr=False)
    l2_normalize: bool
    inertia: float | None = None
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
    def check(cls, flags: "CodebookFlags", num_frames: int) -> None:
        """Refuse settings that cannot be fitted to so many frames."""
        super().check(flags, num_frames)
        if flags.vq_iterations < 1:
            raise InvalidInputError("--vq_iterations must be at least 1")
        if flags.vq_num_tokens > num_frames:
            raise InvalidInputError(
                f"--vq_num_tokens {flags.vq_num_tokens} is more than the {num_frames} training "
                "frames that the codebook is fitted on; lower it (--vq_fit_frames is "
                f"{flags.vq_fit_frames})"
            )

    @classmethod
    def fit(cls, flags: "CodebookFlags", rows: Rows, device: str = "auto") -> "KMeans":
        """Fit V centroids (Lloyd, 1982), minimising the mean squared L2 distance.

        The same arguments give the same centroids. A cluster that runs empty takes over part of a
        large one; where there are fewer distinct embeddings than V some codes stay unused.

        Args:
            flags: `faiss` and `sklearn` begin with random rows (sklearn: k-means++) and iterate
                over all embeddings; `torch` see above.
            rows: stored embeddings of training frames; only `torch` never holds them all.
            device: where `torch` computes, as `--device` has it.

        Raises:
            InvalidInputError: more tokens than embeddings, an embedding that is not finite, or a
                memory that is too small.
        """
        cls.check(flags, len(rows))
        prepared = _PreparedRows(rows, normalize=flags.l2_normalize)
        num_tokens, seed, num_iterations = flags.vq_num_tokens, flags.seed, flags.vq_iterations
        if flags.vq_backend == "torch":
            from world_modality.system.device import resolve_device

            on = resolve_device(device)
            centroids, inertia = fit_in_torch(
                prepared, num_tokens, device=on, seed=seed, num_rounds=num_iterations
            )
            return cls(centroids, flags.l2_normalize, inertia, on)
        _require_memory(rows, flags.vq_backend)
        vectors = np.ascontiguousarray(prepared[np.arange(len(rows))])
        # Distances do not change under translation, but float32 loses less of them near the origin.
        center = vectors.mean(axis=0)
        vectors -= center
        fit = _fit_faiss if flags.vq_backend == "faiss" else _fit_sklearn
        centroids = fit(vectors, num_tokens, seed, num_iterations)
        tokens = assign_world_tokens(vectors, centroids)
        inertia = float(np.mean(((vectors - centroids[tokens]) ** 2).sum(axis=1), dtype=np.float64))
        return cls((centroids + center).astype(np.float32), flags.l2_normalize, inertia)

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


class _PreparedRows:
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


def _require_memory(rows: Rows, backend: str) -> None:
    num_rows, dim = len(rows), rows[np.arange(1)].shape[1]
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
            found = [tokens for _, tokens, _ in _nearest(_split(rows, len(near)), near)]
        return torch.cat(found).to(torch.int32).cpu().numpy()
    import faiss

    index = faiss.IndexFlatL2(table.shape[1])
    index.add(table)
    tokens = np.empty(len(embeddings), dtype=np.int32)
    for start in range(0, len(embeddings), ASSIGNED_ROWS):
        block = np.asarray(embeddings[start : start + ASSIGNED_ROWS], dtype=np.float32)
        _require_finite(block, "embedding", range(start, start + len(block)))
        _, nearest = index.search(np.ascontiguousarray(block - center), 1)
        tokens[start : start + len(block)] = nearest[:, 0]
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


def fit_in_torch(
    rows: Rows, num_centroids: int, *, device: "torch.device", seed: int, num_rounds: int
) -> tuple[Float[np.ndarray, "V D"], float]:
    """Fit centroids by k-means++ and by Lloyd rounds on samples that double up to all rows.

    The same arguments on the same machine give the same centroids. An empty cluster gets a row
    drawn as k-means++ draws, far from every centroid; where the first sample has fewer distinct
    rows than there are centroids, some stay without rows.

    Returns:
        float32 centroids, and the mean squared distance of all rows to their nearest one.
    """
    import torch

    rng = np.random.default_rng(seed)
    resident, center = _resident_rows(rows, num_centroids, rng)
    sample = torch.from_numpy(resident).to(device)
    start = sample[: START_ROWS_PER_CENTROID * num_centroids]

    def streamed() -> Iterator[torch.Tensor]:
        for first in range(0, len(rows), STREAM_ROWS):
            indices = np.arange(first, min(first + STREAM_ROWS, len(rows)))
            yield from _split(torch.from_numpy(rows[indices] - center).to(device), num_centroids)

    with full_precision():
        centroids = kmeans_plus_plus(start, sample[:0], num_centroids, rng)
        # With fewer distinct rows, codes that no row is nearest to.
        filler = start[:1].expand(num_centroids - len(centroids), -1)
        centroids = torch.cat([centroids, filler])
        for size in _sample_sizes(len(start), len(sample), len(rows)):
            tolerance = FINAL_TOLERANCE if size == len(rows) else SAMPLE_TOLERANCE
            blocks = partial(_split, sample[:size], num_centroids)
            centroids, objective = _lloyd(
                blocks if size <= len(sample) else streamed,
                centroids,
                start,
                rng,
                (tolerance, num_rounds),
            )
    return centroids.cpu().numpy() + center, objective / len(rows)


@contextmanager
def full_precision() -> Iterator[None]:
    """Multiply float32 matrices as float32: no TF32, nor bfloat16, whatever the program has set."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _resident_rows(
    rows: Rows, num_centroids: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random sample of rows, in random order, less its mean; and the mean.

    Distances do not change under translation, but float32 loses less of them near the origin.
    """
    dim = rows[np.arange(1)].shape[1]
    size = min(len(rows), max(num_centroids, RESIDENT_BYTES // (4 * dim)))
    drawn = rng.choice(len(rows), size, replace=False)
    ascending = np.argsort(drawn)  # rows on a disk are read front to back
    resident = np.empty((size, dim), dtype=np.float32)
    for places in np.array_split(ascending, -(-size // STREAM_ROWS)):
        resident[places] = rows[drawn[places]]
    center = resident.mean(axis=0, dtype=np.float64).astype(np.float32)
    resident -= center
    return resident, center


def _sample_sizes(first: int, num_resident: int, num_rows: int) -> list[int]:
    """Return sample sizes that double from the first to all resident rows, then all rows."""
    sizes = [first]
    while sizes[-1] < num_resident:
        sizes.append(min(2 * sizes[-1], num_resident))
    return sizes if num_resident == num_rows else [*sizes, num_rows]


def kmeans_plus_plus(
    sample: "torch.Tensor", kept: "torch.Tensor", num_rows: int, rng: np.random.Generator
) -> "torch.Tensor":
    """Draw rows one after another, each in proportion to its squared distance to those before.

    As many rows as there are already are proposed at once, from the distances before them, and each
    is accepted with the share of its distance that is left: rejection sampling, which follows the
    distribution of the sequential method with matrix products instead of one pass a row.

    Returns:
        The rows of `sample` drawn beside those kept before: fewer than asked for where none is left
        that differs from all of them.
    """
    import torch

    new = kept if len(kept) else sample[rng.integers(len(sample), size=1)]
    chosen, wanted = new, len(kept) + num_rows
    norms = sample.square().sum(dim=1)
    distances = torch.full_like(norms, torch.inf)
    while len(chosen) < wanted:
        if len(new):
            scores = torch.cat([score for _, _, score in _nearest(_split(sample, len(new)), new)])
            distances = torch.minimum(distances, _without_rounding(scores + norms, norms))
        cumulative = np.cumsum(distances.cpu().numpy(), dtype=np.float64)
        if cumulative[-1] == 0:
            break
        ticks = rng.random(min(len(chosen), wanted - len(chosen))) * cumulative[-1]
        proposed = np.minimum(np.searchsorted(cumulative, ticks, side="right"), len(sample) - 1)
        accepted = _accepted(sample[proposed], distances[proposed].cpu().numpy(), rng)
        new = sample[proposed[accepted]]
        chosen = torch.cat([chosen, new])
    return chosen[len(kept) :]


def _accepted(
    proposed: "torch.Tensor", distances: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Say which proposed rows are kept, given those kept before them; `distances` are older."""
    norms = proposed.square().sum(dim=1)
    products = norms[:, None] + norms - 2 * proposed @ proposed.T
    between = _without_rounding(products, norms).cpu().numpy()
    left = distances.copy()
    accepted = np.zeros(len(proposed), dtype=bool)
    for place, tick in enumerate(rng.random(len(proposed))):
        accepted[place] = tick * distances[place] < left[place]
        if accepted[place]:
            left = np.minimum(left, between[place])
    return accepted


def _without_rounding(distances: "torch.Tensor", norms: "torch.Tensor") -> "torch.Tensor":
    return distances.where(distances > ROUNDING * norms.max(), 0)


def _lloyd(
    blocks: Blocks,
    centroids: "torch.Tensor",
    start: "torch.Tensor",
    rng: np.random.Generator,
    limits: tuple[float, int],
) -> tuple["torch.Tensor", float]:
    """Move centroids to the means of their rows until the objective hardly falls any more.

    The objective is the summed squared distance of the sample's rows.
    """
    tolerance, num_rounds = limits
    previous = float("inf")
    for number in range(num_rounds + 1):
        means, counts, objective = _round(blocks(), centroids)
        empty = counts == 0
        means[empty] = centroids[empty]
        if empty.any():
            drawn = kmeans_plus_plus(start, means[~empty], int(empty.sum()), rng)
            means[empty.nonzero()[: len(drawn), 0]] = drawn
            empty[:] = len(drawn) > 0
        settled = objective >= (1 - tolerance) * previous and not empty.any()
        if settled or number == num_rounds:
            break
        centroids, previous = means, objective
    return centroids, objective


def _round(
    blocks: Iterable["torch.Tensor"], centroids: "torch.Tensor"
) -> tuple["torch.Tensor", "torch.Tensor", float]:
    """Return the means of the clusters, how many rows each has, and the objective."""
    import torch
    from torch.nn.functional import embedding_bag

    num_centroids = len(centroids)
    sums = torch.zeros_like(centroids, dtype=torch.float64)
    counts = torch.zeros(num_centroids, dtype=torch.int64, device=centroids.device)
    objective = torch.zeros((), dtype=torch.float64, device=centroids.device)
    for block, tokens, scores in _nearest(blocks, centroids):
        in_block = torch.bincount(tokens, minlength=num_centroids)
        # Rows of a cluster behind one another, so that each sum has one order whatever computes it.
        order = torch.argsort(tokens, stable=True)
        first = in_block.cumsum(0) - in_block
        sums += embedding_bag(order, block, first, mode="sum")
        counts += in_block
        objective += (scores + block.square().sum(dim=1)).clamp(min=0).sum(dtype=torch.float64)
    return (sums / counts.clamp(min=1)[:, None]).float(), counts, float(objective)


def _split(rows: "torch.Tensor", num_centroids: int) -> tuple["torch.Tensor", ...]:
    """Split rows so that a block's distances to all centroids take a bounded size."""
    import torch

    score_bytes = CPU_SCORE_BYTES if rows.device.type == "cpu" else GPU_SCORE_BYTES
    return torch.split(rows, max(1, score_bytes // (4 * num_centroids)))


def _nearest(
    blocks: Iterable["torch.Tensor"], centroids: "torch.Tensor"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]]:
    """Yield each block with its rows' nearest centroids, and squared distances less |row|²."""
    import torch

    norms = centroids.square().sum(dim=1)
    buffer = torch.empty((0, len(centroids)), device=centroids.device)
    for block in blocks:
        if len(block) > len(buffer):
            buffer = torch.empty((len(block), len(centroids)), device=centroids.device)
        scores = torch.addmm(norms, block, centroids.T, alpha=-2, out=buffer[: len(block)])
        nearest = scores.min(dim=1)
        yield block, nearest.indices, nearest.values
