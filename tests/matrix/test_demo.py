import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from world_modality import demo
from world_modality.demo import MATRIX_PATH, DemoConfig, matrix_content, run
from world_modality.matrix.experiment_file import read_matrix
from world_modality.system.errors import InvalidInputError

ROOT = Path(__file__).parents[2]


def test_without_flags_the_demo_is_its_file():
    assert matrix_content(DemoConfig()) == yaml.safe_load(MATRIX_PATH.read_text("utf-8"))


def test_the_flags_of_the_demo_reach_the_matrix_that_is_run(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(demo.os, "execv", lambda program, command: started.append(command))
    run(DemoConfig(tmp_path / "demo", ("reach-v3",), 6, 2, 3, 1, seed=5, max_parallel=4))
    ((*_, path, flag, number),) = started
    assert (flag, number) == ("--max_parallel", "4")
    matrix = read_matrix(Path(path))
    assert matrix.out_dir == tmp_path / "demo"
    assert matrix.dataset_root == tmp_path / "demo" / "dataset"
    recording = matrix.prepare[0].flags
    assert (recording["tasks"], recording["episodes_per_task"]) == (["reach-v3"], 6)
    assert {recording["seed"], matrix.caches["main"]["seed"], *matrix.seeds} == {5}
    assert (matrix.train["num_epochs"], matrix.explanations.train["num_epochs"]) == (2, 1)
    assert (matrix.rollouts.flags["n_trials"], matrix.rollouts.flags["seed"]) == (3, 5)


@pytest.mark.parametrize("name", ["cache", "coc", "logs_c_no_world_input"])
def test_the_folder_of_an_older_demo_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InvalidInputError, match=rf"older version \({name}\).*--out_dir"):
        run(DemoConfig(tmp_path))


@pytest.mark.slow
def test_the_demo_runs_every_stage_and_reuses_all_of_it(tmp_path):
    out_dir = tmp_path / "demo"
    command = [sys.executable, "-m", "world_modality.demo", "--out_dir", str(out_dir)]
    command += ["--tasks", "reach-v3", "button-press-topdown-v3"]
    command += ["--episodes_per_task", "6", "--num_epochs", "1", "--n_trials", "2"]
    command += ["--num_coc_epochs", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 cells are done" in done.stdout
    assert "never a DINOv2 result" in done.stdout
    summary = (out_dir / "report" / "summary.md").read_text("utf-8")
    assert summary in done.stdout
    # The rows that README shows, with the explaining pair.
    for start in (
        *("A | 1", "B | 1", "C | 1", "C_no_world_input | 1", "last action held"),
        *("C | task_shuffle", "C_no_world_input | each of them | 1 exactly"),
        *("C | task_marginal", "0 | model", "0 | instruction only"),
    ):
        assert f"\n| {start} |" in summary
    sections = json.loads((out_dir / "report" / "summary.json").read_text("utf-8"))["sections"]
    assert [row["arm"] for row in sections["Main table"][0]["rows"][:2]] == ["A", "B"]
    page = (out_dir / "report" / "report.html").read_text("utf-8")
    for text in ("not resolved", "Success in closed loop", "the model says"):
        assert text in page
    kept = {
        path: path.stat().st_mtime_ns
        for pattern in (
            "**/*.pt",
            "**/*.npy",
            "dataset/**/*.parquet",
            "**/*.jsonl",
            "**/eval*.json",
        )
        for path in out_dir.glob(pattern)
    }
    assert len(kept) > 20
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
