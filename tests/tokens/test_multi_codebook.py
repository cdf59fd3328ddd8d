"""Residual and product quantisation, by property, against brute force, and against faiss."""

import itertools

import faiss
import numpy as np
import pytest

from tests.tokens.test_kmeans import CountedRows, brute_force, sample
from world_modality.system.errors import InvalidInputError, MissingKeyError
from world_modality.tokens import kmeans, torch_kmeans
from world_modality.tokens.codebook import QUANTISERS, CodebookFlags, load_quantiser
from world_modality.tokens.kmeans import KMeans, spread_of

KINDS = ("residual", "product")
ON_EACH_KIND = pytest.mark.parametrize("kind", KINDS)
WITH_EACH_BACKEND = pytest.mark.parametrize("backend", ["faiss", "sklearn", "torch"])


def flags_of(kind, levels=None, num_tokens=16, backend="faiss", **flags):
    given = {"vq_kind": kind, "vq_levels": levels, "vq_num_tokens": num_tokens}
    return CodebookFlags(**given, vq_backend=backend, **flags)


def fitted(rows, kind, levels=None, **flags):
    flags = flags_of(kind, levels, **flags)
    return flags.quantiser.fit(flags, rows, "cpu")


def read_back(quantiser, tokens):
    """Return the vectors that tokens stand for."""
    levels = [level[tokens[:, i]] for i, level in enumerate(quantiser.centroids)]
    if quantiser.array_names == ("product_centroids",):
        return np.concatenate(levels, axis=1)
    return np.sum(levels, axis=0)


def error(quantiser, rows):
    difference = rows - read_back(quantiser, quantiser.encode(rows))
    return float(np.square(difference, dtype=np.float64).sum(axis=1).mean())


def test_each_level_takes_the_centroid_nearest_to_what_is_left():
    rows = sample(400)
    quantiser = fitted(rows, "residual", 3)
    tokens = quantiser.encode(rows)
    assert tokens.dtype == np.int32
    left = rows.astype(np.float64)
    for level, centroids in enumerate(quantiser.centroids):
        np.testing.assert_array_equal(tokens[:, level], brute_force(left, centroids))
        left = left - centroids[tokens[:, level]]


def test_the_first_level_is_the_codebook_of_k_means():
    rows = sample()
    alone = KMeans.fit(flags_of("kmeans"), rows, "cpu")
    np.testing.assert_array_equal(fitted(rows, "residual").centroids[0], alone.centroids)


def test_each_part_has_the_codebook_that_k_means_gives_it():
    rows = sample()
    quantiser = fitted(rows, "product", 3)
    tokens = quantiser.encode(rows)
    for part in range(3):
        columns = rows[:, 4 * part : 4 * part + 4]
        alone = KMeans.fit(flags_of("kmeans"), columns, "cpu")
        np.testing.assert_array_equal(quantiser.centroids[part], alone.centroids)
        np.testing.assert_array_equal(tokens[:, part], alone.encode(columns))


@ON_EACH_KIND
@WITH_EACH_BACKEND
def test_more_levels_and_more_codes_lower_the_error(kind, backend):
    rows = sample(1500)
    by_levels = [fitted(rows, kind, n, backend=backend).inertia for n in (2, 4, 6)]
    by_codes = [fitted(rows, kind, num_tokens=n, backend=backend).inertia for n in (2, 8, 32)]
    for inertias in (by_levels, by_codes):
        assert all(later < earlier for earlier, later in itertools.pairwise(inertias))
    assert by_levels[0] < KMeans.fit(flags_of("kmeans", backend=backend), rows, "cpu").inertia


@ON_EACH_KIND
def test_the_inertia_and_the_explained_variance_are_those_of_the_tokens(kind):
    rows = sample(1000)
    quantiser = fitted(rows, kind)
    assert quantiser.inertia == pytest.approx(error(quantiser, rows), rel=1e-4)
    spread = rows.var(axis=0, dtype=np.float64).sum()
    explained = 1 - error(quantiser, rows) / spread
    assert quantiser.explained_variance == pytest.approx(explained, abs=1e-5)
    assert quantiser.fit_record["explained_variance"] == quantiser.explained_variance


