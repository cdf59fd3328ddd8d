"""The arm that reads the simulator's true state as a token."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as evaluate
from world_modality.export.policy_record import require_readable_token
from world_modality.intervention_corrupt_world import CorruptWorldConfig
from world_modality.intervention_corrupt_world import run as corrupt
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.privileged_tokens import PrivilegedCodebook
from world_modality.training.side_by_side import train_seeds
from world_modality.training.single import open_run, run

CPU = torch.device("cpu")
SPEC = SyntheticSpec(environment_dim=5)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_synthetic_cache(tmp_path_factory.mktemp("cache"), SPEC)


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return run(tiny_train_config(cache, folder, "C", token_control="privileged"))


def test_the_codebook_is_of_training_episodes_and_the_same_again(cache, tmp_path):
    codebook = PrivilegedCodebook.of_cache(cache)
    held_out = np.isin(cache.load("episode_index"), cache.manifest["split"]["val"])
    states = np.array(cache.load("environment_states"))
    again = PrivilegedCodebook.fit(states[~held_out], cache.num_tokens)
    for name, array in codebook.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name])
    assert codebook.centroids.shape == (cache.num_tokens, 5)
    tokens = codebook.tokens(cache)
    assert len(np.unique(tokens)) == cache.num_tokens
    standardised = (states - states[~held_out].mean(0)) / states[~held_out].std(0)
    distances = ((standardised[:, None] - codebook.centroids) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) == tokens).mean() > 0.99


def test_the_jitter_of_what_stands_still_is_not_made_as_loud_as_a_motion():
    rng = np.random.default_rng(0)
    place = np.repeat([0.0, 0.1, 0.2, 0.3], 50)
    still = 0.6 + 1e-6 * rng.normal(size=(200, 12))
    states = np.column_stack([place, still, np.zeros((200, 3))]).astype(np.float32)
    tokens = PrivilegedCodebook.fit(states, 4).encode(states)
    assert len({tuple(np.unique(tokens[place == one])) for one in np.unique(place)}) == 4
    nothing_moves = np.full((20, 3), 0.5, np.float32)
    assert np.isfinite(PrivilegedCodebook.fit(nothing_moves, 2).scale).all()


def test_only_what_is_read_differs_from_arm_c(cache, trained, tmp_path):
    own = open_run(tiny_train_config(cache, tmp_path / "c", "C"), tensors_of(cache), None).trainer
    config = tiny_train_config(cache, tmp_path / "p", "C", token_control="privileged")
    told = open_run(config, tensors_of(cache), None).trainer
    assert_same_weights(own.policy.state_dict(), told.policy.state_dict())
    frames = torch.arange(60)
    batches = [one.control.gather(frames, one.window_shape, 0).tensors() for one in (own, told)]
    changed = {name for name, one in batches[0].items() if not torch.equal(one, batches[1][name])}
    assert changed == {"world_tokens"}
    expected = PrivilegedCodebook.of_cache(cache).tokens(cache)[:60]
    assert batches[1]["world_tokens"].tolist() == expected.tolist()


def tensors_of(cache):
    return FrameTensors.from_cache(cache, CPU)


def test_its_checkpoint_carries_its_codebook_and_counts_its_own_tokens(cache, trained):
    stored = load_checkpoint(trained.checkpoint, CPU)
    arrays = {name: one.numpy() for name, one in stored.cache_arrays.items()}
    codebook = PrivilegedCodebook.from_arrays(arrays)
    tokens = codebook.tokens(cache)
    is_trained = ~np.isin(cache.load("episode_index"), cache.manifest["split"]["val"])
    counts = np.bincount(tokens[is_trained], minlength=cache.num_tokens)
    assert arrays["train_token_counts"].sum(axis=0).tolist() == counts.tolist()
    assert np.bincount(arrays["train_stream_tokens"]).tolist() == counts.tolist()
    with pytest.raises(InvalidInputError, match="lacks the codebook of the true state"):
        PrivilegedCodebook.from_arrays({"world_tokens": tokens})


def test_it_is_evaluated_with_what_it_was_trained_on_and_corrupting_that_matters(
    cache, trained, tmp_path
):
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    report = evaluate(EvalOfflineConfig(trained.checkpoint, **where))
    assert report.run["token_control"] == "privileged"
    assert report.actions["model"]["mse"].value == pytest.approx(
        trained.metrics["val_action_mse"], rel=1e-5
    )
    config = CorruptWorldConfig(trained.checkpoint, out_dir=tmp_path, num_draws=2, **where)
    effects = corrupt(config).corruptions
    assert effects["task_shuffle"].ratio.value != 1
    tokens = PrivilegedCodebook.of_cache(cache).tokens(cache)
    is_held_out = np.isin(cache.load("episode_index"), cache.manifest["split"]["val"])
    stale = np.concatenate(
        [
            one[np.maximum(np.arange(len(one)) - 1, 0)] != one
            for episode in cache.manifest["split"]["val"]
            for one in [tokens[cache.load("episode_index") == episode]]
        ]
    )
    assert len(stale) == is_held_out.sum()
    assert effects["stale:1"].changed_tokens == pytest.approx(stale.mean())


def test_several_tokens_of_a_frame_are_all_the_one_of_its_state(tmp_path):
    several = write_synthetic_cache(tmp_path / "cache", SPEC)
    one = several.load("world_tokens")
    codebook = {**several.manifest["codebook"], "num_slots": 3}
    tokens = np.stack([one, one[::-1], 7 - one], axis=1)
    replace_arrays(several, {"world_tokens": tokens}, {"codebook": codebook})
    several = Cache(several.cache_dir, several.dataset_name)
    config = tiny_train_config(several, tmp_path / "log", "C", token_control="privileged")
    trainer = open_run(config, tensors_of(several), None).trainer
    batch = trainer.control.gather(torch.arange(60), trainer.window_shape, 0)
    own = PrivilegedCodebook.of_cache(several).tokens(several)[:60]
    assert own.shape == (60, 3)
    assert batch.world_tokens.tolist() == own.tolist()
    assert (own == own[:, :1]).all()


def test_seeds_side_by_side_have_one_codebook(cache, tmp_path, trained):
    config = tiny_train_config(cache, tmp_path / "seeds", "C", token_control="privileged")
    seeds = [
        dataclasses.replace(config, seed=seed, log_dir=tmp_path / f"seed_{seed}") for seed in (0, 1)
    ]
    results = train_seeds(seeds)
    assert_same_weights(weights(results[0].checkpoint), weights(trained.checkpoint))
    first, second = (load_checkpoint(one.checkpoint, CPU).cache_arrays for one in results)
    assert torch.equal(first["privileged_centroids"], second["privileged_centroids"])


def test_a_resumed_run_keeps_its_codebook(cache, tmp_path, trained, monkeypatch):
    config = tiny_train_config(cache, tmp_path / "parts", "C", token_control="privileged")
    run(config).checkpoint.unlink()
    monkeypatch.setattr(PrivilegedCodebook, "of_cache", None)
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(resumed.checkpoint), weights(trained.checkpoint))


def test_a_cache_without_the_true_state_is_refused_with_what_mends_it(tmp_path):
    without = write_synthetic_cache(tmp_path / "cache")
    with pytest.raises(InvalidInputError, match=r"no environment_states.*collect_demos"):
        run(tiny_train_config(without, tmp_path / "log", "C", token_control="privileged"))


def test_a_state_of_another_suite_is_refused(cache):
    with pytest.raises(InvalidInputError, match="has 4 numbers, but the policy was trained on 5"):
        PrivilegedCodebook.of_cache(cache).encode(np.zeros((2, 4), np.float32))


def test_lerobots_loop_does_not_have_the_true_state():
    with pytest.raises(InvalidInputError, match="reads the simulator's true state"):
        require_readable_token("privileged")
