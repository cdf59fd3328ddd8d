"""World without actions: a share of the episodes has labels, all of them have a future."""

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import assert_same_weights, log_lines, tiny_train_config, weights
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as evaluate
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.source.episodes import labelled_episodes
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run

CPU = torch.device("cpu")
HALF = {"labelled_fraction": 0.5, "seed": 3}


@pytest.fixture
def cache(tmp_path):
    return write_synthetic_cache(tmp_path / "cache", SyntheticSpec(num_episodes=24))


def episodes_of(cache):
    return FrameTensors.from_cache(cache, CPU).episodes


def labelled(cache, fraction=0.5, seed=3):
    train_ids = cache.manifest["split"]["train"]
    return labelled_episodes(episodes_of(cache), train_ids, fraction, seed)


def with_other_actions(cache, ids, folder):
    """Return the same cache with other actions in these episodes."""
    changed = write_synthetic_cache(folder, SyntheticSpec(num_episodes=24))
    actions = np.array(changed.load("actions"))
    actions[np.isin(changed.load("episode_index"), ids)] += 5
    replace_arrays(changed, {"actions": actions})
    return changed


def test_labelled_episodes_are_spread_over_the_tasks_and_a_seed_decides_them(cache):
    episodes, train_ids = episodes_of(cache), cache.manifest["split"]["train"]
    found = labelled(cache)
    assert found == labelled(cache)
    assert set(found) < set(train_ids)
    assert len(found) == round(0.5 * len(train_ids))
    tasks = episodes.tasks[episodes.positions_of(found)]
    counts = np.bincount(tasks)
    assert counts.max() - counts.min() <= 1
    assert found != labelled(cache, seed=4)
    assert labelled(cache, 1.0) == train_ids
    assert len(labelled(cache, 0.05)) == 1


@pytest.mark.parametrize("model_type", ["A", "B", "C"])
def test_actions_without_labels_change_nothing_and_those_with_labels_do(
    cache, tmp_path, model_type
):
    hidden = sorted(set(cache.manifest["split"]["train"]) - set(labelled(cache)))
    own = run(tiny_train_config(cache, tmp_path / "own", model_type, **HALF))
    for name, ids, is_same in (("hidden", hidden, True), ("shown", labelled(cache)[:1], False)):
        changed = with_other_actions(cache, ids, tmp_path / name / "cache")
        other = run(tiny_train_config(changed, tmp_path / name / "logs", model_type, **HALF))
        if is_same:
            assert_same_weights(weights(own.checkpoint), weights(other.checkpoint))
        else:
            first, second = weights(own.checkpoint), weights(other.checkpoint)
            assert not torch.equal(first["action_norm.mean"], second["action_norm.mean"])
            assert not torch.equal(first["act_queries"], second["act_queries"])


def test_the_world_is_learned_from_all_episodes(cache, tmp_path):
    hidden = sorted(set(cache.manifest["split"]["train"]) - set(labelled(cache)))
    changed = write_synthetic_cache(tmp_path / "changed", SyntheticSpec(num_episodes=24))
    tokens = np.array(changed.load("world_tokens"))
    tokens[np.isin(changed.load("episode_index"), hidden)] = 0
    replace_arrays(changed, {"world_tokens": tokens})
    first, second = (
        weights(run(tiny_train_config(one, tmp_path / name, "B", **HALF)).checkpoint)
        for name, one in (("a", cache), ("b", changed))
    )
    assert not torch.equal(first["world_head.weight"], second["world_head.weight"])


def test_statistics_of_actions_are_those_of_labelled_episodes(cache, tmp_path):
    policy = load_checkpoint(
        run(tiny_train_config(cache, tmp_path / "logs", "A", **HALF)).checkpoint, CPU
    ).build_policy(CPU)
    episode, actions = cache.load("episode_index"), np.array(cache.load("actions"))
    known = actions[np.isin(episode, labelled(cache))]
    np.testing.assert_allclose(policy.action_norm.mean, known.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(policy.action_norm.std, known.std(axis=0), rtol=1e-4)
    states = np.array(cache.load("states"))
    train = np.isin(episode, cache.manifest["split"]["train"])
    np.testing.assert_allclose(policy.state_norm.mean, states[train].mean(axis=0), atol=1e-4)


def test_a_batch_without_any_label_has_no_action_loss(cache, tmp_path):
    flags = {"labelled_fraction": 0.05, "batch_size": 4, "log_every": 1, "num_epochs": 1}
    run(tiny_train_config(cache, tmp_path / "logs", "B", **flags))
    losses = [one["action_loss"] for one in log_lines(tmp_path / "logs") if one["kind"] == "step"]
    assert 0 in losses
    assert max(losses) > 0
    assert np.isfinite(losses).all()


def test_reports_name_the_labelled_episodes_and_compare_with_their_mean_action(cache, tmp_path):
    result = run(tiny_train_config(cache, tmp_path / "logs", "A", **HALF))
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    report = evaluate(EvalOfflineConfig(checkpoint=result.checkpoint, **where))
    assert report.run["labelled_episodes"] == labelled(cache)
    hidden = sorted(set(cache.manifest["split"]["train"]) - set(labelled(cache)))
    changed = with_other_actions(cache, hidden, tmp_path / "changed")
    other = run(tiny_train_config(changed, tmp_path / "other", "A", **HALF))
    where["cache_dir"] = changed.cache_dir
    again = evaluate(EvalOfflineConfig(checkpoint=other.checkpoint, **where))
    assert again.actions["task_mean"] == report.actions["task_mean"]


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.0, r"must lie in \(0, 1\]"),
        (1.5, r"must lie in \(0, 1\]"),
        (0.001, r"--labelled_fraction 0.001 of \d+ training episodes is none; give 0.05"),
    ],
)
def test_a_fraction_that_leaves_no_episode_is_refused(cache, tmp_path, fraction, message):
    with pytest.raises(InvalidInputError, match=message):
        run(tiny_train_config(cache, tmp_path / "logs", "A", labelled_fraction=fraction))
