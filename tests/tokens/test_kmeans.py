"""k-means and token assignment, by property and against brute force."""

import inspect
import itertools

import numpy as np
import pytest
import torch

from world_modality.system.errors import InvalidInputError
from world_modality.tokens import torch_kmeans
from world_modality.tokens.codebook import CodebookFlags, load_quantiser
from world_modality.tokens.kmeans import KMeans, assign_world_tokens, in_codebook_space
from world_modality.tokens.torch_kmeans import fit_in_torch, full_precision, kmeans_plus_plus

CPU = torch.device("cpu")
WITH_EACH_BACKEND = pytest.mark.parametrize("backend", ["faiss", "sklearn", "torch"])
# faiss, or torch.
ON_EACH = pytest.mark.parametrize("device", [None, CPU], ids=["faiss", "torch"])


class CountedRows:
    """An array that remembers how many rows were asked for at once."""

    def __init__(self, array):
        self.array, self.most = array, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, indices):
        self.most = max(self.most, len(indices))
        return self.array[indices]


def sample(num=600, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 3, (20, dim))
    return (centers[rng.integers(20, size=num)] + rng.normal(0, 0.5, (num, dim))).astype(np.float32)


def brute_force(embeddings, centroids):
    differences = embeddings[:, None].astype(np.float64) - centroids[None].astype(np.float64)
    return np.asarray((differences**2).sum(axis=-1).argmin(axis=1))


def inertia(rows, centroids):
    differences = rows - centroids[brute_force(rows, centroids)]
    return float((differences.astype(np.float64) ** 2).sum(axis=1).mean())


def fitted(rows, num_tokens, backend="faiss", iterations=25, **flags):
    flags |= {"vq_num_tokens": num_tokens, "vq_backend": backend, "vq_iterations": iterations}
    return KMeans.fit(CodebookFlags(**flags), rows, "cpu")


def fit(rows, num_centroids=24, seed=0, num_rounds=25):
    return fit_in_torch(rows, num_centroids, device=CPU, seed=seed, num_rounds=num_rounds)


def started(rows, num, seed):
    """Return the centroids of the k-means++ start."""
    tensor = torch.from_numpy(rows)
    return kmeans_plus_plus(tensor, tensor[:0], num, np.random.default_rng(seed)).numpy()


@ON_EACH
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (0.02, 300)])
def test_tokens_are_the_nearest_centroids(device, scale, offset):
    # Far from the origin |x|^2 - 2xy + |y|^2 in float32 finds the nearest centroid for 4 %.
    embeddings = sample(5000, 64) * np.float32(scale) + np.float32(offset)
    centroids = sample(32, 64, seed=1) * np.float32(scale) + np.float32(offset)
    tokens = assign_world_tokens(embeddings, centroids, device)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, brute_force(embeddings, centroids))


@ON_EACH
@pytest.mark.parametrize("num", [3, 700])
def test_ties_go_to_the_lowest_index(device, num):
    centroids = sample(16, seed=1)
    centroids[[9, 15]] = centroids[4]
    tokens = assign_world_tokens(np.repeat(centroids[[15]], num, axis=0), centroids, device)
    assert (tokens == 4).all()


@WITH_EACH_BACKEND
def test_more_centroids_lower_the_error(backend):
    embeddings = sample()
    inertias = [fitted(embeddings, v, backend).inertia for v in (1, 4, 16, 64, 600)]
    assert all(b < a for a, b in itertools.pairwise(inertias))
    variance = embeddings.var(axis=0, dtype=np.float64).sum()
    assert inertias[0] == pytest.approx(variance, rel=1e-4)
    assert inertias[-1] == pytest.approx(0, abs=1e-3)


@WITH_EACH_BACKEND
def test_more_iterations_do_not_raise_the_error(backend):
    inertias = [fitted(sample(), 16, backend, iterations=n).inertia for n in (1, 2, 4, 8, 25)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(inertias))
    assert inertias[-1] < inertias[0]


