"""How well targets beside the token are predicted: against plain loops, and in the report."""

import json

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import tiny_train_config
from world_modality.cache.contract import Cache
from world_modality.eval_offline import EvalOfflineConfig, run
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.intervention_corrupt_world import CorruptWorldConfig
from world_modality.intervention_corrupt_world import run as corrupt
from world_modality.policy.predictions import predict
from world_modality.precompute_change_tokens import ChangeTokensConfig
from world_modality.precompute_change_tokens import run as make_change_tokens
from world_modality.report import ReportConfig
from world_modality.report import run as report_on
from world_modality.training.single import run as train

TARGETS = ("embedding", "embedding_change", "change_token")
HORIZON, NUM_CHANGES = 6, 9


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    spec = SyntheticSpec(num_episodes=24, slip=0.2)
    cache = write_synthetic_cache(tmp_path_factory.mktemp("cache"), spec)
    flags = {"future_offset": 3, "future_stride": 2, "change_tokens": NUM_CHANGES}
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir}
    make_change_tokens(ChangeTokensConfig(**where, **flags, device="cpu"))
    return Cache(cache.cache_dir, cache.dataset_name)


def evaluated(cache, log_dir, model_type, **flags):
    path = train(tiny_train_config(cache, log_dir, model_type, **flags)).checkpoint
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    return path, run(EvalOfflineConfig(checkpoint=path, **where))


@pytest.fixture(scope="module")
def found(cache, tmp_path_factory):
    log_dir = tmp_path_factory.mktemp("logs")
    return evaluated(cache, log_dir, "B", world_target=TARGETS, num_epochs=4)


def opened(cache, path):
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    return OfflineRun.open(EvalOfflineConfig(checkpoint=path, **where))


def windows(cache, steps):
    """Yield each validation frame whose future lies in the episode, and its episode's start."""
    episode = cache.load("episode_index")
    for one in cache.manifest["split"]["val"]:
        frames = np.flatnonzero(episode == one)
        yield from ((int(t), int(frames[0])) for t in frames if t + steps <= frames[-1])


@pytest.mark.parametrize("target", ["embedding", "embedding_change"])
def test_errors_of_vectors_equal_a_plain_loop(cache, found, target):
    path, report = found
    evaluation = opened(cache, path)
    policy, window = evaluation.policy, evaluation.policy.config.window
    embeddings = torch.from_numpy(np.array(cache.load("embeddings"))).float()
    for row in report.futures[target]:
        squared, trivial, cosine, count = 0.0, 0.0, 0.0, 0
        steps, k = row.horizon * 2, row.horizon - 1
        for t, _ in windows(cache, steps):
            batch = evaluation.tensors.gather(torch.tensor([t]), window)
            with torch.inference_mode():
                output = policy(batch.embeddings, batch.states, batch.world_tokens)
            norm = policy.future_norm if target == "embedding" else policy.change_norm
            mean, std = (one if one.dim() == 1 else one[k] for one in (norm.mean, norm.std))
            present = embeddings[t] if target == "embedding" else torch.zeros(6)
            true = embeddings[t + steps] - (0 if target == "embedding" else embeddings[t])
            true, present = (true - mean) / std, (present - mean) / std
            predicted = output.futures[target][0, k]
            squared += (predicted - true).square().mean().item()
            trivial += (present - true).square().mean().item()
            cosine += torch.cosine_similarity(predicted, true, dim=0).item()
            count += 1
        assert row.num_frames == count
        assert row.frames_ahead == steps
        assert row.squared_error["model"].value == pytest.approx(squared / count, rel=1e-4)
        assert row.squared_error["trivial"].value == pytest.approx(trivial / count, rel=1e-4)
        assert row.cosine["model"].value == pytest.approx(cosine / count, rel=1e-3)
        assert row.r2.value == pytest.approx(1 - squared / trivial, rel=1e-3)
        assert row.r2.low <= row.r2.value <= row.r2.high
        sums = [report.episodes[f"{target}_{name}"][k] for name in ("squared", "trivial")]
        assert 1 - sum(sums[0]) / sum(sums[1]) == pytest.approx(row.r2.value, rel=1e-5)


