import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rollouts.outage_curve import OutageCurveConfig, run
from benchmarks.rollouts.results import RolloutResult, open_results
from benchmarks.rollouts.worker import Outcome
from benchmarks.suite import EpisodeSpec
from tests.rollouts.conftest import ORIGIN
from world_modality.statistics.proportions import wilson_interval
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.verdict.rollout_file import read_rollouts

ROOT = Path(__file__).parents[2]
NUM_EPISODES = 40


def rolled_out(
    folder, arm, length, rate, *, world_input=None, seed=0, dark_frames="masked", start=(5, 9)
):
    """Write an evaluation of one checkpoint that solves the first `rate` of its episodes."""
    policy = {"model_type": arm, "n_action_steps": 4}
    if length:
        policy |= {"dark_frames": dark_frames}
        policy |= {} if world_input is None else {"world_input": world_input}
    origin = dataclasses.replace(
        ORIGIN,
        checkpoint=f"{arm}_{seed}.pt",
        checkpoint_sha256=f"{arm}{seed}",
        model_type=arm,
        policy=policy,
    )
    with open_results(folder / "results.jsonl") as file:
        for number in range(NUM_EPISODES):
            dark = {"outage_start": 5, "outage_length": length} if length else {}
            episode = EpisodeSpec("left", "go left", number, number, 0, 40, **dark)
            solved = number < round(rate * NUM_EPISODES)
            file.append(RolloutResult.of(origin, Outcome(episode, solved, 9, 0.5, None)))
    config = {"outage_length": length, "outage_start": list(start) if length else None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def folders(tmp_path):
    return [
        rolled_out(tmp_path / "clean_A", "A", 0, 0.9),
        rolled_out(tmp_path / "clean_C", "C", 0, 0.8),
        rolled_out(tmp_path / "other", "B", 0, 0.7),  # of no line: never in the dark
        rolled_out(tmp_path / "A_20", "A", 20, 0.3),
        *(
            rolled_out(tmp_path / f"{name}_{length}", "C", length, rate, world_input=name)
            for name, length, rate in (
                ("own_prediction", 20, 0.6),
                ("own_prediction", 40, 0.5),
                ("hold", 20, 0.4),
                ("hold", 40, 0.1),
            )
        ),
    ]


def curve(folders, tmp_path):
    return run(OutageCurveConfig(tuple(folders), tmp_path / "curve"))


def test_a_report_compares_predictions_with_other_arms_and_keeps_the_controls_apart(tmp_path):
    conditions = {}
    for name in ("own_prediction", "hold"):
        folder = rolled_out(tmp_path / name, "C", 20, 0.5, world_input=name)
        (one,) = read_rollouts(folder / "results.jsonl")
        conditions[name] = one.conditions
    (of_a,) = read_rollouts(rolled_out(tmp_path / "A", "A", 20, 0.5) / "results.jsonl")
    assert conditions["own_prediction"] == of_a.conditions
    assert conditions["hold"] == {**of_a.conditions, "world_input": "hold"}
    (longer,) = read_rollouts(rolled_out(tmp_path / "B", "A", 40, 0.5) / "results.jsonl")
    assert longer.conditions != of_a.conditions


def test_each_arm_and_each_token_of_the_dark_is_a_line_from_its_own_beginning(folders, tmp_path):
    points, _ = curve(folders, tmp_path)
    rates = {(p.line, p.length): p.success_rate.value for p in points}
    assert rates == {
        ("A", 0): 0.9,
        ("A", 20): 0.3,
        ("C, own prediction", 0): 0.8,
        ("C, own prediction", 20): 0.6,
        ("C, own prediction", 40): 0.5,
        ("C, last token held", 0): 0.8,
        ("C, last token held", 20): 0.4,
        ("C, last token held", 40): 0.1,
    }
    assert points[0].line == "A"
    of_a = next(p for p in points if (p.line, p.length) == ("A", 20))
    assert of_a.success_rate == wilson_interval(12, NUM_EPISODES)


def test_a_prediction_is_compared_with_the_held_token_in_the_same_episodes(folders, tmp_path):
    _, differences = curve(folders, tmp_path)
    found = {(d.arm, d.first, d.second, d.length): d.difference for d in differences}
    assert {key[-1] for key in found} == {20, 40}
    one = found["C", "own prediction", "last token held", 40]
    assert one.value == pytest.approx(0.4)
    assert 0 < one.low < 0.4 < one.high


def test_several_trainings_of_an_arm_widen_the_interval(folders, tmp_path):
    alone = curve(folders, tmp_path)[0]
    more = [
        rolled_out(tmp_path / f"A_20_{seed}", "A", 20, rate, seed=seed)
        for seed, rate in ((1, 0.0), (2, 0.6))
    ]
    points = curve([*folders, *more], tmp_path)[0]
    before, after = (
        next(p for p in found if (p.line, p.length) == ("A", 20)) for found in (alone, points)
    )
    assert (before.num_checkpoints, after.num_checkpoints) == (1, 3)
    assert after.success_rate.value == pytest.approx(0.3)
    width = [p.success_rate.high - p.success_rate.low for p in (before, after)]
    assert width[1] > width[0], "the seeds differ"


def test_policies_that_get_black_images_are_a_line_of_their_own(folders, tmp_path):
    black = rolled_out(tmp_path / "black", "A", 20, 0.0, dark_frames="black", seed=1)
    points = curve([*folders, black], tmp_path)[0]
    rates = {(p.line, p.length): p.success_rate.value for p in points}
    assert rates["A, black images", 20] == 0
    assert rates["A", 20] == 0.3


def test_figure_and_tables_are_written(folders, tmp_path):
    command = [sys.executable, "-m", "benchmarks.rollouts.outage_curve", "--out_dir"]
    command += [tmp_path / "out", "--rollouts", *folders]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| C, last token held | 1 | 80.0 % [" in done.stdout
    assert "own prediction minus last token held" in done.stdout
    out = tmp_path / "out"
    assert (out / "outage_curve.md").read_text("utf-8") in done.stdout
    assert (out / "outage_curve.svg").stat().st_size > 5000
    assert (out / "outage_curve.png").stat().st_size > 5000
    rows = (out / "outage_curve.csv").read_text("utf-8").splitlines()
    assert len(rows) == 1 + 8
    written = json.loads((out / "outage_curve.json").read_text("utf-8"))
    assert np.isclose(written["points"][1]["success_rate"]["value"], 0.3)
    before = (out / "outage_curve.svg").read_bytes()
    run(OutageCurveConfig(tuple(folders), out))
    assert (out / "outage_curve.svg").read_bytes() == before


def test_what_makes_no_curve_is_refused(folders, tmp_path):
    with pytest.raises(MissingFileError, match=r"no .*nowhere.*name folders that an evaluation"):
        curve([tmp_path / "nowhere"], tmp_path)
    with pytest.raises(InvalidInputError, match="none of the rollouts has an outage"):
        curve(folders[:2], tmp_path)
    again = rolled_out(tmp_path / "again", "C", 20, 0.5, world_input="hold")
    with pytest.raises(InvalidInputError, match=r"both have C_0\.pt with an outage of 20 frames"):
        curve([*folders, again], tmp_path)
    other = rolled_out(tmp_path / "start", "A", 40, 0.5, start=(1, 2))
    with pytest.raises(InvalidInputError, match=r"--outage_start \[5, 9\] and .* \[1, 2\]"):
        curve([*folders, other], tmp_path)
    (folders[0] / "config.json").write_text('{"wrong_instruction": true}', encoding="utf-8")
    with pytest.raises(InvalidInputError, match="differently: wrong_instruction True and False"):
        curve(folders, tmp_path)
