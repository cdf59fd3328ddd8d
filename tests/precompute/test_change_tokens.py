"""Change tokens: what they are tokens of, who reads them, and what is refused."""

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import tiny_train_config
from world_modality.cache.contract import Cache
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.precompute_change_tokens import ChangeTokensConfig, run
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.training.single import run as train

HORIZON = 6


def config(cache, **changes):
    flags = {"future_offset": 3, "future_stride": 2, "change_tokens": 10, "device": "cpu"}
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir}
    return ChangeTokensConfig(**where, **(flags | changes))


def reopened(cache):
    return Cache(cache.cache_dir, cache.dataset_name)


@pytest.fixture
def cache(tmp_path):
    return write_synthetic_cache(tmp_path / "cache", SyntheticSpec(slip=0.2))


def test_each_token_is_the_centroid_nearest_to_the_change_up_to_the_horizon(cache):
    run(config(cache))
    again = reopened(cache)
    tokens, centroids = (again.load(f"change_{name}") for name in ("tokens", "centroids"))
    embeddings = np.array(again.load("embeddings"), dtype=np.float32)
    episode = again.load("episode_index")
    for frame in range(0, len(tokens), 7):
        last = int(np.flatnonzero(episode == episode[frame])[-1])
        change = embeddings[min(frame + HORIZON, last)] - embeddings[frame]
        distances = ((centroids - change) ** 2).sum(axis=1)
        assert distances[tokens[frame]] == pytest.approx(distances.min(), abs=1e-4)
    section = again.manifest["change_codebook"]
    assert (section["horizon"], section["num_tokens"]) == (HORIZON, 10)
    assert 0 < section["explained_variance"] < 1


def test_the_codebook_of_changes_is_fitted_to_training_episodes_alone(cache, tmp_path):
    changed = write_synthetic_cache(tmp_path / "changed", SyntheticSpec(slip=0.2))
    array = np.array(changed.load("embeddings"))
    held_out = np.isin(changed.load("episode_index"), changed.manifest["split"]["val"])
    array[held_out] = np.random.default_rng(1).normal(size=array[held_out].shape)
    replace_arrays(changed, {"embeddings": array})
    found = []
    for one in (cache, changed):
        run(config(one))
        found.append(reopened(one).load("change_centroids"))
    np.testing.assert_array_equal(*found)


def test_the_same_flags_keep_what_is_there_and_others_write_it_again(cache):
    assert not run(config(cache)).was_done
    assert run(config(reopened(cache))).was_done
    assert not run(config(reopened(cache), change_tokens=5)).was_done
    assert reopened(cache).load("change_centroids").shape == (5, 6)


def test_checkpoints_of_other_targets_stay_valid_and_hold_no_codebook_of_changes(cache, tmp_path):
    before = load_checkpoint(
        train(tiny_train_config(cache, tmp_path / "b", "B", num_epochs=1)).checkpoint,
        torch.device("cpu"),
    )
    run(config(cache))
    before.require_cache(reopened(cache))
    flags = {"world_target": ("change_token",), "num_epochs": 1}
    path = train(tiny_train_config(reopened(cache), tmp_path / "c", "B", **flags)).checkpoint
    after = load_checkpoint(path, torch.device("cpu"))
    assert after.cache_arrays.keys() == before.cache_arrays.keys()
    after.require_cache(reopened(cache))
    run(config(reopened(cache), seed=1))
    with pytest.raises(InvalidInputError, match=r"other change tokens.*precompute_change_tokens"):
        after.require_cache(reopened(cache))
    before.require_cache(reopened(cache))


def test_a_target_whose_array_is_not_there_names_the_command_that_makes_it(cache, tmp_path):
    asked = tiny_train_config(cache, tmp_path / "logs", "B", world_target=("change_token",))
    with pytest.raises(
        MissingFileError,
        match=r"precompute_change_tokens --dataset_name synthetic/demo .*--future_offset 3 "
        "--future_stride 2",
    ):
        train(asked)


def test_changes_over_another_horizon_or_of_other_embeddings_are_refused(cache, tmp_path):
    run(config(cache))
    target = {"world_target": ("change_token",)}
    with pytest.raises(InvalidInputError, match=r"over 6 frames, but .*asks for 3"):
        train(tiny_train_config(cache, tmp_path / "a", "B", future_stride=1, **target))
    replace_arrays(cache, {"embeddings": np.array(cache.load("embeddings")) * 2})
    with pytest.raises(InvalidInputError, match="made before its embeddings"):
        train(tiny_train_config(reopened(cache), tmp_path / "b", "B", **target))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"future_offset": 40},
            r"more than the 0 changes over 80 .*or the horizon",
        ),
        ({"change_tokens": 5000}, r"--change_tokens 5000 is more than the \d+ changes"),
        ({"change_tokens": 0}, "--change_tokens must be at least 1"),
    ],
)
def test_a_codebook_of_changes_that_cannot_be_fitted_is_refused(cache, flags, message):
    with pytest.raises(InvalidInputError, match=message):
        run(config(cache, **flags))
