"""Lloyd's k-means in torch: on any device, in flat memory, with fewer passes over the rows.

Three things make it cheaper than Lloyd's rounds over all rows from random rows: the start is drawn
by k-means++ (Arthur & Vassilvitskii, 2007); rounds begin on a small random sample that doubles
until it is everything (nested batches: Newling & Fleuret, 2016); and a sample is left as soon as
its objective hardly falls any more. Rows pass in blocks, and no N x V matrix is held.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from world_modality.tokens.quantiser import Rows

if TYPE_CHECKING:
    import torch

# The start, and the first rounds, use this many rows a centroid.
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
            yield from split(torch.from_numpy(rows[indices] - center).to(device), num_centroids)

    with full_precision():
        centroids = kmeans_plus_plus(start, sample[:0], num_centroids, rng)
        # With fewer distinct rows, codes that no row is nearest to.
        filler = start[:1].expand(num_centroids - len(centroids), -1)
        centroids = torch.cat([centroids, filler])
        for size in _sample_sizes(len(start), len(sample), len(rows)):
            tolerance = FINAL_TOLERANCE if size == len(rows) else SAMPLE_TOLERANCE
            blocks = partial(split, sample[:size], num_centroids)
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
            scores = torch.cat([score for _, _, score in nearest(split(sample, len(new)), new)])
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
    for block, tokens, scores in nearest(blocks, centroids):
        in_block = torch.bincount(tokens, minlength=num_centroids)
        # Rows of a cluster behind one another, so that each sum has one order whatever computes it.
        order = torch.argsort(tokens, stable=True)
        first = in_block.cumsum(0) - in_block
        sums += embedding_bag(order, block, first, mode="sum")
        counts += in_block
        objective += (scores + block.square().sum(dim=1)).clamp(min=0).sum(dtype=torch.float64)
    return (sums / counts.clamp(min=1)[:, None]).float(), counts, float(objective)


def split(rows: "torch.Tensor", num_centroids: int) -> tuple["torch.Tensor", ...]:
    """Split rows so that a block's distances to all centroids take a bounded size."""
    import torch

    score_bytes = CPU_SCORE_BYTES if rows.device.type == "cpu" else GPU_SCORE_BYTES
    return torch.split(rows, max(1, score_bytes // (4 * num_centroids)))


def nearest(
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
        found = scores.min(dim=1)
        yield block, found.indices, found.values
