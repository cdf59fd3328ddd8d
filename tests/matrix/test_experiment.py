import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.fixtures.process import has_ended, wait_for
from tests.project.test_readme import parsed_config
from world_modality.arms import ARMS, CONTRASTS
from world_modality.experiment import ExperimentConfig, run
from world_modality.matrix.experiment_file import read_matrix
from world_modality.matrix.jobs import (
    Job,
    Step,
    cell_jobs,
    longest_first,
    preparation_jobs,
    report_step,
)
from world_modality.matrix.runner import Runner, is_done, remaining
from world_modality.system.errors import (
    InvalidInputError,
    MissingFileError,
    MissingKeyError,
    UserError,
)

ROOT = Path(__file__).parents[2]
MATRIX = {
    "out_dir": "out",
    "dataset_name": "local/demo",
    "dataset_root": "data",
    "caches": {"main": {"vision_model_name": "pixel-pca"}, "small": {"vq_num_tokens": 16}},
    "seeds": [0, 1],
    "train": {"num_epochs": 2, "use_language": True},
    "cells": [
        {"arms": ["A", "C"]},
        {"arms": ["C_shuffled"], "cache": "small", "train": {"future_stride": 4}, "seeds": [7]},
    ],
    "rollouts": {
        "stage": "benchmarks.metaworld.eval_metaworld_success",
        "flags": {"n_trials": 3},
        "corruptions": ["stale:8"],
        "films": 2,
    },
}


@pytest.fixture
def matrix_file(tmp_path):
    def write(**changes):
        path = tmp_path / "matrix.yaml"
        content = {**MATRIX, "out_dir": str(tmp_path / "out"), **changes}
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_each_arm_and_seed_is_a_cell_with_commands_of_its_own(matrix_file):
    jobs = {job.name: job for job in cell_jobs(read_matrix(matrix_file()))}
    assert list(jobs) == [
        "main/a_seed0",
        "main/a_seed1",
        "main/c_seed0",
        "main/c_seed1",
        "small-future_stride_4/c_shuffled_seed7",
    ]
    assert len({job.folder for job in jobs.values()}) == 5
    train = jobs["small-future_stride_4/c_shuffled_seed7"].steps[0]
    assert train.arguments[0] == "train_model_c.py"
    for words in ("--token_control shuffled", "--future_stride 4", "--seed 7", "--use_language"):
        assert words in train.shell
    assert train.produces.name == "model_C_epoch1.pt"
    of_a, of_c = (
        [step.shell for step in jobs[name].steps if "eval_metaworld" in step.shell]
        for name in ("main/a_seed0", "main/c_seed1")
    )
    assert len(of_a) == 1
    assert "--save_videos --videos_per_task 2" in of_a[0]
    assert "--corrupt_world stale:8" in of_c[1]
    assert "--save_videos" not in of_c[0]


def rollout_folders(matrix):
    """Return the folders that each cell is rolled out into."""
    return {
        job.name: [
            step.produces.parent.name for step in job.steps if "eval_metaworld" in step.shell
        ]
        for job in cell_jobs(matrix)
    }


def test_only_what_reads_its_own_token_is_rolled_out_with_a_wrong_one(matrix_file):
    path = matrix_file(cells=[{"arms": list(ARMS)}], seeds=[0])
    folders = rollout_folders(read_matrix(path))
    assert folders.pop("main/c_seed0") == ["rollouts", "rollouts_stale_8"]
    assert folders.pop("main/c_oracle_seed0") == []
    assert all(names == ["rollouts"] for names in folders.values())


def test_a_cell_may_name_the_corruptions_that_it_is_rolled_out_with(matrix_file):
    groups = [
        {"arms": ["B", "C"], "corruptions": ["task", "random"], "train": {"future_stride": 2}},
        {"arms": ["C"], "corruptions": [], "train": {"future_stride": 3}},
    ]
    assert rollout_folders(read_matrix(matrix_file(cells=groups, seeds=[0]))) == {
        "main-future_stride_2/b_seed0": ["rollouts"],
        "main-future_stride_2/c_seed0": ["rollouts", "rollouts_task", "rollouts_random"],
        "main-future_stride_3/c_seed0": ["rollouts"],
    }


