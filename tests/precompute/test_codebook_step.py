"""What the codebook's step reads of the embeddings, and what it refuses to."""

import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.lerobot import change_rows
from world_modality.cache.contract import sha256_of_file
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.precompute.codebook_step import StoredRows, StoredVectors, rounding_to_spread
from world_modality.precompute_world_tokens import PrecomputeConfig, codebook_advice, run
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.world_slots import slot_vectors

EMBEDDINGS = "train_embeddings.fp16.npy"
CAMERA = "observation.image"


@pytest.fixture(scope="module")
def precomputed(tmp_path_factory, precompute_config):
    config = precompute_config(tmp_path_factory.mktemp("precomputed"), vq_num_tokens=8)
    run(config)
    return config


def again(config, **changes):
    result = run(dataclasses.replace(config, **changes))
    assert "embeddings" in result.reused
    assert "codebook" not in result.reused
    return result.cache


def num_training_frames(cache):
    return int(np.isin(cache.load("episode_index"), cache.manifest["split"]["train"]).sum())


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_zero_is_all_training_frames(precomputed, backend):
    cache = again(precomputed, vq_fit_frames=0, vq_backend=backend)
    assert cache.manifest["codebook"]["fit_frames"] == num_training_frames(cache)
    with pytest.raises(InvalidInputError, match="--vq_fit_frames -1 is negative"):
        run(dataclasses.replace(precomputed, vq_fit_frames=-1))


def test_a_sample_that_memory_cannot_hold_is_refused(precomputed, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(InvalidInputError, match=r"frames of 6 numbers need .* --vq_backend torch"):
        again(precomputed, vq_num_tokens=7)
    # Blocks are small, whatever the number of frames.
    again(precomputed, vq_num_tokens=7, vq_backend="torch")


def test_the_embeddings_are_hashed_once_for_another_codebook(precomputed, monkeypatch):
    hashed = []

    def counted(path):
        hashed.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr("world_modality.cache.contract.sha256_of_file", counted)
    again(precomputed, vq_num_tokens=6)
    assert hashed.count(EMBEDDINGS) == 1


def test_stored_rows_are_the_frames_asked_for(tmp_path):
    stored = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float16)
    np.save(tmp_path / "rows.npy", stored)
    frames = np.arange(0, 5000, 2)
    rows = StoredRows(tmp_path / "rows.npy", frames)
    for indices in (np.array([2499, 0, 7]), np.arange(2500)):
        np.testing.assert_array_equal(rows[indices], stored[frames[indices]])


def test_rounding_is_noticed_where_the_spread_is_small():
    rng = np.random.default_rng(0)
    assert rounding_to_spread(rng.normal(size=(200, 8))) < 0.001
    assert rounding_to_spread(1.5 + 1e-4 * rng.normal(size=(200, 8))) > 0.5
    assert rounding_to_spread(np.ones((5, 3))) == np.inf


def test_the_rounding_estimate_is_the_rounding_error():
    embeddings = 1.5 + 0.02 * np.random.default_rng(0).normal(size=(2000, 16))
    error = np.sqrt(np.mean((embeddings - embeddings.astype(np.float16)) ** 2))
    assert rounding_to_spread(embeddings) == pytest.approx(error / 0.02, rel=0.05)


@pytest.mark.parametrize(("slots", "num_vectors"), [("view", 2), ("cell", 8)])
def test_vectors_of_views_and_cells_are_read_alone(tmp_path, slots, num_vectors):
    cells = np.random.default_rng(0).normal(size=(30, 8, 5)).astype(np.float16)
    shape = ObservationShape(5, num_views=2, grid_size=2)
    np.save(tmp_path / "cells.npy", cells)
    frames = np.array([3, 4, 11, 29])
    parts = (frames[:, None] * num_vectors + np.arange(num_vectors)).ravel()
    stored = StoredVectors(StoredRows(tmp_path / "cells.npy", parts, num_vectors), 2, slots)
    expected = slot_vectors(None, cells[frames], shape, slots).reshape(-1, 5)
    assert len(stored) == len(expected)
    for indices in (np.arange(len(expected)), np.array([5, 0, 7])):
        np.testing.assert_allclose(stored[indices], expected[indices], atol=1e-6)
    assert stored.rows[np.array([5])].shape == (1, 8 // num_vectors, 5)


def test_few_vectors_a_code_are_advised_against_and_slots_give_more_of_them():
    codebook = {"num_tokens": 8, "num_used": 8, "rounding_to_spread": 0.0, "fit_frames": 100}
    (sentence,) = codebook_advice(codebook)
    assert "the codebook has 12 training frames a code" in sentence
    assert "25 vectors" in codebook_advice({**codebook, "num_slots": 4, "levels": 2})[0]
    assert codebook_advice({**codebook, "num_slots": 4}) == []


def test_frames_that_are_all_alike_are_refused_with_the_camera(tiny_dataset, tmp_path):
    root = shutil.copytree(tiny_dataset, tmp_path / "black")
    black = io.BytesIO()
    Image.new("RGB", (40, 48)).save(black, "PNG")
    change_rows(
        root,
        lambda rows: [{**row, CAMERA: {**row[CAMERA], "bytes": black.getvalue()}} for row in rows],
    )
    config = PrecomputeConfig(
        dataset_name="local/tiny",
        dataset_root=root,
        cache_dir=tmp_path / "cache",
        vision_model_name="random-vit",
        random_vit_size="tiny",
        random_vit_image_size=28,
        vq_num_tokens=4,
        device="cpu",
    )
    with pytest.raises(InvalidInputError, match=rf"same vector .*images of {CAMERA} black"):
        run(config)
