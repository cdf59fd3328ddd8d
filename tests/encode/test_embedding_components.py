"""Principal components of embeddings against a decomposition of the whole sample."""

import json

import numpy as np
import pytest

from world_modality.encode.embedding_components import EmbeddingComponents
from world_modality.system.errors import InvalidInputError


@pytest.fixture(scope="module")
def cells():
    """40 frames of 6 cells, whose 10 numbers vary the less the later they come."""
    rng = np.random.default_rng(0)
    mixed = np.linalg.qr(rng.normal(size=(10, 10)))[0] * 0.7 ** np.arange(10)
    return (rng.normal(size=(40, 6, 10)) @ mixed.T + 3).astype(np.float32)


def test_components_are_the_directions_of_largest_variance(cells):
    found = EmbeddingComponents.fit([cells[:7], cells[7:30], cells[30:]], 4)
    vectors = cells.reshape(-1, 10).astype(np.float64)
    centered = vectors - vectors.mean(axis=0)
    _, sizes, directions = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.components), np.abs(directions[:4]), atol=1e-6)
    np.testing.assert_allclose(found.mean, vectors.mean(axis=0), rtol=1e-6)
    assert found.explained_variance == round(float((sizes[:4] ** 2).sum() / (sizes**2).sum()), 6)
    assert (found.fit_frames, found.num_components) == (40, 4)
    projected = found.project(cells)
    assert (projected.shape, projected.dtype) == ((40, 6, 4), np.float32)
    expected = np.abs(centered @ directions[:4].T).reshape(40, 6, 4)
    np.testing.assert_allclose(np.abs(projected), expected, atol=1e-5)


def test_signs_do_not_depend_on_the_decomposition(cells):
    for components in (
        EmbeddingComponents.fit([cells], 4).components,
        EmbeddingComponents.fit([cells[::-1]], 4).components,
    ):
        largest = np.abs(components).argmax(axis=1)
        assert (components[np.arange(4), largest] > 0).all()


def test_a_frame_of_one_vector_counts_as_one_of_one_cell(cells):
    alone = EmbeddingComponents.fit([cells[:, 0]], 3)
    as_cell = EmbeddingComponents.fit([cells[:, :1]], 3)
    np.testing.assert_array_equal(alone.components, as_cell.components)
    assert alone.fit_frames == as_cell.fit_frames == 40
    assert alone.project(cells[:, 0]).shape == (40, 3)


def test_all_components_keep_every_distance(cells):
    projected = EmbeddingComponents.fit([cells], 10).project(cells)
    before = np.linalg.norm(cells[0, 0] - cells, axis=-1)
    np.testing.assert_allclose(
        np.linalg.norm(projected[0, 0] - projected, axis=-1), before, atol=1e-5
    )


def test_a_spread_that_is_small_beside_the_mean_is_not_lost(cells):
    shifted = cells.astype(np.float64) * 1e-3 + 1e4
    found = EmbeddingComponents.fit(iter(np.split(shifted.astype(np.float32), 8)), 2)
    vectors = shifted.astype(np.float32).reshape(-1, 10).astype(np.float64)
    _, _, directions = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(found.components), np.abs(directions[:2]), atol=1e-4)


def test_they_are_rebuilt_from_their_arrays(cells):
    found = EmbeddingComponents.fit([cells], 4)
    record = json.loads(json.dumps(found.record()))
    again = EmbeddingComponents.load(record, found.arrays)
    assert again.record() == record
    np.testing.assert_array_equal(again.project(cells), found.project(cells))
    assert set(record) == {"num_components", "explained_variance", "fit_frames", "weights_sha256"}


def test_arrays_of_another_fit_or_none_are_refused(cells):
    found, other = EmbeddingComponents.fit([cells], 4), EmbeddingComponents.fit([cells[1:]], 4)
    with pytest.raises(InvalidInputError, match="belong to another cache"):
        EmbeddingComponents.load(found.record(), other.arrays)
    only = {"embedding_components": found.components}
    with pytest.raises(InvalidInputError, match=r"need the arrays \['embedding_components_mean'\]"):
        EmbeddingComponents.load(found.record(), only)


@pytest.mark.parametrize("num_components", [0, 11, 300])
def test_more_components_than_numbers_of_a_vector_are_refused(cells, num_components):
    with pytest.raises(InvalidInputError, match="must lie between 1 and 10: 240 vectors of 10"):
        EmbeddingComponents.fit([cells], num_components)


def test_more_components_than_vectors_are_refused(cells):
    EmbeddingComponents.fit([cells[:1]], 5)
    with pytest.raises(InvalidInputError, match=r"between 1 and 6: 6 vectors .* from 1 training"):
        EmbeddingComponents.fit([cells[:1]], 7)
    with pytest.raises(InvalidInputError, match="0 training frames"):
        EmbeddingComponents.fit([], 1)


def test_vectors_that_are_all_the_same_are_refused(cells):
    with pytest.raises(InvalidInputError, match="of all 5 sampled training frames are the same"):
        EmbeddingComponents.fit([np.full((5, 6, 10), 0.3, dtype=np.float32)], 2)
