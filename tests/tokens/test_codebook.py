"""k-means and token assignment, by property and against brute force."""

import inspect
import itertools

import numpy as np
import pytest

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import (
    assign_world_tokens,
    fit_codebook,
    in_codebook_space,
    l2_normalize,
    rounding_to_spread,
)

BACKENDS = ("faiss", "sklearn", "torch")


def sample(num=600, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    centers = rng.normal(0, 3, (20, dim))
    return (centers[rng.integers(20, size=num)] + rng.normal(0, 0.5, (num, dim))).astype(np.float32)


def brute_force(embeddings, centroids):
    differences = embeddings[:, None].astype(np.float64) - centroids[None].astype(np.float64)
    return np.asarray((differences**2).sum(axis=-1).argmin(axis=1))


def test_tokens_are_the_nearest_centroids():
    embeddings = sample(1000)
    centroids = sample(64, seed=1)
    tokens = assign_world_tokens(embeddings, centroids)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, brute_force(embeddings, centroids))


def test_tokens_are_right_far_from_the_origin():
    # |x|^2 - 2xy + |y|^2 in float32 finds the nearest centroid for 4 % of these.
    embeddings = sample(5000, 64) * 0.02 + 300
    centroids = sample(32, 64, seed=1) * 0.02 + 300
    tokens = assign_world_tokens(embeddings, centroids)
    np.testing.assert_array_equal(tokens, brute_force(embeddings, centroids))


@pytest.mark.parametrize("num", [3, 700])
def test_ties_go_to_the_lowest_index(num):
    centroids = sample(16, seed=1)
    centroids[[9, 15]] = centroids[4]
    tokens = assign_world_tokens(np.repeat(centroids[[15]], num, axis=0), centroids)
    assert (tokens == 4).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_centroids_lower_the_error(backend):
    embeddings = sample()
    inertias = [fit_codebook(embeddings, v, backend=backend).inertia for v in (1, 4, 16, 64, 600)]
    assert all(b < a for a, b in itertools.pairwise(inertias))
    variance = embeddings.var(axis=0, dtype=np.float64).sum()
    assert inertias[0] == pytest.approx(variance, rel=1e-4)
    assert inertias[-1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_iterations_do_not_raise_the_error(backend):
    embeddings = sample()
    once, often = (
        fit_codebook(embeddings, 16, backend=backend, num_iterations=n).inertia for n in (1, 25)
    )
    assert often < once


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_seed_alone_decides(backend):
    first, again, other = (
        fit_codebook(sample(), 8, backend=backend, seed=s).centroids for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("backend", BACKENDS)
def test_codes_beyond_the_distinct_embeddings_stay_unused(backend):
    embeddings = np.repeat(sample(3), 40, axis=0)
    codebook = fit_codebook(embeddings, 10, backend=backend)
    assert np.isfinite(codebook.centroids).all()
    assert len(np.unique(assign_world_tokens(embeddings, codebook.centroids))) == 3


def test_normalised_vectors_have_unit_length_and_zero_stays_zero():
    vectors = np.array([[3, 4], [0, 0], [-2, 0]], dtype=np.float16)
    np.testing.assert_allclose(l2_normalize(vectors), [[0.6, 0.8], [0, 0], [-1, 0]], atol=1e-6)
    np.testing.assert_array_equal(in_codebook_space(vectors, normalize=False), vectors)


def test_what_cannot_be_fitted_or_assigned_is_refused():
    embeddings = sample(10)
    with pytest.raises(InvalidInputError, match="11 is more than the 10 training frames"):
        fit_codebook(embeddings, 11)
    # Without the run-time check of shapes, which would refuse it first.
    with pytest.raises(InvalidInputError, match="D=12 but the codebook has D=5"):
        inspect.unwrap(assign_world_tokens)(embeddings, sample(4, dim=5))
    embeddings[7, 2] = np.nan
    with pytest.raises(InvalidInputError, match=r"1 embeddings are not finite, .* number 7"):
        assign_world_tokens(embeddings, sample(4))
    with pytest.raises(InvalidInputError, match="not finite"):
        fit_codebook(embeddings, 2)


def test_rounding_is_noticed_where_the_spread_is_small():
    rng = np.random.default_rng(0)
    assert rounding_to_spread(rng.normal(size=(200, 8))) < 0.001
    assert rounding_to_spread(1.5 + 1e-4 * rng.normal(size=(200, 8))) > 0.5
    assert rounding_to_spread(np.ones((5, 3))) == np.inf


def test_the_rounding_estimate_is_the_rounding_error():
    embeddings = 1.5 + 0.02 * np.random.default_rng(0).normal(size=(2000, 16))
    error = np.sqrt(np.mean((embeddings - embeddings.astype(np.float16)) ** 2))
    assert rounding_to_spread(embeddings) == pytest.approx(error / 0.02, rel=0.05)
