"""Views, cells and components of a frame, from one encoder."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from world_modality.encode.embedding_components import EmbeddingComponents
from world_modality.encode.observation_encoder import (
    ObservationEncoder,
    ObservationFlags,
    load_observation_encoder,
)
from world_modality.system.errors import InvalidInputError

CPU = torch.device("cpu")
KEYS = ["observation.images.top", "observation.images.wrist"]


@pytest.fixture(scope="module")
def views():
    """Two views of nine frames, of different image sizes."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (9, *size, 3), dtype=np.uint8) for size in ((48, 40), (32, 64))]


@pytest.fixture(scope="module")
def encoder(random_vit):
    return random_vit()


def fitted(encoder, views, num_components=5):
    """Add components of these frames to an observation encoder."""
    components = EmbeddingComponents.fit([encoder.encode(views).cells], num_components)
    return dataclasses.replace(encoder, components=components)


def manifest_of(encoder, image_keys=KEYS):
    """Return the two sections as a manifest's file holds them."""
    observation = encoder.observation_record(image_keys)
    return json.loads(json.dumps({"encoder": encoder.record(), "observation": observation}))


def test_one_view_of_one_vector_is_what_the_encoder_gives_and_nothing_else(encoder, views):
    observed = ObservationEncoder(encoder)
    embeddings = observed.encode(views[:1])
    np.testing.assert_array_equal(embeddings.pooled, encoder.encode(views[0]))
    assert embeddings.cells is None
    assert not observed.stores_cells
    assert observed.cell_shape is observed.observation_record(KEYS[:1]) is None
    assert observed.shape.axis == ()
    assert observed.arrays == encoder.arrays
    loaded = load_observation_encoder({"encoder": encoder.record()}, {}, CPU)
    assert (loaded.num_views, loaded.grid_size, loaded.components) == (1, 1, None)


def test_cells_are_view_by_view_and_row_by_row(encoder, views):
    observed = ObservationEncoder(encoder, num_views=2, grid_size=3)
    embeddings = observed.encode(views)
    assert observed.cell_shape == (18, 192) == embeddings.cells.shape[1:]
    for number, view in enumerate(views):
        pooled, cells = encoder.encode_grid(view, 3)
        np.testing.assert_array_equal(embeddings.cells[:, 9 * number : 9 * number + 9], cells)
        assert (number == 0) == np.array_equal(embeddings.pooled, pooled)
    # Random weights still tell the places of an image from each other.
    assert np.ptp(embeddings.cells, axis=1).max() > 1e-3


def test_without_a_grid_a_views_vector_is_its_pooled_one(encoder, views):
    cells = ObservationEncoder(encoder, num_views=2).encode(views).cells
    expected = np.stack([encoder.encode(view) for view in views], axis=1)
    np.testing.assert_array_equal(cells, expected)


@pytest.mark.parametrize("grid_size", [1, 3])
def test_blocks_of_views_of_different_size_give_the_same(encoder, views, grid_size):
    observed = ObservationEncoder(encoder, num_views=2, grid_size=grid_size)
    blocks = [[view[start : start + 4] for view in views] for start in (0, 4, 8)]
    found = list(observed.encode_blocks(iter(blocks), 4))
    assert [len(one.pooled) for one in found] == [4, 4, 1]
    for block, one in zip(blocks, found, strict=True):
        expected = observed.encode(block)
        np.testing.assert_array_equal(one.pooled, expected.pooled)
        np.testing.assert_array_equal(one.cells, expected.cells)


def test_another_number_of_views_is_no_observation(encoder, views):
    with pytest.raises(ValueError, match="1 views, expected 2"):
        ObservationEncoder(encoder, num_views=2).encode(views[:1])


def test_components_make_the_cells_smaller_and_leave_the_pooled_vector(encoder, views):
    whole = ObservationEncoder(encoder, num_views=2, grid_size=2)
    small = fitted(whole, views)
    expected, found = whole.encode(views), small.encode(views)
    assert small.cell_shape == (8, 5) == found.cells.shape[1:]
    np.testing.assert_array_equal(found.pooled, expected.pooled)
    np.testing.assert_array_equal(found.cells, small.components.project(expected.cells))
    section = small.observation_record(KEYS)
    assert section["embedding_dim"] == 5
    assert section["components"]["encoder_sha256"] == encoder.record()["weights_sha256"]


def test_components_of_one_view_and_one_vector_are_a_cell_of_their_own(encoder, views):
    components = EmbeddingComponents.fit([encoder.encode(views[0])], 4)
    small = ObservationEncoder(encoder, components=components)
    assert small.cell_shape == (1, 4) == small.encode(views[:1]).cells.shape[1:]
    assert small.shape.axis == ()


@pytest.mark.parametrize("has_components", [False, True])
def test_a_manifest_and_its_arrays_give_the_encoder_again(encoder, views, has_components):
    made = ObservationEncoder(encoder, num_views=2, grid_size=2)
    made = fitted(made, views) if has_components else made
    loaded = load_observation_encoder(manifest_of(made), made.arrays, CPU)
    assert loaded.shape == made.shape
    np.testing.assert_array_equal(loaded.encode(views).cells, made.encode(views).cells)


def test_components_of_another_encoder_are_refused(encoder, random_vit, views):
    made = fitted(ObservationEncoder(encoder, num_views=2), views)
    other = ObservationEncoder(random_vit(seed=1), num_views=2)
    manifest = {**manifest_of(made), "encoder": other.record()}
    with pytest.raises(InvalidInputError, match=r"were fitted to vectors .* of the encoder with"):
        load_observation_encoder(manifest, made.arrays, CPU)
    foreign = fitted(other, views).arrays
    with pytest.raises(InvalidInputError, match="belong to another cache"):
        load_observation_encoder(manifest_of(made), foreign, CPU)
    with pytest.raises(InvalidInputError, match=r"need the arrays .*embedding_components"):
        load_observation_encoder(manifest_of(made), {}, CPU)


@pytest.mark.parametrize("flags", [{"embedding_grid": 0}, {"embedding_components": 0}])
def test_sizes_below_one_are_refused(flags):
    (name,) = flags
    with pytest.raises(InvalidInputError, match=f"--{name} 0 must be at least 1"):
        ObservationFlags(**flags).check_observation()
