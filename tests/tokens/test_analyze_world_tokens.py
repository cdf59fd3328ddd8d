"""The analysis stage: its command line, its advice, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures.cache import (
    DATASET_NAME,
    SyntheticSpec,
    replace_arrays,
    synthetic_arrays,
    write_synthetic_cache,
)
from world_modality.analyze_world_tokens import AnalyzeConfig, run
from world_modality.cache.contract import Cache
from world_modality.statistics.intervals import Interval
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.tokens.analysis import RULES, advice, analyze_cache
from world_modality.tokens.analysis_report import report_json, report_text

SPEC = SyntheticSpec(
    num_episodes=20,
    min_length=20,
    max_length=40,
    environment_dim=3,
    dwell=5,
    stand_in_note="STAND-IN encoder, never a DINOv2 result",
)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "world_modality.analyze_world_tokens", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_synthetic_cache(folder, SPEC)
    return folder


@pytest.fixture(scope="module")
def analysis(cache_dir):
    return analyze_cache(Cache(cache_dir, DATASET_NAME), 3, 1000, 0)


def test_the_documented_command_writes_report_json_and_plot(cache_dir):
    done = command(
        "--dataset_name", DATASET_NAME, "--cache_dir", cache_dir, "--split", "train", "--max_k", 8
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out_dir = cache_dir / DATASET_NAME / "analysis"
    written = {p.name for p in out_dir.iterdir()}
    assert written == {".lock", "analysis.json", "analysis.png", "config.json"}
    assert (out_dir / "analysis.png").read_bytes().startswith(b"\x89PNG")
    content = json.loads((out_dir / "analysis.json").read_text("utf-8"))
    assert content["encoder_note"] == SPEC.stand_in_note
    assert [scores["steps"] for scores in content["horizons"]] == list(range(1, 9))
    copy = content["horizons"][0]["all_pairs"]["copy"]
    assert 0.75 < copy["low"] <= copy["value"] <= copy["high"] < 0.85
    assert content["train_dwell"]["seconds"] == pytest.approx(0.5, abs=0.06)
    assert content["probes"]["environment_states"]["embedding"]["mean"]["value"] > 0.99
    assert json.loads((out_dir / "config.json").read_text("utf-8"))["max_k"] == 8
    assert content["probes"]["states"]["embedding_within_task"]["mean"]["value"] > 0.9
    assert "slot" not in content
    for expected in ("NOTE: STAND-IN", "perplexity", "object_2", "by construction", "Advice"):
        assert expected in done.stdout
    assert content["advice"][0]["text"] in done.stdout


def test_the_same_seed_gives_the_same_figures(cache_dir, analysis):
    cache = Cache(cache_dir, DATASET_NAME)
    again, other = (analyze_cache(cache, 3, 1000, seed) for seed in (0, 1))
    assert report_json(again, []) == report_json(analysis, []) != report_json(other, [])


def test_the_subsample_of_the_probe_is_bounded_and_reported(cache_dir):
    small = analyze_cache(Cache(cache_dir, DATASET_NAME), 1, 60, 0)
    probe = small.probes["states"]
    assert (probe.num_train_frames, probe.num_val_frames) == (60, 60)
    assert "(60 training, 60 validation frames)" in report_text(small, [])


def test_long_horizons_and_missing_extras_are_reported_as_such(tmp_path, capsys):
    spec = SyntheticSpec(num_episodes=4, num_tasks=1, min_length=5, max_length=6)
    cache = write_synthetic_cache(tmp_path, spec)
    arrays = synthetic_arrays(spec)
    manifest = json.loads(cache.manifest_path.read_text("utf-8"))
    dataset = {**manifest["dataset"], "fps": None}
    still = np.ones_like(arrays["states"])
    tokens = np.zeros_like(arrays["world_tokens"])
    replace_arrays(cache, {"states": still, "world_tokens": tokens}, {"dataset": dataset})
    result = run(AnalyzeConfig(DATASET_NAME, tmp_path, max_k=9))
    text = capsys.readouterr().out
    for expected in ("fps unknown", "no dimension varies", "never changes", "n/a"):
        assert expected in text
    content = json.loads(result.json_path.read_text("utf-8"))
    assert content["horizons"][8]["all_pairs"]["copy"]["value"] is None
    assert content["probes"] == {"states": None}
    assert "nothing to predict" in dict(result.advice)["mostly_repeats"]


def test_validation_tokens_change_no_figure_of_training(cache_dir, tmp_path, analysis):
    cache = write_synthetic_cache(tmp_path, SPEC)
    tokens = synthetic_arrays(SPEC)["world_tokens"]
    held_out = np.isin(synthetic_arrays(SPEC)["episode_index"], cache.manifest["split"]["val"])
    replace_arrays(cache, {"world_tokens": np.where(held_out, 0, tokens).astype(np.int32)})
    changed = analyze_cache(Cache(tmp_path, DATASET_NAME), 3, 1000, 0)
    for name in ("train_dwell", "task", "phase"):
        assert getattr(changed, name) == getattr(analysis, name)
    np.testing.assert_array_equal(changed.phase_counts, analysis.phase_counts)
    assert changed.val_usage.num_used == 1 < analysis.val_usage.num_used


def with_accuracy(analysis, **values):
    scores = analysis.horizons[0]
    intervals = {name: Interval(value, None, None, 1) for name, value in values.items()}
    first = dataclasses.replace(scores, all_pairs={**scores.all_pairs, **intervals})
    return dataclasses.replace(analysis, horizons=[first, *analysis.horizons[1:]])


def with_probe(analysis, embedding, token):
    """Return it with these R² within a task, and good ones over all tasks."""
    probe = analysis.probes["environment_states"]
    values = {"embedding_within_task": embedding, "token_within_task": token}
    values |= {"embedding": 0.94, "token": 0.93, "task_mean": 0.82}
    scores = {
        name: dataclasses.replace(getattr(probe, name), mean=Interval(value, None, None, 1))
        for name, value in values.items()
    }
    probe = dataclasses.replace(probe, **scores)
    return dataclasses.replace(analysis, probes={"environment_states": probe})


def with_usage(analysis, num_used, perplexity):
    usage = dataclasses.replace(analysis.train_usage, num_used=num_used, perplexity=perplexity)
    return dataclasses.replace(analysis, train_usage=usage)


def with_task_share(analysis, share):
    return dataclasses.replace(
        analysis, task=dataclasses.replace(analysis.task, excess_share=share)
    )


CASES = {
    "too_noisy": (
        lambda a: with_accuracy(a, copy=0.03, bigram_top1=0.04, marginal=0.02),
        lambda a: with_accuracy(a, copy=0.03, bigram_top1=0.3, marginal=0.02),
        ("0.030", "0.040", "try --l2_normalize", "--vq_num_tokens (now 8", "--future_offset 1"),
    ),
    "mostly_repeats": (
        lambda a: with_accuracy(a, copy=0.8),
        lambda a: with_accuracy(a, copy=0.4),
        ("80%", "--future_stride 2", "frames where the token changes"),
    ),
    "few_codes": (
        lambda a: with_usage(a, 3, 2.6),
        lambda a: with_usage(a, 8, 7.9),
        ("3 of 8 codes", "2.6", "about 3"),
    ),
    "encoder_blind": (
        lambda a: with_probe(a, 0.2, 0.2),
        lambda a: with_probe(a, 0.9, 0.9),
        ("R² 0.20", "over all tasks 0.94", "mean alone gives 0.82", "--vision_model_name"),
    ),
    "quantization_coarse": (
        lambda a: with_probe(a, 0.9, 0.4),
        lambda a: with_probe(a, 0.9, 0.8),
        ("R² 0.90", "0.40", "--vq_num_tokens 16"),
    ),
    "tells_task": (
        lambda a: with_task_share(a, 0.8),
        lambda a: with_task_share(a, None),
        ("80%", "instruction"),
    ),
}


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("name", CASES)
def test_each_rule_speaks_where_it_applies_with_the_numbers_and_only_there(analysis, name):
    applying, silent, expected = CASES[name]
    sentence = dict(advice(applying(analysis)))[name]
    for part in expected:
        assert part in sentence
    assert name not in dict(advice(silent(analysis)))


def test_l2_normalize_is_not_advised_where_it_is_on(analysis):
    noisy = with_accuracy(analysis, copy=0.0, bigram_top1=0.0)
    sentence = dict(advice(dataclasses.replace(noisy, l2_normalize=True)))["too_noisy"]
    assert "l2_normalize" not in sentence


def test_good_tokens_get_no_complaint(analysis):
    good = with_task_share(with_probe(with_accuracy(analysis, copy=0.4), 0.9, 0.9), 0.1)
    assert [rule for rule, _ in advice(with_usage(good, 8, 7.9))] == ["fine"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset_name": "../x"}, "--dataset_name"),
        ({"dataset_name": "/etc"}, "--dataset_name"),
        ({"dataset_name": ""}, "--dataset_name"),
        ({"dataset_name": "no/such"}, "precompute_world_tokens --dataset_name no/such"),
        ({"max_k": 0}, "--max_k must be at least 1"),
        ({"max_probe_frames": 0}, "--max_probe_frames must be at least 1"),
        ({"split": "../train"}, "--split"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(cache_dir, tmp_path, values, message):
    config = AnalyzeConfig(DATASET_NAME, cache_dir, out_dir=tmp_path / "out")
    with pytest.raises((InvalidInputError, MissingFileError), match=message):
        run(dataclasses.replace(config, **values))
    assert not (tmp_path / "out").exists()


def test_a_mistake_of_the_user_ends_with_one_message_and_exit_code_1(cache_dir):
    done = command("--dataset_name", "../x", "--cache_dir", cache_dir)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: --dataset_name '../x' does not name a folder inside")
    assert done.stderr.count("\n") == 1


def test_a_damaged_array_or_a_foreign_split_is_refused(tmp_path):
    cache = write_synthetic_cache(tmp_path, SPEC)
    config = AnalyzeConfig(DATASET_NAME, tmp_path, max_k=1)
    manifest = cache.manifest
    for change, message in (
        ({"val": manifest["split"]["val"][:-1]}, "each episode of the arrays exactly once"),
        ({"train": list(range(20)), "val": []}, "20 training and 0 validation episodes"),
    ):
        broken = {**manifest, "split": {**manifest["split"], **change}}
        cache.manifest_path.write_text(json.dumps(broken))
        with pytest.raises(InvalidInputError, match=message):
            run(config)
    cache.manifest_path.write_text(
        json.dumps({name: value for name, value in manifest.items() if name != "codebook"})
    )
    with pytest.raises(InvalidInputError, match="codebook of None tokens"):
        run(config)
    cache.manifest_path.write_text(json.dumps(manifest))
    cache.array_path("states").unlink()
    with pytest.raises(MissingFileError, match="states is missing"):
        run(config)


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    cache = write_synthetic_cache(tmp_path, SPEC)
    embeddings = synthetic_arrays(SPEC)["embeddings"]
    embeddings[5, 0] = np.nan
    replace_arrays(cache, {"embeddings": embeddings})
    with pytest.raises(InvalidInputError, match=r"embeddings .*NaN.*precompute_world_tokens"):
        run(AnalyzeConfig(DATASET_NAME, tmp_path, max_k=1))


def test_names_that_do_not_fit_the_dimensions_are_refused(tmp_path):
    cache = write_synthetic_cache(tmp_path, SPEC)
    dataset = {**cache.manifest["dataset"], "environment_state_names": ["x", "y"]}
    replace_arrays(cache, {}, {"dataset": dataset})
    with pytest.raises(InvalidInputError, match=r"2 names .* 3 dimensions of environment_states"):
        run(AnalyzeConfig(DATASET_NAME, tmp_path, max_k=1))
