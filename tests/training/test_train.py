import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import (
    assert_same_weights,
    log_lines,
    synthetic_tensors,
    tiny_policy_config,
    tiny_train_config,
    weights,
)
from world_modality.arms import MODEL_TYPES
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.policy.config import TrainConfig
from world_modality.policy.network import WorldPolicy
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.training.single import run
from world_modality.training.trainer import Trainer, fit_standardizers

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_each_arm_overfits_one_batch(tmp_path, model_type):
    tensors = synthetic_tensors(tmp_path)
    frames = np.arange(16)
    torch.manual_seed(0)
    policy = WorldPolicy(tiny_policy_config(model_type))
    fit_standardizers(policy, tensors, frames)
    flags = {"num_epochs": 300, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 0}
    trainer = Trainer(policy, tensors, frames, TrainConfig("x", **flags))
    losses = [next(trainer.epoch(epoch)).losses for epoch in range(300)]
    assert losses[-1].action.item() < 0.01 * losses[0].action.item()
    if model_type == "A":
        assert losses[-1].world.item() == 0
    else:
        assert losses[-1].world.item() < 0.05 * losses[0].world.item()


def test_all_arms_visit_the_same_frames_in_the_same_order(tmp_path, monkeypatch):
    tensors = synthetic_tensors(tmp_path)
    visited = {}
    for model_type in MODEL_TYPES:
        config = TrainConfig(dataset_name="x", batch_size=64, seed=3)
        policy = WorldPolicy(tiny_policy_config(model_type))
        trainer = Trainer(policy, tensors, np.arange(100, 300), config)
        seen: list[torch.Tensor] = []
        monkeypatch.setattr(trainer, "step", lambda frames, seen=seen: seen.append(frames))
        for epoch in range(2):
            list(trainer.epoch(epoch))
        visited[model_type] = torch.cat(seen).tolist()
    assert all(order == visited["A"] for order in visited.values())
    assert sorted(visited["A"][:200]) == list(range(100, 300))
    assert visited["A"][:200] != visited["A"][200:]


def test_validation_episodes_influence_neither_weights_nor_statistics(tmp_path):
    changed = write_synthetic_cache(tmp_path / "changed")
    episodes = changed.load("episode_index")
    held_out = np.isin(episodes, changed.manifest["split"]["val"])
    assert 0 < held_out.sum() < len(held_out)
    for name, value in {"embeddings": 3, "states": 3, "actions": 3, "world_tokens": 0}.items():
        array = np.array(changed.load(name))
        array[held_out] = value
        replace_arrays(changed, {name: array})
    original = write_synthetic_cache(tmp_path / "original")
    results = [
        run(tiny_train_config(cache, tmp_path / name, "C", seed=1))
        for name, cache in (("a", original), ("b", changed))
    ]
    assert_same_weights(weights(results[0].checkpoint), weights(results[1].checkpoint))
    assert results[0].metrics["val_action_mse"] != results[1].metrics["val_action_mse"]