def test_a_model_that_explains_itself_has_a_control_of_the_same_labels_and_flags(matrix_file):
    explanations = {"labels": {"backend": "rules"}, "train": {"num_epochs": 3}, "cache": "small"}
    matrix = read_matrix(matrix_file(explanations=explanations))
    (labels,) = preparation_jobs(matrix)[-1].steps
    jobs = cell_jobs(matrix)[-2:]
    assert [job.name for job in jobs] == ["explanations/seed0", "explanations/seed1"]
    train, control, evaluate = jobs[1].steps
    for words in ("caches/small", str(labels.produces), "--seed 1", "--num_epochs 3", "--resume"):
        assert words in train.shell
    as_control = train.shell.replace("two_heads", "instruction_only").replace("trunk", "lang")
    assert as_control == control.shell
    assert f"--checkpoint {train.produces} --control {control.produces}" in evaluate.shell
    assert train.produces.name == "model_C_epoch2.pt"
    assert " ".join(report_step(matrix).arguments).count("out/explanations") == 1


def test_the_models_that_explain_themselves_are_started_first(matrix_file):
    explanations = {"labels": {"backend": "rules"}, "cache": "small"}
    jobs = cell_jobs(read_matrix(matrix_file(explanations=explanations)))
    started = longest_first(jobs)
    assert started[:2] == jobs[-2:]
    assert started[2:] == jobs[:-2]
    assert [job.name for job in started[:2]] == ["explanations/seed0", "explanations/seed1"]


@pytest.mark.parametrize(
    ("name", "num_stages"), [("verdict", 11), ("settings", 11), ("cue", 10), ("demo", 14)]
)
def test_every_command_is_one_that_its_stage_understands(monkeypatch, name, num_stages):
    matrix = read_matrix(ROOT / "benchmarks" / "metaworld" / f"{name}.yaml")
    seen = set()
    for job in [*preparation_jobs(matrix), *cell_jobs(matrix)]:
        for step in job.steps:
            parsed_config(step.shell, monkeypatch)
            seen.add(step.arguments[1] if step.arguments[0] == "-m" else step.arguments[0])
    assert len(seen) == num_stages


def test_the_verdicts_matrix_has_what_the_report_compares():
    matrix = read_matrix(ROOT / "benchmarks" / "metaworld" / "verdict.yaml")
    names = {job.name for job in cell_jobs(matrix)}
    for contrast in CONTRASTS:
        for arm in (contrast.first, contrast.second):
            # C_privileged needs no seeds of the verdict: the oracle is its positive control.
            if arm not in ("A_pca", "A_random", "C_privileged"):
                assert f"main/{arm.lower()}_seed2" in names
    contrasts = [(one.first, one.second) for one in matrix.contrasts]
    assert contrasts == [("B", "A"), ("C", "B"), ("C", "C_no_world_input")]
    assert {f"main/{arm}_seed15" for arm in "abc"} <= names
    assert "main/c_dummy_seed3" not in names, "controls have the seeds of the file"
    demo = read_matrix(ROOT / "benchmarks" / "metaworld" / "demo.yaml")
    assert (matrix.prepare, matrix.caches) == (demo.prepare, demo.caches)
    assert (matrix.text, matrix.train) == (demo.text, demo.train)


def test_the_settings_that_the_answer_may_hang_on_are_a_matrix_of_their_own():
    matrix = read_matrix(ROOT / "benchmarks" / "metaworld" / "settings.yaml")
    assert matrix.contrasts is None
    names = {job.name for job in cell_jobs(matrix)}
    assert {"random/a_seed2", "codes_512/c_seed1", "main-future_stride_4/b_seed0"} <= names


