import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from world_modality.demo import _command
from world_modality.matrix.demo_table import explanation_table, paired_difference
from world_modality.system.errors import UserError

ROOT = Path(__file__).parents[2]


def test_paired_difference_is_the_difference_of_the_exact_means():
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 50, 12).astype(float).tolist()
    first = {"squared_error_sum": rng.random(12).tolist(), "num_steps": counts}
    second = {"squared_error_sum": rng.random(12).tolist(), "num_steps": counts}
    expected = (sum(first["squared_error_sum"]) - sum(second["squared_error_sum"])) / sum(counts)
    difference = paired_difference(first, second)
    assert difference.value == pytest.approx(expected)
    assert difference.num_episodes == 12
    same = paired_difference(first, first)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def explained(nats, recall):
    """A report of held-out explanations; pairs of bounds, or None where there is one episode."""

    def interval(bounds):
        low, high = bounds or (None, None)
        return {"value": 0.0, "low": low, "high": high, "num_episodes": 2 if bounds else 1}

    condition = {
        "perplexity": interval((1.0, 1.1)),
        "nats_minus_model": interval(nats),
        "scores": {"all": {"recall": interval((0.8, 0.9))}},
        "recall_minus_model": {"all": interval(recall)},
    }
    example = {"episode_index": 3, "instruction": "push", "model": [{"what": "go", "why": "so"}]}
    return {
        "labels": {"num_explained": 2},
        "conditions": {"model": condition, "instruction only": condition},
        "examples": [example],
    }


@pytest.mark.parametrize(
    ("nats", "recall", "verdicts"),
    [
        ((0.01, 0.02), (-0.2, -0.1), ["better", "better"]),
        ((-0.02, -0.01), (0.1, 0.2), ["worse", "worse"]),
        ((-0.01, 0.02), (-0.1, 0.0), ["not resolved: the interval spans 0"] * 2),
        (None, None, ["not resolved: there is no interval"] * 2),
    ],
)
def test_the_table_says_whether_the_model_explains_better(nats, recall, verdicts):
    lines = explanation_table(explained(nats, recall)).splitlines()
    said = [line for line in lines if line.startswith("- ")]
    assert [line.split(":")[0] for line in said] == ["- nats a token", "- event recall"]
    for line, verdict in zip(said, verdicts, strict=True):
        assert verdict in line


def test_a_failing_stage_stops_the_demo():
    with pytest.raises(UserError, match="exit code 3"):
        _command("-c", "raise SystemExit(3)")


@pytest.mark.slow
def test_the_demo_runs_every_stage_and_reuses_all_of_it(tmp_path):
    command = [sys.executable, "-m", "world_modality.demo", "--out_dir", str(tmp_path / "demo")]
    command += ["--tasks", "reach-v3", "button-press-topdown-v3"]
    command += ["--episodes_per_task", "6", "--num_epochs", "1", "--n_trials", "2"]
    command += ["--num_coc_epochs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for arm in ("A", "B", "C", "C_no_world_input"):
        assert f"| {arm} |" in done.stdout
    assert "never a DINOv2 result" in done.stdout
    assert "| success in closed loop | A | B | C | C_no_world_input |" in done.stdout
    assert "- B minus C:" in done.stdout.split("success rate, paired")[1]
    summary = json.loads((tmp_path / "demo" / "summary.json").read_text())
    ablation = summary["C_no_world_input"]["corrupt_world"]["corruptions"]
    assert all(effect["ratio"]["value"] == 1 for effect in ablation.values())
    assert "| instruction only |" in done.stdout
    page = (tmp_path / "demo" / "report" / "report.html").read_text()
    assert "for this one seed" in page or "not resolved" in page
    assert "Success in closed loop" in page
    assert "the model says:" in done.stdout
    assert [arm["overall"]["num_episodes"] for arm in summary["rollouts"]["checkpoints"]] == [4] * 4
    for line in (tmp_path / "demo" / "summary.md").read_text().split("pictures:")[1].split():
        assert Path(line).stat().st_size > 1000
    kept = {
        path: path.stat().st_mtime_ns
        for pattern in (
            *("logs_*/*.pt", "cache/**/*.npy", "dataset/**/*.parquet", "logs_*/*/*.json"),
            *("rollouts*/*.jsonl", "coc/**/*.pt", "coc/*.jsonl"),
        )
        for path in (tmp_path / "demo").glob(pattern)
    }
    assert len(kept) > 20
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
