"""What the codebook's step reads of the embeddings, and what it refuses to."""

import dataclasses

import numpy as np
import pytest

from world_modality.cache.contract import sha256_of_file
from world_modality.precompute.codebook_step import StoredRows, rounding_to_spread
from world_modality.precompute_world_tokens import run
from world_modality.system.errors import InvalidInputError

EMBEDDINGS = "train_embeddings.fp16.npy"


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