def test_the_task_of_memory_holds_a_past_of_tokens_against_none_and_against_embeddings():
    matrix = read_matrix(ROOT / "benchmarks" / "metaworld" / "cue.yaml")
    questions = [(one.first, one.second) for one in matrix.contrasts if one.role is None]
    others = ("B", "C_shuffled_history", "A_context")
    assert questions == [("C_history", second) for second in others]
    controls = {one.role: (one.first, one.second) for one in matrix.contrasts if one.role}
    assert controls == {
        "positive control": ("C_history", "A"),
        "placebo": ("C_shuffled_history", "A"),
    }
    read = {group.name: group.train for group in matrix.cells}
    past, context = read["history"], read["context"]
    assert past["world_history"] == context["context_frames"] - 1, "the same frames"
    assert past["world_history_stride"] == context["context_stride"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cels": []}, r"no key 'cels' in the matrix of .*; there are: cells,"),
        ({"seeds": [0, "1"]}, r"seeds\[1\] of .* an integer, not '1'"),
        ({"seeds": [1, 1]}, "seeds of .* names a seed twice"),
        ({"seeds": None}, "the matrix of .* lacks seeds"),
        ({"caches": {}}, "caches of .* at least one"),
        ({"train": {"num_epoch": 1}}, "'num_epoch' .* there are: num_epochs,"),
        ({"train": {"seed": 1}}, "no flag of the trainer 'seed'"),
        ({"cells": {"arms": ["A"]}}, "cells of .* has to be a list"),
        ({"cells": [{"arms": ["C_dumy"]}]}, r"cells\[0\].*are: C_dummy,"),
        ({"cells": [{"arms": ["A"], "cash": "x"}]}, "are: cache,"),
        ({"cells": [{"arms": ["A"], "cache": "min"}]}, "are: main,"),
        ({"explanations": {"labels": {}, "cache": "min"}}, "are: main,"),
        ({"cells": [{"arms": ["C"], "corruptions": ["noise"]}]}, "noise is none of uniform"),
        ({"cells": [{"arms": ["C"], "corruptions": "task"}]}, "has to be a list, not 'task'"),
        ({"rollouts": {"flags": {}}}, "rollouts of .* lacks stage"),
        ({"rollouts": {"stage": "x", "films": True}}, "films of .* an integer, not True"),
    ],
)
def test_a_matrix_that_is_not_right_says_where_and_what_there_is(matrix_file, changes, message):
    error = MissingKeyError if "are: " in message or "no flag" in message else InvalidInputError
    with pytest.raises(error, match=message):
        read_matrix(matrix_file(**changes))


def test_a_file_that_is_no_matrix_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="no matrix"):
        read_matrix(tmp_path / "nowhere.yaml")
    path = tmp_path / "matrix.yaml"
    path.write_text("cells: [")
    with pytest.raises(InvalidInputError, match="is no YAML"):
        read_matrix(path)
    path.write_text("just a word")
    with pytest.raises(InvalidInputError, match="has to be a mapping"):
        read_matrix(path)


def test_a_cell_named_twice_is_refused(matrix_file):
    path = matrix_file(cells=[{"arms": ["A", "B"]}, {"arms": ["B"], "seeds": [1]}])
    with pytest.raises(InvalidInputError, match="twice: main/b_seed1"):
        cell_jobs(read_matrix(path))


def test_a_dry_run_prints_the_commands_and_makes_nothing(matrix_file, tmp_path, capsys):
    assert run(ExperimentConfig(matrix_file(), dry_run=True)) == []
    printed = capsys.readouterr().out
    assert "# cell 4: small-future_stride_4/c_shuffled_seed7" in printed
    assert printed.count("\npython train_") == 5
    assert printed.splitlines()[-1].startswith("python -m world_modality.report")
    assert not (tmp_path / "out").exists()


def step(code: str, produces: Path) -> Step:
    return Step(("-c", code), produces)


def writing(path: Path) -> Step:
    return step(f"open({str(path)!r}, 'a').write('x')", path)


def test_what_is_done_is_not_run_again(tmp_path):
    job = Job("one", tmp_path / "one", (writing(tmp_path / "a"), writing(tmp_path / "b")))
    assert Runner(1).run([job]) == []
    assert is_done(job)
    assert Runner(1).run([job]) == []
    assert (tmp_path / "a").read_text("utf-8") == "x"
    (tmp_path / "b").unlink()
    assert remaining(job) == [job.steps[1]]
    Runner(1).run([job])
    assert (tmp_path / "a").read_text("utf-8") == "x"
    changed = Job("one", job.folder, (step("print(1)", tmp_path / "a"), job.steps[1]))
    assert len(remaining(changed)) == 2


def test_a_failed_job_is_shown_with_its_last_lines_and_does_not_stop_the_rest(tmp_path, capsys):
    bad = step(
        "import sys; [print('line', i) for i in range(40)]; print('\\rbar\\rno such flag');"
        "sys.exit(3)",
        tmp_path / "never",
    )
    jobs = [
        Job("first", tmp_path / "first", (writing(tmp_path / "a"), bad, writing(tmp_path / "c"))),
        Job("second", tmp_path / "second", (writing(tmp_path / "b"),)),
    ]
    (failure,) = Runner(1).run(jobs)
    assert (failure.job, failure.code) == ("first", 3)
    assert failure.last_lines[-1] == "no such flag"
    assert failure.last_lines[0] == "line 29"
    assert "first failed with exit code 3" in capsys.readouterr().out
    assert (tmp_path / "b").exists()
    assert not (tmp_path / "c").exists()
    assert remaining(jobs[0]) == list(jobs[0].steps[1:])


