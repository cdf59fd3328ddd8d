"""Which vectors of a frame have world tokens, and in which order the tokens stand."""

import numpy as np
import pytest

from tests.tokens.test_kmeans import brute_force
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import CodebookFlags, load_quantiser
from world_modality.tokens.world_slots import num_slot_vectors, slot_vectors
from world_modality.tokens.world_tokens import WorldTokeniser, load_tokeniser

SHAPE = ObservationShape(6, num_views=2, grid_size=2)
RNG = np.random.default_rng(0)
POOLED = RNG.normal(size=(9, 10)).astype(np.float16)
CELLS = RNG.normal(size=(9, 8, 6)).astype(np.float16)


def manifest_of(flags, num_slots):
    observation = {"image_keys": ["front", "wrist"], "grid_size": 2, "embedding_dim": 6}
    return {
        "encoder": {"embedding_dim": 10},
        "observation": observation,
        "codebook": {**flags.codebook_settings, "num_slots": num_slots},
    }


def test_the_vectors_are_the_pooled_one_each_cell_or_each_views_mean():
    np.testing.assert_array_equal(slot_vectors(POOLED, CELLS, SHAPE, "frame")[:, 0], POOLED)
    np.testing.assert_array_equal(slot_vectors(POOLED, CELLS, SHAPE, "cell"), CELLS)
    views = slot_vectors(None, CELLS, SHAPE, "view")
    assert views.shape == (9, 2, 6)
    np.testing.assert_allclose(views[:, 1], CELLS[:, 4:].astype(float).mean(axis=1), atol=1e-6)
    counts = [num_slot_vectors(SHAPE, slots) for slots in ("frame", "view", "cell")]
    assert counts == [1, 2, 8]
    with pytest.raises(InvalidInputError, match=r"--world_slots view .* --embedding_grid"):
        slot_vectors(POOLED, None, SHAPE, "view")


@pytest.mark.parametrize("slots", ["view", "cell"])
def test_all_vectors_of_a_frame_have_their_token_of_one_codebook(slots):
    flags = CodebookFlags(world_slots=slots, vq_num_tokens=5)
    vectors = slot_vectors(None, CELLS, SHAPE, slots)
    quantiser = flags.quantiser.fit(flags, vectors.reshape(-1, 6), "cpu")
    tokens = WorldTokeniser(quantiser, slots, SHAPE).encode(None, CELLS)
    assert tokens.dtype == np.int32
    for slot in range(vectors.shape[1]):
        expected = brute_force(vectors[:, slot], quantiser.centroids)
        np.testing.assert_array_equal(tokens[:, slot], expected)


def test_a_vectors_levels_stand_beside_each_other():
    flags = CodebookFlags(world_slots="view", vq_kind="residual", vq_levels=3, vq_num_tokens=4)
    vectors = slot_vectors(None, CELLS, SHAPE, "view")
    quantiser = flags.quantiser.fit(flags, vectors.reshape(-1, 6), "cpu")
    tokeniser = WorldTokeniser(quantiser, "view", SHAPE)
    tokens = tokeniser.encode(None, CELLS)
    assert tokens.shape == (9, tokeniser.num_slots) == (9, 6)
    for view in range(2):
        own = quantiser.encode(vectors[:, view])
        np.testing.assert_array_equal(tokens[:, 3 * view : 3 * view + 3], own)


def test_one_token_a_frame_has_no_axis_and_is_the_quantisers():
    flags = CodebookFlags(vq_num_tokens=4)
    quantiser = flags.quantiser.fit(flags, POOLED, "cpu")
    manifest = {"encoder": {"embedding_dim": 10}, "codebook": flags.codebook_settings}
    tokens = load_tokeniser(manifest, quantiser.arrays).encode(POOLED)
    assert tokens.shape == (9,)
    np.testing.assert_array_equal(tokens, quantiser.encode(POOLED))


def test_it_is_rebuilt_from_a_manifest_and_arrays():
    flags = CodebookFlags(world_slots="cell", vq_kind="product", vq_levels=2, vq_num_tokens=4)
    quantiser = flags.quantiser.fit(flags, CELLS.reshape(-1, 6), "cpu")
    again = load_tokeniser(manifest_of(flags, 16), quantiser.arrays)
    assert (again.num_slots, again.num_codes, again.slots) == (16, 4, "cell")
    expected = WorldTokeniser(quantiser, "cell", SHAPE).encode(None, CELLS)
    np.testing.assert_array_equal(again.encode(None, CELLS), expected)
    with pytest.raises(InvalidInputError, match=r"gives 16 tokens a frame, .* says 8"):
        load_tokeniser(manifest_of(flags, 8), quantiser.arrays)
    strange = manifest_of(flags, 16)
    strange["codebook"]["slots"] = "object"
    with pytest.raises(InvalidInputError, match="tokens of 'object'"):
        load_tokeniser(strange, quantiser.arrays)


def test_settings_name_slots_and_kind_only_where_they_are_not_the_first():
    plain = CodebookFlags().codebook_settings
    assert not {"slots", "kind", "levels"} & plain.keys()
    several = CodebookFlags(world_slots="cell", vq_kind="residual").codebook_settings
    assert (several["slots"], several["kind"], several["levels"]) == ("cell", "residual", 2)
    assert load_quantiser(several, {"residual_centroids": np.zeros((2, 3, 4), np.float32)})