def test_k_means_says_how_much_it_explains_and_keeps_it_out_of_the_manifest():
    rows = sample(1000)
    codebook = KMeans.fit(flags_of("kmeans"), rows, "cpu")
    spread = rows.var(axis=0, dtype=np.float64).sum()
    assert codebook.explained_variance == pytest.approx(1 - codebook.inertia / spread, abs=1e-6)
    assert codebook.fit_record == {"inertia": codebook.inertia}
    still = KMeans.fit(flags_of("kmeans", num_tokens=1), np.ones((5, 3), np.float32), "cpu")
    assert still.explained_variance is None


@pytest.mark.parametrize("block", [7, 1000])
def test_the_spread_is_added_up_in_blocks(block, monkeypatch):
    monkeypatch.setattr(kmeans, "SPREAD_ROWS", block)
    rows = sample(500) * np.float32(0.02) + 300
    assert spread_of(rows) == pytest.approx(rows.var(axis=0, dtype=np.float64).sum(), rel=1e-9)


def test_it_is_as_good_as_faiss():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(4000, 16)) * np.linspace(2, 0.1, 16)).astype(np.float32)
    residual = faiss.ResidualQuantizer(16, 2, 4)
    product = faiss.ProductQuantizer(16, 4, 4)
    for kind, peer in (("residual", residual), ("product", product)):
        peer.train(rows)
        peers = np.square(rows - peer.decode(peer.compute_codes(rows))).sum(axis=1).mean()
        for backend in ("faiss", "sklearn", "torch"):
            found = [fitted(rows, kind, backend=backend, seed=seed) for seed in range(3)]
            assert np.mean([error(one, rows) for one in found]) < 1.03 * peers


@ON_EACH_KIND
@WITH_EACH_BACKEND
def test_the_seed_alone_decides(kind, backend):
    rows = sample()
    first, again, other = (fitted(rows, kind, backend=backend, seed=s).centroids for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@ON_EACH_KIND
def test_it_is_rebuilt_from_its_record_and_array_alone(kind):
    rows = sample()
    flags = flags_of(kind, l2_normalize=True)
    quantiser = flags.quantiser.fit(flags, rows, "cpu")
    again = load_quantiser(flags.codebook_settings, quantiser.arrays)
    np.testing.assert_array_equal(again.encode(rows), quantiser.encode(rows))
    assert (again.num_codes, again.embedding_dim) == (16, 12)
    assert again.num_levels == QUANTISERS[kind].default_levels == flags.quantiser.levels(flags)
    with pytest.raises(InvalidInputError, match=f"holds no {kind}_centroids"):
        load_quantiser(flags.codebook_settings, {})


@ON_EACH_KIND
def test_rows_beyond_memory_are_read_in_blocks(kind, monkeypatch):
    rows = sample(6000)
    monkeypatch.setattr(torch_kmeans, "RESIDENT_BYTES", 3000 * rows[0].nbytes)
    monkeypatch.setattr(torch_kmeans, "STREAM_ROWS", 512)
    monkeypatch.setattr(kmeans, "SPREAD_ROWS", 512)
    counted = CountedRows(rows)
    quantiser = fitted(counted, kind, backend="torch")
    assert counted.most <= 512
    assert quantiser.inertia == pytest.approx(error(quantiser, rows), rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "levels", "message"),
    [
        ("kmeans", 2, "--vq_levels 2 has no effect on --vq_kind kmeans"),
        ("residual", 1, "--vq_levels must be at least 2, not 1"),
        ("product", 5, r"--vq_levels 5 does not divide the D=12 .*; 2, 3, 4, 6, 12 do"),
        ("residul", 2, "residual"),
    ],
)
def test_levels_that_cannot_be_are_refused(kind, levels, message):
    with pytest.raises((InvalidInputError, MissingKeyError), match=message):
        fitted(sample(), kind, levels)
    with pytest.raises(InvalidInputError, match="17 is more than the 16 training frames"):
        fitted(sample(16), "residual", num_tokens=17)
