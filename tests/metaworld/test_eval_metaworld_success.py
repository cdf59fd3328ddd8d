"""Closed-loop evaluation in the real MetaWorld, through the stage's command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.metaworld.eval_metaworld_success import EvalMetaworldConfig, run
from benchmarks.metaworld.simulator import evaluation_episodes
from benchmarks.metaworld.tasks import difficulty_groups, instructions
from benchmarks.suite import EVALUATION_STREAM, layout_seed
from tests.fixtures.metaworld import TASKS, record_two_tasks
from world_modality.system.cli import flag_arguments
from world_modality.system.errors import InvalidInputError, MissingKeyError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record_two_tasks(tmp_path_factory.mktemp("metaworld"))


@pytest.fixture(scope="module")
def checkpoints(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return tuple(recorded.train(folder / arm, arm) for arm in ("A", "C"))


@pytest.fixture
def config(recorded, checkpoints, tmp_path):
    return EvalMetaworldConfig(
        checkpoint=checkpoints,
        out_dir=tmp_path / "rollouts",
        n_trials=2,
        env_num=2,
        max_steps=24,
        dataset_root=recorded.dataset_root,
        num_parity_episodes=2,
    )


def results(folder: Path) -> list[dict]:
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines()
    return sorted(
        (json.loads(line) for line in lines),
        key=lambda r: (r["checkpoint"], r["task"], r["episode"]),
    )


def test_command_line_writes_results_and_summary_after_the_parity_check(config):
    names = ("out_dir", "dataset_root", "n_trials", "env_num", "max_steps", "num_parity_episodes")
    flags = flag_arguments({name: getattr(config, name) for name in names})
    command = [sys.executable, "-m", "benchmarks.metaworld.eval_metaworld_success", *flags]
    command += ["--save_videos", "--checkpoint", *map(str, config.checkpoint)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = results(config.out_dir)
    assert len(lines) == 2 * len(TASKS) * 2
    assert {line["task"] for line in lines} == set(TASKS)
    for line in lines:
        assert line["error"] is None
        assert line["success"] in (True, False)
        assert line["num_steps"] == 24 or line["success"]
        assert line["instruction"] == instructions()[line["task"]]
        assert line["initial_state"] == layout_seed(
            0, EVALUATION_STREAM, line["task"], line["episode"]
        )
        assert line["rendering"]["image_size"] == 48
        assert set(line["versions"]) >= {"metaworld", "mujoco"}
    for text in ("average over 2 tasks", "| group easy |", "McNemar", "parity"):
        assert text in done.stdout
    assert (config.out_dir / "summary.md").exists()
    videos = list(config.out_dir.glob("videos/**/*.mp4"))
    assert len(videos) == len(lines)


def test_episodes_are_a_function_of_task_and_number_alone():
    few = evaluation_episodes({"push-v3": "Push"}, 3, seed=0, max_steps=500)
    many = evaluation_episodes({"reach-v3": "Reach", "push-v3": "Push"}, 5, seed=0, max_steps=500)
    assert few == [episode for episode in many if episode.task == "push-v3"][:3]
    assert len({episode.initial_state for episode in many}) == len(many)


def test_difficulty_groups_cover_every_task_once():
    members = [task for group in difficulty_groups().values() for task in group]
    assert sorted(members) == sorted(instructions())


def test_unknown_task_names_the_nearest(config):
    with pytest.raises(MissingKeyError, match="'push-v2' in MetaWorld; there are: push-v3"):
        run(dataclasses.replace(config, tasks=("push-v2",)))


def test_more_steps_than_metaworld_allows_are_refused(config):
    with pytest.raises(InvalidInputError, match="500 steps"):
        dataclasses.replace(config, max_steps=501)


@pytest.mark.parametrize(
    "flags",
    [{"cue": "side", "tasks": ("reach-v3",)}, {"occlusion_from": 3}],
    ids=["cue", "occlusion"],
)
def test_a_cue_or_a_screen_that_the_recording_has_not_is_refused(config, flags):
    with pytest.raises(InvalidInputError, match=r"was trained on a recording with no (cue|occl)"):
        run(dataclasses.replace(config, **flags))


def test_an_outage_darkens_every_policy_alike_and_one_goes_on_with_its_predictions(
    config, recorded, tmp_path
):
    paths = tuple(recorded.train(tmp_path / arm, arm, observation_dropout=0.5) for arm in "AC")
    config = dataclasses.replace(
        config,
        checkpoint=paths,
        outage_length=12,
        outage_start=(2, 9),
        world_input="own_prediction",
        check_parity=False,
    )
    summary = run(config)
    assert summary["outage"] == {"length": 12, "start": [2, 9]}
    lines = results(config.out_dir)
    assert {line["error"] for line in lines} == {None}
    starts = [[one["outage_start"] for one in lines if one["model_type"] == arm] for arm in "AC"]
    assert starts[0] == starts[1]
    assert len(set(starts[0])) > 1
    inputs = {line["model_type"]: line["policy"].get("world_input") for line in lines}
    assert inputs == {"A": None, "C": "own_prediction"}
    held = dataclasses.replace(config, world_input="hold", resume=True)
    with pytest.raises(InvalidInputError, match=r'world_input is "hold" now and was "own_pred'):
        run(held)
