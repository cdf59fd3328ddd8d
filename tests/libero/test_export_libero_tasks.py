import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.libero.export_libero_tasks_jsonl import ExportLiberoTasksConfig, run
from benchmarks.libero.suites import complete_suites, suite_tasks
from world_modality.source.task_texts import read_tasks_jsonl
from world_modality.system.errors import InvalidInputError, MissingKeyError

ROOT = Path(__file__).parents[2]


def read(path: Path) -> dict[int, str]:
    return read_tasks_jsonl(str(path), index_field="task_index", text_field="task")


def test_command_line_writes_what_the_instruction_stage_reads(tmp_path):
    out = tmp_path / "tasks.jsonl"
    command = [sys.executable, "-m", "benchmarks.libero.export_libero_tasks_jsonl"]
    done = subprocess.run(
        [*command, "--benchmark", "libero_object", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "10 tasks of libero_object" in done.stdout
    tasks = suite_tasks("libero_object")
    assert read(out) == {i: task.instruction for i, task in enumerate(tasks)}
    assert json.loads(out.read_text("utf-8").splitlines()[3]) == {
        "task_index": 3,
        "task": tasks[3].instruction,
        "suite": "libero_object",
        "name": tasks[3].name,
    }


def test_every_complete_suite_can_be_exported(tmp_path):
    for suite in complete_suites():
        out = tmp_path / f"{suite}.jsonl"
        tasks = run(ExportLiberoTasksConfig(benchmark=(suite,), out=out))
        assert read(out) == {i: task.instruction for i, task in enumerate(tasks)}
    assert "cabinet’s" in (tmp_path / "libero_goal_lan.jsonl").read_text(encoding="utf-8")


def test_several_suites_are_numbered_through_in_the_order_given(tmp_path):
    out = tmp_path / "tasks.jsonl"
    run(ExportLiberoTasksConfig(benchmark=("goal", "libero_10"), out=out))
    expected = [
        task.instruction for name in ("libero_goal", "libero_10") for task in suite_tasks(name)
    ]
    assert list(read(out).items()) == list(enumerate(expected))


def test_unknown_repeated_and_incomplete_suites_leave_no_file(tmp_path):
    out = tmp_path / "tasks.jsonl"
    for benchmark, error in (
        (("libero_objects",), MissingKeyError),
        (("object", "libero_object"), InvalidInputError),
        ((), InvalidInputError),
        (("libero_object_env",), InvalidInputError),
    ):
        with pytest.raises(error):
            run(ExportLiberoTasksConfig(benchmark=benchmark, out=out))
    assert not out.exists()