def test_change_tokens_are_held_against_the_most_frequent_one_and_the_change_before(cache, found):
    path, report = found
    (row,) = report.futures["change_token"]
    tokens, episode = cache.load("change_tokens"), cache.load("episode_index")
    counts = np.zeros((NUM_CHANGES + 1, NUM_CHANGES))
    for one in cache.manifest["split"]["train"]:
        frames = np.flatnonzero(episode == one)
        for t in frames[:-HORIZON]:
            counts[-1, tokens[t]] += 1
            if t - HORIZON >= frames[0]:
                counts[tokens[t - HORIZON], tokens[t]] += 1
    commonest = counts[-1].argmax()
    hits = {"most_frequent_top1": 0, "bigram_top1": 0}
    seen = list(windows(cache, HORIZON))
    for t, start in seen:
        hits["most_frequent_top1"] += tokens[t] == commonest
        if t - HORIZON < start:
            hits["bigram_top1"] += tokens[t] == commonest
            continue
        source = tokens[t - HORIZON]
        # Equal counts: the same change again, then the more frequent one.
        successors = counts[:-1].sum(axis=0)
        scores = counts[source] + 0.4 * successors / successors.sum()
        scores[source] += 0.5
        hits["bigram_top1"] += tokens[t] == scores.argmax()
    assert (row.num_frames, row.frames_ahead) == (len(seen), HORIZON)
    accuracy = {name: interval.value for name, interval in row.accuracy.items()}
    assert accuracy["most_frequent_top1"] == pytest.approx(hits["most_frequent_top1"] / len(seen))
    assert accuracy["bigram_top1"] == pytest.approx(hits["bigram_top1"] / len(seen))
    errors = predict(*(lambda o: (o.policy, o.tensors, o.val_frames))(opened(cache, path)))
    assert accuracy["model_top1"] == pytest.approx(
        (errors.change_rank == 0).sum() / (errors.change_rank >= 0).sum()
    )


def test_a_policy_without_tokens_has_no_token_accuracy_and_metrics_name_its_targets(found):
    path, report = found
    assert report.world is None
    lines = (path.parent / "metrics.jsonl").read_text("utf-8").splitlines()
    last = json.loads(lines[-1])
    assert {"train_embedding_loss", "val_embedding_r2", "val_change_token_top1"} <= last.keys()
    assert "val_world_top1" not in last


def test_the_true_future_is_a_predictor_of_its_own_where_actions_attend_to_it(cache, tmp_path):
    _, report = evaluated(cache, tmp_path / "b", "B", future_to_action=True)
    own, shown = (report.actions[name]["mse"].value for name in ("model", "true_future"))
    assert own != shown
    counts = sum(report.episodes["num_steps"])
    assert sum(report.episodes["true_future_squared_error_sum"]) / counts == pytest.approx(shown)
    _, oracle = evaluated(cache, tmp_path / "c", "C", future_to_action=True, token_control="oracle")
    assert "true_future" not in oracle.actions, "it reads nothing else"


@pytest.mark.parametrize("target", ["embedding", "change_token"])
def test_an_oracle_that_reads_no_token_is_corrupted_by_none(cache, tmp_path, target):
    flags = {"world_target": (target,), "token_control": "oracle"}
    path, _ = evaluated(cache, tmp_path / "c", "C", **flags)
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    result = corrupt(CorruptWorldConfig(checkpoint=path, num_draws=1, **where))
    assert all(effect.ratio.value == 1 for effect in result.corruptions.values())


def test_the_report_compares_targets_and_labels_oracles_first(cache, tmp_path):
    runs = tmp_path / "runs"
    for name, model_type, flags in (
        ("a", "A", {}),
        ("b", "B", {"world_target": ("change_token",)}),
        ("c", "C", {"world_target": ("change_token",)}),
        ("o", "C", {"world_target": ("change_token",), "token_control": "oracle"}),
        ("f", "B", {"world_target": ("change_token",), "future_to_action": True}),
        ("ah", "A", {"labelled_fraction": 0.5}),
        ("bh", "B", {"labelled_fraction": 0.5}),
    ):
        for seed in (0, 1):
            log_dir = runs / f"{name}_{seed}"
            evaluated(cache, log_dir, model_type, seed=seed, num_epochs=1, **flags)
    document = report_on(ReportConfig((runs,), tmp_path / "report"))
    tables = {block.name: block for block in document.blocks() if hasattr(block, "header")}
    rows = [row[:3] for row in tables["targets"].rows]
    assert rows[0] == ("change_token", "100 %", "C_oracle − C")
    assert ("change_token", "100 %", "B − A") in rows
    assert ("change_token", "100 %", "B (future_to_action True) − B") in rows
    assert ("token", "50 %", "B − A") in rows
    assert tables["true_future"].rows[0][2] == "B (future_to_action True)"
    fits = tables["target_fits"].rows
    assert {row[3] for row in fits} == {"change_token (top-1, %)"}
    assert all("bigram" in row[-1] for row in fits)
