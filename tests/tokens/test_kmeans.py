"""k-means in torch: by property, and against the plain algorithm."""

import itertools

import numpy as np
import pytest
import torch

from tests.tokens.test_codebook import brute_force, sample
from world_modality.system.errors import InvalidInputError
from world_modality.tokens import kmeans
from world_modality.tokens.codebook import assign_world_tokens, fit_codebook
from world_modality.tokens.kmeans import fit_kmeans, kmeans_plus_plus, nearest_centroids

CPU = torch.device("cpu")


class CountedRows:
    """An array that remembers how many rows were asked for at once."""

    def __init__(self, array):
        self.array, self.most = array, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, indices):
        self.most = max(self.most, len(indices))
        return self.array[indices]


def inertia(rows, centroids):
    differences = rows - centroids[brute_force(rows, centroids)]
    return float((differences.astype(np.float64) ** 2).sum(axis=1).mean())


def fit(rows, num_centroids=24, seed=0, num_rounds=25):
    return fit_kmeans(rows, num_centroids, device=CPU, seed=seed, num_rounds=num_rounds)


def started(rows, num, seed):
    """Return the centroids of the k-means++ start."""
    tensor = torch.from_numpy(rows)
    return kmeans_plus_plus(tensor, tensor[:0], num, np.random.default_rng(seed)).numpy()


def test_the_start_takes_every_distinct_row_once():
    distinct = sample(40)
    rows = np.repeat(distinct, 30, axis=0)
    drawn = started(rows, 40, seed=0)
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 40
    # There is no forty-first.
    assert len(started(rows, 41, seed=0)) == 40


def test_the_start_draws_as_often_as_the_distance_says():
    # Squared distances from 0: 1, 4 and 9. Whichever is first, the second is drawn in proportion.
    rows = np.array([[0.0], [1.0], [2.0], [3.0]], dtype=np.float32)
    tensor, rng = torch.from_numpy(rows), np.random.default_rng(0)
    draws = [kmeans_plus_plus(tensor, tensor[:1], 1, rng).item() for _ in range(3000)]
    shares = np.bincount(np.array(draws, dtype=int), minlength=4) / len(draws)
    np.testing.assert_allclose(shares, np.array([0, 1, 4, 9]) / 14, atol=0.03)


def test_rows_proposed_together_are_drawn_as_one_after_another():
    # After 0 and 100 are there, the third and fourth are proposed together: 50 and 51 are both far
    # from those two, but seldom both drawn, since the first of them leaves the other near.
    rows = np.array([[0.0], [100.0], [50.0], [51.0], [20.0]], dtype=np.float32)
    tensor, rng = torch.from_numpy(rows), np.random.default_rng(0)
    pairs = [{*kmeans_plus_plus(tensor, tensor[:2], 2, rng)[:, 0].tolist()} for _ in range(2000)]
    far = np.array([2500, 2401, 400]) / 5301  # of 50, 51, 20
    both = far[0] * 1 / (1 + 400) + far[1] * 1 / (1 + 400)
    assert np.mean([pair == {50, 51} for pair in pairs]) == pytest.approx(both, abs=0.01)


def test_the_start_is_better_than_random_rows():
    rows = sample(2000)
    ours = [inertia(rows, started(rows, 20, seed)) for seed in range(8)]
    randoms = [
        inertia(rows, rows[np.random.default_rng(seed).choice(2000, 20, replace=False)])
        for seed in range(8)
    ]
    assert np.mean(ours) < 0.8 * np.mean(randoms)


def test_rounds_never_raise_the_objective():
    objectives = [fit(sample(700), num_rounds=n)[1] for n in (1, 2, 4, 8, 16)]
    assert all(later <= earlier for earlier, later in itertools.pairwise(objectives))
    assert objectives[-1] < objectives[0]


def test_the_inertia_is_that_of_the_centroids():
    rows = sample(3000)
    centroids, measured = fit(rows)
    assert measured == pytest.approx(inertia(rows, centroids), rel=1e-4)


def test_far_from_the_origin_it_fits_as_well():
    rows = sample(3000, 64)
    far = fit(rows * np.float32(0.02) + 300)[1] / 0.02**2
    assert far == pytest.approx(fit(rows)[1], rel=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_empty_clusters_are_refilled(seed):
    rows = torch.from_numpy(sample(1000))
    far = torch.full((6, rows.shape[1]), 1e3) * torch.arange(1, 7)[:, None]
    centroids = torch.cat([rows[:4], far])
    moved, _ = kmeans._lloyd(
        lambda: [rows], centroids, rows, np.random.default_rng(seed), (1e-3, 25)
    )
    counts = np.bincount(brute_force(rows.numpy(), moved.numpy()), minlength=10)
    assert counts.min() > 0


def test_it_is_no_worse_than_the_plain_algorithm_from_random_rows():
    rows = sample(4000, 16)
    plain = [fit_codebook(rows, 32, seed=seed).inertia for seed in range(4)]
    ours = [fit_codebook(rows, 32, seed=seed, backend="torch").inertia for seed in range(4)]
    assert np.mean(ours) <= np.mean(plain)


def test_rows_beyond_memory_are_read_in_blocks(monkeypatch):
    rows = sample(6000)
    whole, whole_inertia = fit(rows, 80)
    monkeypatch.setattr(kmeans, "RESIDENT_BYTES", 3000 * rows[0].nbytes)
    monkeypatch.setattr(kmeans, "STREAM_ROWS", 512)
    counted = CountedRows(rows)
    centroids, measured = fit(counted, 80)
    assert counted.most <= 512
    # All rows count, not only those in memory.
    assert measured == pytest.approx(inertia(rows, centroids), rel=1e-4)
    assert measured == pytest.approx(whole_inertia, rel=0.02)
    assert (centroids != whole).any()


@pytest.mark.parametrize("offset", [0, 300])
def test_tokens_are_those_of_faiss(offset):
    rows, centroids = sample(5000, 64) + offset, sample(128, 64, seed=1) + offset
    tokens = nearest_centroids(rows, centroids, CPU)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, assign_world_tokens(rows, centroids))


@pytest.mark.parametrize("num", [3, 700])
def test_ties_go_to_the_lowest_index(num):
    centroids = sample(16, seed=1)
    centroids[[9, 15]] = centroids[4]
    tokens = nearest_centroids(np.repeat(centroids[[15]], num, axis=0), centroids, CPU)
    assert (tokens == 4).all()


def test_lower_precision_elsewhere_in_the_program_changes_nothing():
    rows, centroids = sample(3000, 256), sample(64, 256, seed=1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with kmeans.full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        tokens = nearest_centroids(rows, centroids, CPU)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(tokens, brute_force(rows, centroids))


def test_a_row_that_is_not_finite_is_named():
    rows = sample(500)
    rows[321, 2] = np.inf
    with pytest.raises(InvalidInputError, match="number 321"):
        fit_codebook(rows, 4, backend="torch")
    with pytest.raises(InvalidInputError, match="number 321"):
        assign_world_tokens(rows, sample(4), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_tokens_of_the_cpu():
    rows, centroids = sample(20_000, 256), sample(512, 256, seed=1)
    on_gpu = nearest_centroids(rows, centroids, torch.device("cuda"))
    np.testing.assert_array_equal(on_gpu, nearest_centroids(rows, centroids, CPU))
    first, again = (
        fit_kmeans(rows, 64, device=torch.device("cuda"), seed=0, num_rounds=5)[0] for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
