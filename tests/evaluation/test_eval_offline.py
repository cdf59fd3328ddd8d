import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import tiny_train_config
from world_modality.eval_offline import EvalOfflineConfig, run
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.predictions import predict, token_rank
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run as train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a cache and a checkpoint per arm."""
    folder = tmp_path_factory.mktemp("trained")
    spec = SyntheticSpec(num_episodes=30, slip=0.2, stand_in_note="a stand-in, no DINOv2 result")
    cache = write_synthetic_cache(folder / "cache", spec)
    paths = {
        arm: train(tiny_train_config(cache, folder / arm, arm, num_epochs=4)).checkpoint
        for arm in ("A", "C")
    }
    return cache, paths


def config(trained, arm, out_dir):
    cache, paths = trained
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "out_dir": out_dir}
    return EvalOfflineConfig(checkpoint=paths[arm], device="cpu", **where)


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    return run(config(trained, "C", tmp_path_factory.mktemp("report")))


def plain_windows(cache):
    """Yield (frame, episode's first frame, one past its last) for each validation frame."""
    episode_index = cache.load("episode_index")
    for episode in cache.manifest["split"]["val"]:
        frames = np.flatnonzero(episode_index == episode)
        for frame in frames:
            yield int(frame), int(frames[0]), int(frames[-1]) + 1


def test_each_episode_has_its_task(trained, report):
    cache, _ = trained
    tasks, episodes = cache.load("task_index"), cache.load("episode_index")
    assert len(report.episodes["task_index"]) == len(report.episodes["episode_index"])
    for episode, task in zip(
        report.episodes["episode_index"], report.episodes["task_index"], strict=True
    ):
        assert set(tasks[episodes == episode]) == {task}


@pytest.fixture(scope="module")
def plain_outputs(trained):
    """Return frame, one past its episode's last, and what C predicts there, frame by frame."""
    cache, _ = trained
    policy = OfflineRun.open(config(trained, "C", None)).policy
    names = ("embeddings", "states", "world_tokens")
    embeddings, states, tokens = (torch.from_numpy(np.array(cache.load(name))) for name in names)
    outputs = []
    for t, start, end in plain_windows(cache):
        context = [max(start, t - 1), t]
        with torch.no_grad():
            output = policy(embeddings[context][None], states[context][None], tokens[[t]])
        outputs.append((t, end, output))
    return policy, outputs


def test_action_errors_equal_a_plain_loop(trained, report, plain_outputs):
    cache, _ = trained
    policy, outputs = plain_outputs
    actions = np.array(cache.load("actions"), dtype=np.float64)
    std = policy.action_norm.std.numpy()
    total, raw_total, count = 0.0, 0.0, 0
    per_step = np.zeros((4, 2))
    for t, end, output in outputs:
        predicted = policy.action_norm.inverse(output.actions)[0].numpy()
        for h in range(4):
            if t + h < end:
                error = predicted[h] - actions[t + h]
                per_step[h] += ((error / std) ** 2).mean(), 1
                total += ((error / std) ** 2).mean()
                raw_total += (error**2).mean()
                count += 1
    model = report.actions["model"]
    assert model["mse"].value == pytest.approx(total / count, rel=1e-4)
    assert model["mse_raw"].value == pytest.approx(raw_total / count, rel=1e-4)
    assert model["mse_per_step"] == pytest.approx(per_step[:, 0] / per_step[:, 1], rel=1e-4)


def test_trivial_predictors_equal_a_plain_loop(trained, report):
    cache, _ = trained
    actions = np.array(cache.load("actions"), dtype=np.float64)
    tasks, episodes = cache.load("task_index"), cache.load("episode_index")
    train = np.isin(episodes, cache.manifest["split"]["train"])
    mean = {task: actions[train & (tasks == task)].mean(axis=0) for task in np.unique(tasks)}
    totals = {"task_mean": 0.0, "last_action": 0.0}
    count = 0
    for t, start, end in plain_windows(cache):
        held = {
            "task_mean": mean[tasks[t]],
            "last_action": actions[t - 1] if t > start else mean[tasks[t]],
        }
        for h in range(min(4, end - t)):
            count += 1
            for name in totals:
                totals[name] += ((held[name] - actions[t + h]) ** 2).mean()
    for name, total in totals.items():
        assert report.actions[name]["mse_raw"].value == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("subset", ["all", "changed"])
def test_token_accuracies_equal_a_plain_loop(trained, report, plain_outputs, subset):
    cache, _ = trained
    tokens = cache.load("world_tokens")
    for row in report.world[subset]:
        hits = {"model_top1": 0, "model_top5": 0, "copy_top1": 0}
        count = 0
        for t, end, output in plain_outputs[1]:
            ahead = t + row.frames_ahead
            if ahead >= end or (subset == "changed" and tokens[ahead] == tokens[t]):
                continue
            count += 1
            logits = output.world_logits[0, row.horizon - 1]
            best = logits.argsort(descending=True).tolist()
            hits["model_top1"] += best[0] == tokens[ahead]
            hits["model_top5"] += tokens[ahead] in best[:5]
            hits["copy_top1"] += tokens[t] == tokens[ahead]
        assert row.frames_ahead == row.horizon * 2
        assert row.num_frames == count
        for name, number in hits.items():
            assert row.accuracy[name].value == pytest.approx(number / count)


@pytest.mark.parametrize("subset", ["all", "changed"])
def test_token_hits_of_the_episodes_add_up_to_the_accuracies(report, subset):
    hits, frames = (report.episodes[f"top1_{kind}_{subset}"] for kind in ("hits", "frames"))
    for row, hit, counted in zip(report.world[subset], hits, frames, strict=True):
        assert sum(counted) == row.num_frames
        assert sum(hit) / sum(counted) == pytest.approx(row.accuracy["model_top1"].value)


def test_copying_is_wrong_where_the_token_changes_and_the_planted_walk_beats_it(report):
    assert all(row.accuracy["copy_top1"].value == 0 for row in report.world["changed"])
    # Two frames on each token: two frames ahead the walk is one token further.
    first = report.world["all"][0]
    assert first.accuracy["bigram_top1"].value > 0.5 > first.accuracy["copy_top1"].value
    gain = first.accuracy["model_top1"].value - first.accuracy["bigram_top1"].value
    assert first.model_minus_bigram.value == pytest.approx(gain)
    # The bigram that is told of the change never copies a token that it has seen move.
    for row in report.world["changed"]:
        accuracy = row.accuracy
        assert accuracy["change_bigram_top1"].value >= accuracy["bigram_top1"].value
    assert report.world["changed"][0].accuracy["change_bigram_top1"].value > 0.5


def test_rank_counts_better_tokens_and_gives_equal_ratings_no_credit():
    logits = torch.tensor([[[0.1, 0.9, 0.5], [2.0, 2.0, 2.0]]])
    assert token_rank(logits, torch.tensor([[2, 2]])).tolist() == [[1, 2]]
    assert token_rank(logits, torch.tensor([[1, -100]])).tolist() == [[0, -1]]


def test_predicting_leaves_the_policys_mode_alone_and_uses_no_dropout(trained):
    opened = OfflineRun.open(config(trained, "C", None))
    opened.policy.train()
    first = predict(opened.policy, opened.tensors, opened.val_frames)
    second = predict(opened.policy, opened.tensors, opened.val_frames)
    assert opened.policy.training
    np.testing.assert_array_equal(first.squared_error, second.squared_error)


def test_through_the_command_line_with_the_documented_flags(trained, tmp_path):
    cache, paths = trained
    command = [sys.executable, "-m", "world_modality.eval_offline"]
    command += ["--checkpoint", str(paths["A"]), "--dataset_name", cache.dataset_name]
    command += ["--cache_dir", str(cache.cache_dir), "--out_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training mean of the task" in done.stdout
    assert "arm A predicts none" in done.stdout
    assert "a stand-in, no DINOv2 result" in done.stdout
    report = json.loads((tmp_path / "eval_offline.json").read_text("utf-8"))
    assert report["world"] is None
    interval = report["actions"]["model"]["mse"]
    assert interval["low"] <= interval["value"] <= interval["high"]
    assert (tmp_path / "eval_offline.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_another_cache_is_refused(trained, tmp_path):
    _, paths = trained
    other = write_synthetic_cache(tmp_path / "cache", SyntheticSpec(num_episodes=30, seed=9))
    with pytest.raises(InvalidInputError, match=r"trained on another cache.*split, arrays differ"):
        run(config((other, paths), "C", None))
