"""`python -m ops.sync run` as a process: signals, exit codes, locks, remotes that fail."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ops.sync import main
from tests.fixtures.process import has_ended, wait_for

ROOT = Path(__file__).parents[2]
# A call of rclone that hangs for a reason of the machine is killed and made again.
QUICK = ["--interval", "0.2", "--quiet_s", "0", "--nice", "0", "--call_timeout", "20"]

TRAINING = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(number, frame):
    (folder / "last.pt").write_text(f"saved on signal {number}")
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(folder / "metrics.jsonl").write_text("started\\n")
print("training", flush=True)
time.sleep(float(sys.argv[2]))
(folder / "model.pt").write_text("trained")
"""


class Machine:
    def __init__(self, path):
        self.path = path
        self.local = path / "logs_c"
        self.remote = path / "remote"
        (path / "training.py").write_text(TRAINING)
        self.environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._started = []

    def rclone(self, script):
        """Put a stand-in for rclone in front of the real one."""
        program = self.path / "bin" / "rclone"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        self.environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"

    def sync(self, *words):
        return [sys.executable, "-m", "ops.sync", *map(str, words)]

    def run_words(self, *flags, seconds=0.0, remote=None, command=None):
        remote = remote or f":local:{self.remote}"
        command = command or [sys.executable, self.path / "training.py", self.local, seconds]
        words = ["run", "--local", self.local, "--remote", remote, *QUICK, *flags, "--", *command]
        return self.sync(*words)

    def call(self, words):
        options = {"capture_output": True, "text": True, "timeout": 120}
        return subprocess.run(words, env=self.environment, **options)

    def start(self, words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, env=self.environment, start_new_session=True, **pipes)
        self._started.append(process)
        return process

    def start_training(self):
        """Start `run` with a command that takes a minute, and wait until that is at work."""
        process = self.start(self.run_words(seconds=60))
        said, _, _ = select.select([process.stdout], [], [], 90)
        assert said, "the command was not started"
        assert process.stdout.readline() == "training\n"
        return process

    def end(self):
        """Kill what a failed test left running."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def restored(self):
        back = self.path / "back"
        done = self.call(self.sync("restore", f":local:{self.remote}", back))
        assert done.returncode == 0, done.stderr
        return {p.name: p.read_text("utf-8") for p in back.iterdir() if p.is_file()}


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.end()


def test_a_signal_reaches_the_command_and_what_it_then_saves_is_uploaded(machine):
    process = machine.start_training()
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 7, said
    assert "everything is saved" in said
    last = f"saved on signal {signal.SIGTERM}"
    assert machine.restored() == {"metrics.jsonl": "started\n", "last.pt": last}


@pytest.mark.parametrize(
    ("command", "code"), [(["sh", "-c", "exit 42"], 42), (["sh", "-c", "kill -9 $$"], 137)]
)
def test_the_exit_code_is_the_commands_even_if_the_remote_is_not_there(machine, command, code):
    machine.local.mkdir()
    (machine.local / "model.pt").write_text("only here")
    words = machine.run_words("--final_timeout", "2", remote="nowhere:x", command=command)
    done = machine.call(words)
    assert done.returncode == code
    assert "NOT SAVED on nowhere:x: model.pt" in done.stderr
    status = json.loads((machine.local / ".sync" / "status.json").read_text("utf-8"))
    assert status["unsaved"] == ["model.pt"]
    assert "didn't find section" in status["last_error"]


def test_a_remote_that_hangs_neither_stops_the_command_nor_outlasts_the_final_timeout(machine):
    machine.rclone("exec sleep 600")
    started = time.monotonic()
    limits = ["--final_timeout", "1", "--call_timeout", "300", "--new_run"]
    done = machine.call(machine.run_words(*limits))
    assert done.returncode == 0
    assert (machine.local / "model.pt").read_text("utf-8") == "trained"
    assert "NOT SAVED" in done.stderr
    assert time.monotonic() - started < 60


def test_an_rclone_does_not_outlive_the_sync_that_called_it(machine):
    """It could still replace what the next sync sends."""
    pid = machine.path / "pid"
    machine.rclone(f"echo $$ > {pid}.partial; mv {pid}.partial {pid}; exec sleep 600")
    machine.local.mkdir()
    process = machine.start(machine.sync("dir", machine.local, f":local:{machine.remote}"))
    wait_for(pid.exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: has_ended(int(pid.read_text("utf-8"))), 10)


def test_a_second_run_is_refused_until_the_first_one_is_dead(machine):
    process = machine.start_training()
    second = machine.call(machine.run_words())
    assert second.returncode == 1
    assert f"in use by another ops.sync (process {process.pid})" in second.stderr
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # The command is told that nobody saves for it any more.
    wait_for((machine.local / "last.pt").exists)
    done = machine.call(machine.run_words())
    assert done.returncode == 0, done.stderr
    assert machine.restored()["model.pt"] == "trained"


def test_credentials_given_inline_reach_neither_the_log_nor_the_status(machine):
    remote = ":s3,access_key_id=AKIAEXAMPLE,secret_access_key=wJalrXUt:bucket/run"
    # A program that complains with its whole command line.
    machine.rclone('echo "ERROR cannot do $*" >&2; exit 1')
    done = machine.call(machine.run_words("--final_timeout", "1", remote=remote))
    assert done.returncode == 0
    told = done.stderr + done.stdout + (machine.local / ".sync" / "status.json").read_text("utf-8")
    assert "NOT SAVED on :s3,***:bucket/run" in told
    assert "cannot do lsjson :s3,***:bucket/run" in told
    assert "AKIAEXAMPLE" not in told
    assert "wJalrXUt" not in told


@pytest.mark.slow
def test_one_file_is_saved_without_its_neighbours(machine):
    file = machine.path / "labels.jsonl"
    file.write_text("one\ntwo\n")
    (machine.path / "other").write_text("x")
    remote = f":local:{machine.remote}"
    assert machine.call(machine.sync("file", file, remote, "--once", *QUICK)).returncode == 0
    assert machine.restored() == {"labels.jsonl": "one\ntwo\n"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("dir nothing :local:/x", 1, "no folder nothing"),
        ("dir . :local:/x --interval 0", 1, "--interval must be above 0"),
        ("dir . /mnt/disk", 1, "for a folder write :local:/mnt/disk"),
        ("dir .", 2, ""),
        ("run --local x --remote :local:/x", 2, "needs the command to run after --"),
        ("dir . :local:/x -- true", 2, "the other subcommands take none"),
    ],
)
def test_a_wrong_command_line_is_told_from_an_error(
    words, code, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ops.sync", *words.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_sync_that_is_stopped_saves_a_last_time(machine):
    machine.local.mkdir()
    (machine.local / "a").write_text("1")
    words = machine.sync("dir", machine.local, f":local:{machine.remote}", "--interval", "600")
    process = machine.start([*words, "--quiet_s", "0", "--nice", "0"])
    wait_for((machine.remote / ".sync" / "manifests").is_dir)
    (machine.local / "a").write_text("2")
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert machine.restored() == {"a": "2"}
