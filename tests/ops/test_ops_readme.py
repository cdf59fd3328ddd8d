"""The commands of ops/README.md, the scripts, the systemd unit and the SLURM script."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from ops.chaos import ChaosConfig
from ops.chaos_sync import ChaosSyncConfig
from ops.store.errors import split_command
from ops.store.rclone import parse_remote, rclone_folder
from ops.sync import Command
from tests.project.test_readme import parsed_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "ops" / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^ *```bash\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE))
COMMANDS = [line.strip() for line in BLOCKS.splitlines() if not line.strip().startswith("#")]
SCRIPTS = sorted((ROOT / "ops").glob("*.sh")) + sorted((ROOT / "ops").glob("slurm/*.sbatch"))
CONFIGS = {"ops.sync": Command, "ops.chaos": ChaosConfig, "ops.chaos_sync": ChaosSyncConfig}


def starting_with(word):
    return [command for command in COMMANDS if command.startswith(word)]


@pytest.mark.parametrize("command", starting_with("python -m ops."))
def test_every_python_command_of_the_readme_parses(command, monkeypatch):
    words = shlex.split(command)
    own, after = split_command(words[3:])
    config = tyro.cli(CONFIGS[words[2]], args=own, use_underscores=True)
    if hasattr(config, "remote"):
        parse_remote(config.remote)
    for stage in _python_commands(after):
        if words[2] == "ops.chaos":
            assert parsed_config(stage, monkeypatch)
        else:
            assert (ROOT / shlex.split(stage)[1]).is_file()


def _python_commands(words):
    """Return the commands of Python that follow `--`, with and without a shell around them."""
    if not words:
        return []
    if words[:2] == ["sh", "-c"]:
        return [part.strip().removeprefix("exec ") for part in words[2].split("&&")]
    assert words[0] == "python"
    return [shlex.join(words)]


def test_the_readme_shows_every_subcommand_and_script():
    assert len(starting_with("python -m ops.sync")) >= 5
    for name in ("sync_rclone_dir", "sync_rclone_file", "run_with_rclone_sync", "resume_on_new_vm"):
        assert f"ops/{name}.sh" in README
        assert os.access(ROOT / "ops" / f"{name}.sh", os.X_OK)
    for path in re.findall(r"ops/(?:systemd|slurm)/[\w.-]+", README):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("command", starting_with("rclone config create s3"))
def test_the_commands_that_make_a_remote_are_understood_by_rclone(command, tmp_path):
    words = [str(rclone_folder() / "rclone"), *shlex.split(command)[1:]]
    config = tmp_path / "rclone.conf"
    environment = os.environ | {"RCLONE_CONFIG": str(config)}
    subprocess.run(words, env=environment, check=True, capture_output=True, timeout=60)
    assert f"[{words[3]}]" in config.read_text("utf-8")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_is_bash(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_the_systemd_unit_is_accepted_by_systemd(tmp_path):
    text = (ROOT / "ops" / "systemd" / "world-modality-train.service").read_text("utf-8")
    unit = tmp_path / "world-modality-train.service"
    unit.write_text(text.replace("/home/trainer/world-modality-vla", str(ROOT)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert unit.name not in done.stderr, done.stderr
    start = re.search(r"^ExecStart=((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert "resume_on_new_vm.sh" in start[1]


class Checkout:
    """The scripts, with a stand-in for Python that writes down what it is called with."""

    def __init__(self, path):
        self.path = path
        (path / "ops").mkdir()
        for script in (ROOT / "ops").glob("*.sh"):
            shutil.copy2(script, path / "ops")
        for script in (ROOT / "ops" / "slurm").glob("*.sbatch"):
            shutil.copy2(script, path)
        self.calls = path / "calls"
        self.program("python", 'printf "%s " "$@" >> "$CALLS"; echo >> "$CALLS"; eval "$DO"')
        self.program("scontrol", 'echo scontrol "$@" >> "$CALLS"')

    def program(self, name, body):
        path = self.path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def run(self, *words, **variables):
        programs = self.path / "bin"
        environment = {"OPS_PYTHON": str(programs / "python"), "CALLS": str(self.calls), "DO": ":"}
        environment |= {"PATH": f"{programs}:{os.environ['PATH']}", **variables}
        options = {"capture_output": True, "text": True, "timeout": 60}
        done = subprocess.run(words, cwd=self.path, env=os.environ | environment, **options)
        lines = self.calls.read_text("utf-8").splitlines() if self.calls.exists() else []
        return done.returncode, [line.strip() for line in lines]


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


RESUME = ("ops/resume_on_new_vm.sh", "--local", "logs", "--remote", "gdrive:x", "--interval", "9")


def test_a_new_machine_restores_and_then_resumes(checkout):
    code, calls = checkout.run(*RESUME, "--", "python", "train.py", "--name", "two words")
    assert code == 0
    assert calls == [
        "-m ops.sync restore gdrive:x logs --keep_local --allow_empty",
        "-m ops.sync run --local logs --remote gdrive:x --interval 9 -- "
        "python train.py --name two words --resume",
    ]


def test_a_restore_that_fails_does_not_start_the_run_afresh(checkout):
    code, calls = checkout.run(*RESUME, "--", "python", "train.py", DO="exit 1")
    assert code == 1
    assert len(calls) == 1


def test_the_resume_flag_may_be_empty_and_a_command_is_needed(checkout):
    _, calls = checkout.run(*RESUME, "--", "python", "train.py", RESUME_FLAG="")
    assert calls[1].endswith("-- python train.py")
    assert checkout.run(*RESUME)[0] == 2
    assert checkout.run("ops/resume_on_new_vm.sh", "--local", "x", "--", "true")[0] == 2


@pytest.mark.parametrize("subcommand", ["dir", "file"])
def test_the_thin_scripts_call_their_subcommand(checkout, subcommand):
    _, calls = checkout.run(f"ops/sync_rclone_{subcommand}.sh", "a", "gdrive:b", "--interval", "5")
    assert calls == [f"-m ops.sync {subcommand} a gdrive:b --interval 5"]


TASK = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_COUNT": "45"}
JOBS = {
    "train_model_c": {"SLURM_JOB_ID": "17"},
    "experiment_array": TASK,
    "precompute_array": TASK,
}


@pytest.mark.parametrize("job", JOBS)
def test_a_slurm_job_whose_time_is_up_is_queued_again_alone(checkout, job):
    # The stand-in plays the command: on SIGTERM it saves for a while and ends with an error.
    wait_for_term = 'if [[ "$3" != restore ]]; then '
    wait_for_term += 'trap "sleep 0.3; echo saved >> $CALLS; exit 143" TERM; '
    wait_for_term += 'kill -TERM "$BATCH_PID"; while :; do sleep 0.05; done; fi'
    script = f"export BATCH_PID=$$; source ./{job}.sbatch"
    where = {"SLURM_SUBMIT_DIR": ".", **JOBS[job]}
    code, calls = checkout.run("bash", "-c", script, DO=wait_for_term, **where)
    number = "17_7" if JOBS[job] is TASK else "17"
    assert (code, calls[-2:]) == (0, ["saved", f"scontrol requeue {number}"])


PRECOMPUTE = "-m world_modality.precompute_world_tokens --dataset_name a/b --l2_normalize"


@pytest.mark.parametrize(
    ("job", "variables", "last_call"),
    [
        ("train_model_c", {}, None),
        ("experiment_array", {"MATRIX": "m.yaml"}, "-m world_modality.experiment m.yaml --cell 7"),
        ("precompute_array", {}, f"{PRECOMPUTE} --shard 7/45"),
        ("precompute_array", {"NUM_SHARDS": "90"}, f"{PRECOMPUTE} --shard 7/90"),
    ],
)
def test_a_slurm_job_does_its_part_and_keeps_its_exit_code(checkout, job, variables, last_call):
    flags = PRECOMPUTE.split()[2:] if job == "precompute_array" else ()
    fail = 'if [[ "$3" != restore ]]; then exit 3; fi'
    where = {"SLURM_SUBMIT_DIR": ".", **JOBS[job], **variables}
    code, calls = checkout.run("bash", f"{job}.sbatch", *flags, DO=fail, **where)
    assert code == 3
    assert not any("scontrol" in line for line in calls)
    assert last_call in (None, calls[-1])


@pytest.mark.slow
def test_the_scripts_run_the_real_thing(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").write_text("x")
    environment = os.environ | {"OPS_PYTHON": sys.executable}
    script = str(ROOT / "ops" / "sync_rclone_dir.sh")
    words = [script, "logs", ":local:remote", "--once", "--nice", "0"]
    subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "remote" / "a").read_text("utf-8") == "x"