def test_the_same_command_twice_gives_the_same_weights_and_another_seed_does_not(cache, tmp_path):
    first, again, other = (
        weights(run(tiny_train_config(cache, tmp_path / name, "C", seed=seed)).checkpoint)
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert_same_weights(first, again)
    assert not torch.equal(first["action_head.weight"], other["action_head.weight"])


def test_outputs_hold_config_metrics_events_and_a_checkpoint_per_epoch(cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "logs", "C")
    result = run(config)
    assert json.loads((config.log_dir / "config.json").read_text("utf-8"))["future_stride"] == 2
    lines = log_lines(config.log_dir)
    assert {line["kind"] for line in lines} == {"step", "epoch"}
    assert result.metrics == {k: lines[-1][k] for k in result.metrics}
    assert list(config.log_dir.glob("events.out.tfevents.*"))
    names = sorted(path.name for path in config.log_dir.glob("*.pt"))
    assert names == ["model_C_epoch0.pt", "model_C_epoch1.pt"]
    assert not list(config.log_dir.glob("*.partial"))


def test_a_checkpoint_carries_what_a_rollout_needs(cache, tmp_path):
    stored = load_checkpoint(run(tiny_train_config(cache, tmp_path / "l", "C")).checkpoint, CPU)
    np.testing.assert_array_equal(
        stored.cache_arrays["codebook_centroids"], cache.load("codebook_centroids")
    )
    assert stored.manifest == cache.manifest
    assert stored.cache_fingerprint == cache.fingerprint()
    policy = stored.build_policy(CPU)
    train = np.isin(cache.load("episode_index"), cache.manifest["split"]["train"])
    actions = np.array(cache.load("actions"))[train]
    np.testing.assert_allclose(policy.action_norm.mean, actions.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(policy.action_norm.std, actions.std(axis=0), rtol=1e-4)


def test_language_is_trained_on_and_belongs_to_the_checkpoint(tmp_path):
    cache = write_synthetic_cache(tmp_path / "cache", SyntheticSpec(instruction_dim=5))
    config = tiny_train_config(cache, tmp_path / "logs", "C", use_language=True)
    stored = load_checkpoint(run(config).checkpoint, CPU)
    assert stored.policy_config.frame.instruction_dim == 5
    stored.require_cache(cache)
    assert stored.manifest["text"]["name"] == "synthetic-text"
    instructions = np.array(cache.load("instruction_embeddings"))
    train = np.isin(cache.load("episode_index"), cache.manifest["split"]["train"])
    mean = stored.build_policy(CPU).instruction_norm.mean
    np.testing.assert_allclose(mean, instructions[train].mean(axis=0, dtype=float), atol=1e-4)
    blind = tiny_train_config(cache, tmp_path / "blind", "C")
    without = load_checkpoint(run(blind).checkpoint, CPU)
    replace_arrays(cache, {"instruction_embeddings": instructions + 1})
    without.require_cache(cache)
    with pytest.raises(InvalidInputError, match=r"another cache.*arrays differ"):
        stored.require_cache(cache)


def test_language_without_instruction_embeddings_names_the_command_that_makes_them(tmp_path):
    cache = write_synthetic_cache(tmp_path / "cache")
    with pytest.raises(MissingFileError, match=r"precompute_instruction_embeddings"):
        run(tiny_train_config(cache, tmp_path / "logs", "C", use_language=True))


def test_an_episode_shorter_than_the_context_is_refused(cache, tmp_path):
    with pytest.raises(InvalidInputError, match=r"shorter than --context_frames 20.*lower"):
        run(tiny_train_config(cache, tmp_path / "logs", "A", context_frames=20))
    assert list((tmp_path / "logs").glob("*")) == [tmp_path / "logs" / ".lock"]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_warms_up_and_follows_its_schedule(tmp_path, schedule):
    flags = {"learning_rate": 0.1, "warmup_steps": 4, "num_epochs": 2, "batch_size": 10}
    config = TrainConfig("x", lr_schedule=schedule, **flags)
    policy = WorldPolicy(tiny_policy_config("A"))
    trainer = Trainer(policy, synthetic_tensors(tmp_path), np.arange(100), config)
    rates = [trainer.learning_rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    if schedule == "constant":
        assert rates[4:] == [0.1] * 16
    else:
        assert rates[4] == pytest.approx(0.1)
        assert rates[12] == pytest.approx(0.05)
        assert all(later < earlier for earlier, later in pairwise(rates[4:]))
        assert rates[-1] < 0.002


@pytest.mark.parametrize(
    ("script", "flags", "code", "message"),
    [
        ("train_baseline_a.py", ["--model_type", "C"], 2, "invalid choice"),
        ("train_model_c.py", ["--model_type", "D"], 2, "invalid choice"),
        ("train_model_c.py", ["--no_such_flag", "1"], 2, "no_such_flag"),
        ("train_baseline_b.py", ["--world_input_scale", "0.1"], 2, "no effect on model type B"),
        ("train_model_c.py", ["--seeds", "0", "1", "0"], 2, "names 0 more than once"),
        ("train_model_c.py", ["--dataset_name", "../outside"], 1, "inside --cache_dir"),
        ("train_model_c.py", ["--num_workers", "4"], 2, "num_workers"),
        ("train_model_c.py", ["--device", "cuda"], 1, "cuda"),
        ("train_baseline_a.py", ["--log_dir", "/dev/null/logs"], 1, "Not a directory"),
    ],
)
def test_bad_command_lines_end_with_one_message(cache, script, flags, code, message):
    if flags == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("a GPU is here, so asking for it is no error")
    command = [sys.executable, str(ROOT / script), "--cache_dir", str(cache.cache_dir)]
    if "--dataset_name" not in flags:
        command += ["--dataset_name", cache.dataset_name]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_takes_no_checkpoint_is_one_message_and_leaves_nothing_half_written(
    cache, tmp_path
):
    limit_bytes = 20_000
    command = [
        *(sys.executable, "-c"),
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n",
        *(str(ROOT / "train_baseline_a.py"), "--dataset_name", cache.dataset_name),
        *("--cache_dir", str(cache.cache_dir), "--log_dir", str(tmp_path / "logs")),
        *("--num_epochs", "1", "--device", "cpu"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "error: the last checkpoint could not be written" in done.stderr
    assert "(File too large). There is no checkpoint yet; make room" in done.stderr
    assert "model_A_epoch0.pt" in done.stderr
    assert "Traceback" not in done.stderr
    left = [path.name for path in (tmp_path / "logs").iterdir()]
    assert "config.json" in left
    assert not [name for name in left if name.startswith("model_")]


def test_context_and_sizes_of_a_long_episode_cache_train_too(tmp_path):
    spec = SyntheticSpec(num_episodes=3, min_length=3, max_length=3, num_tasks=3)
    cache = write_synthetic_cache(tmp_path / "cache", spec)
    result = run(tiny_train_config(cache, tmp_path / "logs", "C", chunk_size=9, future_offset=9))
    assert np.isfinite(list(result.metrics.values())).all()