@WITH_EACH_BACKEND
def test_the_seed_alone_decides(backend):
    first, again, other = (fitted(sample(), 8, backend, seed=s).centroids for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@WITH_EACH_BACKEND
def test_codes_beyond_the_distinct_embeddings_stay_unused(backend):
    embeddings = np.repeat(sample(3), 40, axis=0)
    codebook = fitted(embeddings, 10, backend)
    assert np.isfinite(codebook.centroids).all()
    assert len(np.unique(codebook.encode(embeddings))) == 3


def test_normalised_vectors_have_unit_length_and_zero_stays_zero():
    vectors = np.array([[3, 4], [0, 0], [-2, 0]], dtype=np.float16)
    unit = in_codebook_space(vectors, normalize=True)
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-6)


def test_it_is_rebuilt_from_its_record_and_array():
    embeddings = sample()
    codebook = fitted(embeddings, 8, l2_normalize=True)
    again = load_quantiser({"l2_normalize": True}, codebook.arrays)
    np.testing.assert_array_equal(again.encode(embeddings), codebook.encode(embeddings))
    assert (again.num_codes, again.embedding_dim) == (8, 12)
    with pytest.raises(InvalidInputError, match="holds no codebook_centroids"):
        load_quantiser({"l2_normalize": True}, {})
    with pytest.raises(
        InvalidInputError, match="kind 'unheard-of'; this release knows kmeans, residual, product"
    ):
        load_quantiser({"kind": "unheard-of"}, codebook.arrays)


@ON_EACH
def test_what_cannot_be_fitted_or_assigned_is_refused(device):
    embeddings = sample(10)
    backend = "faiss" if device is None else "torch"
    with pytest.raises(InvalidInputError, match="11 is more than the 10 training frames"):
        fitted(embeddings, 11, backend)
    # Without the run-time check of shapes, which would refuse it first.
    with pytest.raises(InvalidInputError, match="D=12 but the codebook has D=5"):
        inspect.unwrap(assign_world_tokens)(embeddings, sample(4, dim=5), device)
    embeddings[7, 2] = np.nan
    with pytest.raises(InvalidInputError, match=r"1 embeddings are not finite, .* number 7"):
        assign_world_tokens(embeddings, sample(4), device)
    with pytest.raises(InvalidInputError, match="number 7"):
        fitted(embeddings, 2, backend)


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
    moved, _ = torch_kmeans._lloyd(
        lambda: [rows], centroids, rows, np.random.default_rng(seed), (1e-3, 25)
    )
    counts = np.bincount(brute_force(rows.numpy(), moved.numpy()), minlength=10)
    assert counts.min() > 0


def test_it_is_no_worse_than_the_plain_algorithm_from_random_rows():
    rows = sample(4000, 16)
    plain, ours = (
        [fitted(rows, 32, backend, seed=seed).inertia for seed in range(4)]
        for backend in ("faiss", "torch")
    )
    assert np.mean(ours) <= np.mean(plain)


def test_rows_beyond_memory_are_read_in_blocks(monkeypatch):
    rows = sample(6000)
    whole, whole_inertia = fit(rows, 80)
    monkeypatch.setattr(torch_kmeans, "RESIDENT_BYTES", 3000 * rows[0].nbytes)
    monkeypatch.setattr(torch_kmeans, "STREAM_ROWS", 512)
    counted = CountedRows(rows)
    centroids, measured = fit(counted, 80)
    assert counted.most <= 512
    # All rows count, not only those in memory.
    assert measured == pytest.approx(inertia(rows, centroids), rel=1e-4)
    assert measured == pytest.approx(whole_inertia, rel=0.02)
    assert (centroids != whole).any()


def test_lower_precision_elsewhere_in_the_program_changes_nothing():
    rows, centroids = sample(3000, 256), sample(64, 256, seed=1)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
        tokens = assign_world_tokens(rows, centroids, CPU)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(tokens, brute_force(rows, centroids))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_tokens_of_the_cpu():
    rows, centroids = sample(20_000, 256), sample(512, 256, seed=1)
    on_gpu = assign_world_tokens(rows, centroids, torch.device("cuda"))
    np.testing.assert_array_equal(on_gpu, assign_world_tokens(rows, centroids, CPU))
    first, again = (
        fit_in_torch(rows, 64, device=torch.device("cuda"), seed=0, num_rounds=5)[0]
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)
