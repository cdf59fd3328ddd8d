"""A real experiment, killed at several moments and started again: it ends with the same page."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.fixtures.process import ROOT, wait_for

EXPERIMENT = {
    "dataset_name": "local/tiny",
    "prepare": [
        {
            "stage": "benchmarks.metaworld.collect_demos",
            "flags": {"tasks": ["reach-v3"], "episodes_per_task": 6, "action_label": "expert"},
        }
    ],
    "caches": {"main": {"vision_model_name": "pixel-pca", "vq_num_tokens": 16}},
    "train": {"num_epochs": 1, "d_model": 32, "n_layers": 1, "batch_size": 64},
    "cells": [{"arms": ["A", "C"]}],
    "contrasts": [{"first": "C", "second": "A"}],
    "max_seeds": 2,
    "seeds_per_round": 2,
    "rollouts": {
        "stage": "benchmarks.metaworld.eval_metaworld_success",
        "flags": {"n_trials": 3, "max_steps": 60, "env_num": 2},
    },
}
MOMENTS = (
    "jobs/dataset/log.txt",
    "caches/main/local/tiny/train_states.f32.npy",
    "cells/main/c_seed0/train/metrics.jsonl",
    "cells/main/a_seed1/train/config.json",
    "cells/compared_arms_seed1/rollouts/results.jsonl",
    "design.json",
)
"""Files whose appearance is the moment of a kill."""


def started(matrix: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "world_modality.experiment", str(matrix)]
    with (matrix.parent / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [*command, "--max_parallel", "2"],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def was_reached(moment: Path, process: subprocess.Popen) -> bool:
    """Say whether a moment has come, or the experiment has ended without it."""
    return moment.exists() or process.poll() is not None


def page(out_dir: Path) -> dict[str, str]:
    """Return the page's text and tables, without what the clock says."""
    report = out_dir / "report"
    paths = [report / "report.html", *report.glob("*.md"), *report.glob("data/*.csv")]
    assert len(paths) > 3
    return {
        path.name: re.sub(r"Made \d{4}-\d\d-\d\d \d\d:\d\d UTC", "", path.read_text("utf-8"))
        for path in paths
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed experiment's stages go on")
def test_killed_at_several_moments_it_ends_with_the_same_page(tmp_path):
    out_dir, matrix = tmp_path / "out", tmp_path / "experiment.yaml"
    content = {**EXPERIMENT, "out_dir": str(out_dir), "dataset_root": str(tmp_path / "out/dataset")}
    matrix.write_text(yaml.safe_dump(content))
    whole = started(matrix)
    assert whole.wait() == 0, (tmp_path / "output.txt").read_text("utf-8")
    expected = page(out_dir)
    out_dir.rename(tmp_path / "uninterrupted")
    for moment in MOMENTS:
        process = started(matrix)
        is_there = functools.partial(was_reached, out_dir / moment, process)
        wait_for(is_there, 1200)
        assert process.poll() is None, f"it ended before {moment} was there"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    last = started(matrix)
    assert last.wait() == 0, (tmp_path / "output.txt").read_text("utf-8")
    assert page(out_dir) == expected
