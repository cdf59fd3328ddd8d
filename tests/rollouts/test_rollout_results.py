import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.rollouts.results import (
    RolloutResult,
    open_results,
    require_same_settings,
)
from tests.rollouts.conftest import EPISODES, ORIGIN, result
from world_modality.system.errors import InvalidInputError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "results.jsonl"


def write(path, *results):
    with open_results(path) as file:
        for one in results:
            file.append(one)


def read(path):
    with open_results(path) as file:
        return file.read()


def test_result_comes_back_and_is_one_line_of_json(path):
    results = [result(0), result(1, False), result(2, None)]
    write(path, *results)
    assert read(path) == results
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) == 3
    assert json.loads(lines[2])["success"] is None
    assert json.loads(lines[0])["checkpoint_sha256"] == "c0ffee"


def test_newest_line_of_an_episode_counts(path):
    write(path, result(0, None), result(1), result(0, True))
    assert {r.episode: r.success for r in read(path)} == {0: True, 1: True}


def test_line_cut_anywhere_is_dropped_and_the_others_stay(path):
    write(path, result(0), result(1))
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for length in range(first_line, len(whole)):
        path.write_bytes(whole[:length])
        with open_results(path) as file:
            assert file.read() == [result(0)]
            file.append(result(2))
            assert file.read() == [result(0), result(2)]


def test_damage_within_the_file_is_named(path):
    write(path, result(0), result(1))
    first, second = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text(first[:20] + "\n" + second)
    with pytest.raises(InvalidInputError, match=r"results\.jsonl line 1 is no JSON"):
        read(path)
    path.write_text("[" * 100_000 + "\n")
    with pytest.raises(InvalidInputError, match="line 1 is no JSON"):
        read(path)
    path.write_text('{"success": true}\n')
    with pytest.raises(InvalidInputError, match=r"line 1 is no result of a rollout"):
        read(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("success", "yes"),
        ("num_steps", 1.5),
        ("num_steps", True),
        ("task", ["../../x"]),
        ("policy", "none"),
        ("episode", None),
    ],
)
def test_a_line_with_values_of_other_types_is_refused(path, field, value):
    write(path, result(0))
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), field: value}) + "\n")
    with pytest.raises(InvalidInputError, match=rf"line 1 has {field} .*no rollout writes"):
        read(path)


def test_second_process_is_kept_out_until_the_first_ends(path):
    claim = (
        "import sys, pathlib\n"
        "from benchmarks.rollouts.results import open_results\n"
        "with open_results(pathlib.Path(sys.argv[1])):\n"
        "    print('claimed', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", claim, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(
            InvalidInputError, match=rf"run is being written by process {other.pid} "
        ):
            read(path)
        other.kill()
    write(path, result(0))


def refuse(*earlier: RolloutResult, origins=(ORIGIN,), episodes=EPISODES):
    require_same_settings(earlier, origins, episodes, Path("results.jsonl"))


def test_results_of_the_same_settings_are_accepted():
    moved = dataclasses.replace(ORIGIN, checkpoint="elsewhere/model_C.pt")
    other = dataclasses.replace(ORIGIN, checkpoint="logs_b/model_B.pt", checkpoint_sha256="b")
    refuse(result(0), result(1, None))
    refuse(result(0), origins=(moved,))
    refuse(result(0, checkpoint="logs_b/model_B.pt", checkpoint_sha256="b", policy={}))
    refuse(result(0), result(0, checkpoint_sha256="b"), origins=(ORIGIN, other))
    refuse(result(2), episodes=EPISODES[:1])


def test_results_under_an_older_name_of_a_corruption_are_gone_on_with(path):
    write(path, result(0, world_corruption="task", policy={"corrupt_world": "task"}))
    now = {"world_corruption": "task_marginal", "policy": {"corrupt_world": "task_marginal"}}
    refuse(*read(path), origins=(dataclasses.replace(ORIGIN, **now),))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 7}, "seed is 0 now and was 7"),
        ({"max_steps": 9}, "max_steps is 40 now and was 9"),
        ({"initial_state": 1}, "initial_state is .* now and was 1"),
        ({"instruction": "go right"}, 'instruction is "go left" now and was "go right"'),
        ({"versions": {"point": "0.9"}}, r'versions\.point is "1\.0" now and was "0\.9"'),
        ({"versions": {}}, r'versions\.point is "1\.0" now and was absent'),
        ({"rendering": {"size": [8, 8]}}, r"rendering\.size is \[16, 17\] now and was \[8, 8\]"),
        ({"gl_backend": "osmesa"}, "gl_backend"),
        ({"policy": {"n_action_steps": 1}}, r"policy\.n_action_steps is 4 now and was 1"),
        ({"checkpoint_sha256": "old"}, 'checkpoint_sha256 is "c0ffee" now and was "old"'),
        ({"suite": "line"}, 'suite is "point" now and was "line"'),
        ({"world_corruption": "random"}, "world_corruption"),
    ],
)
def test_results_of_other_settings_are_refused_and_named(changes, difference):
    with pytest.raises(InvalidInputError, match=f"{difference}.*another --out_dir, or --overwrite"):
        refuse(result(0, **changes))