def test_a_command_that_makes_nothing_is_not_done(tmp_path):
    job = Job("one", tmp_path / "one", (step("pass", tmp_path / "never"),))
    with pytest.raises(InvalidInputError, match="ended well, but there is no"):
        Runner(1).run([job])


def test_several_jobs_run_at_once(tmp_path):
    # Each waits for the other: one at a time would never end.
    codes = [
        "import pathlib, time\n"
        f"pathlib.Path({str(tmp_path / mine)!r}).touch()\n"
        f"while not pathlib.Path({str(tmp_path / other)!r}).exists(): time.sleep(0.02)"
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    jobs = [
        Job(name, tmp_path / f"job_{name}", (step(code, tmp_path / name),))
        for name, code in zip("ab", codes, strict=True)
    ]
    assert Runner(2).run(jobs) == []


def test_a_cell_alone_wants_the_caches_first(matrix_file):
    with pytest.raises(InvalidInputError, match="not prepared: cache main, cache small"):
        run(ExperimentConfig(matrix_file(), cell=0))
    with pytest.raises(InvalidInputError, match="has the cells 0 to 4"):
        run(ExperimentConfig(matrix_file(), cell=5))


def test_a_preparation_that_fails_ends_the_experiment(matrix_file, tmp_path):
    with pytest.raises(UserError, match="cache main failed, which every cell needs"):
        run(ExperimentConfig(matrix_file(dataset_root=str(tmp_path / "nowhere"))))


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGTERM,
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children"),
        ),
    ],
)
def test_a_signal_ends_the_running_command_too(tmp_path, how):
    marker = tmp_path / "running"
    sleeper = (
        f"import os, pathlib, time; pathlib.Path({str(marker)!r}).write_text(str(os.getpid()));"
        "time.sleep(60)"
    )
    code = f"""
import pathlib, sys
from world_modality.matrix.jobs import Job, Step
from world_modality.matrix.runner import Runner
from world_modality.system.stop_signals import termination_as_interrupt
step = Step(("-c", {sleeper!r}), pathlib.Path({str(marker)!r}))
with termination_as_interrupt():
    Runner(1).run([Job("one", pathlib.Path({str(tmp_path / "job")!r}), (step,))])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (marker.exists() and marker.read_text("utf-8")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    inner = int(marker.read_text("utf-8"))
    process.send_signal(how)
    process.wait(30)
    process.stderr.close()
    wait_for(lambda: has_ended(inner), 30)


@pytest.mark.slow
def test_a_tiny_matrix_runs_through_the_real_stages_and_is_reported(tmp_path):
    out_dir = tmp_path / "verdict"
    matrix = {
        "out_dir": str(out_dir),
        "dataset_name": "local/tiny",
        "dataset_root": str(tmp_path / "dataset"),
        "prepare": [
            {
                "stage": "benchmarks.metaworld.collect_demos",
                "flags": {
                    "tasks": ["reach-v3", "button-press-topdown-v3"],
                    "episodes_per_task": 6,
                    "action_label": "expert",
                },
            }
        ],
        "caches": {"main": {"vision_model_name": "pixel-pca", "vq_num_tokens": 16}},
        "seeds": [0, 1],
        "train": {"num_epochs": 1, "d_model": 32, "n_layers": 1},
        "cells": [{"arms": ["A", "B", "C", "C_dummy", "C_oracle"]}],
        "rollouts": {
            "stage": "benchmarks.metaworld.eval_metaworld_success",
            "flags": {"n_trials": 1, "check_parity": False, "max_steps": 20, "env_num": 1},
            "corruptions": ["task"],
            "films": 2,
        },
    }
    path = tmp_path / "matrix.yaml"
    path.write_text(yaml.safe_dump(matrix))
    command = [sys.executable, "-m", "world_modality.experiment", str(path), "--max_parallel", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 cells are done" in done.stdout
    page = (out_dir / "report" / "report.html").read_text("utf-8")
    for text in ("C − C_dummy", "C_oracle − C", "2 seeds", "Success in closed loop", "video/mp4"):
        assert text in page
    cell = json.loads((out_dir / "cells/main/c_seed1/done.json").read_text("utf-8"))
    assert len(cell["commands"]) == 5
