"""What the environment says to rclone, and whether the remote has what is said to be saved."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ops.store.rclone import rclone_folder
from ops.store.rclone_environment import BACKENDS, ignored_variables, rclone_environment

ROOT = Path(__file__).parents[2]
FILES = {"model.pt": "weights" * 50, "metrics.jsonl": '{"step": 1}\n', "config.json": "{}"}
LEAVES_OUT = {
    "RCLONE_DRY_RUN": "true",
    "RCLONE_EXCLUDE": "*.pt",
    "RCLONE_FILTER": "- *",
    "RCLONE_MAX_SIZE": "100B",
    "RCLONE_MAX_AGE": "1ms",
    "RCLONE_MAX_DEPTH": "0",
    "RCLONE_IGNORE_EXISTING": "true",
    "RCLONE_PROGRESS": "true",
    "RCLONE_VERBOSE": "2",
    "RCLONE_LOG_FILE": "/dev/stdout",
}


def sync(tmp_path, *words, **variables):
    return subprocess.run(
        [sys.executable, "-m", "ops.sync", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )


def save(tmp_path, *flags, remote=None, **variables):
    local = tmp_path / "logs"
    local.mkdir()
    for name, text in FILES.items():
        (local / name).write_text(text)
    words = ["dir", local, remote or f":local:{tmp_path}/remote", "--once", "--nice", "0"]
    return sync(tmp_path, *words, "--quiet_s", "0", *flags, **variables)


def restored(tmp_path, remote=None, **variables):
    back = tmp_path / "back"
    done = sync(tmp_path, "restore", remote or f":local:{tmp_path}/remote", back, **variables)
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_text() for path in back.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["RCLONE_DRY_RUN", "RCLONE_MAX_SIZE", "RCLONE_FILTER"])
def test_a_variable_that_leaves_files_out_has_no_effect_on_what_is_saved(tmp_path, name):
    done = save(tmp_path, **{name: LEAVES_OUT[name]})
    assert "everything is saved" in done.stderr, done.stderr
    assert f"rclone runs without {name}" in done.stderr
    assert restored(tmp_path) == FILES


def test_a_restore_does_not_depend_on_flags_in_the_environment(tmp_path):
    save(tmp_path)
    assert restored(tmp_path, **LEAVES_OUT) == FILES


def test_a_remote_that_the_environment_defines_is_used(tmp_path):
    remote = {
        "RCLONE_CONFIG_DISK_TYPE": "alias",
        "RCLONE_CONFIG_DISK_REMOTE": str(tmp_path / "remote"),
        "RCLONE_DRY_RUN": "true",
    }
    assert save(tmp_path, remote="disk:run", **remote).returncode == 0
    assert restored(tmp_path, "disk:run", **remote) == FILES
    assert (tmp_path / "remote" / "run").is_dir()


@pytest.mark.parametrize("flag", ["--dry-run", "--max-size 100B"])
def test_what_the_remote_does_not_list_is_not_said_to_be_saved(tmp_path, flag):
    """An rclone that reports success for files that it did not send."""
    program = tmp_path / "bin" / "rclone"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {rclone_folder() / "rclone"} "$@" {flag}\n')
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    done = save(tmp_path, "--final_timeout", "2", PATH=path)
    assert done.returncode == 1
    assert "everything is saved" not in done.stderr
    assert "NOT SAVED" in done.stderr
    assert "model.pt" in done.stderr.split("NOT SAVED")[1]


def test_rclone_gets_what_configures_remotes_and_credentials():
    kept = {
        "HOME": "/home/me",
        "HTTPS_PROXY": "http://proxy:3128",
        "AWS_ACCESS_KEY_ID": "x",
        "RCLONE_CONFIG": "/home/me/rclone.conf",
        "RCLONE_CONFIG_PASS": "x",
        "RCLONE_CONFIG_GDRIVE_TOKEN": "x",
        "RCLONE_PASSWORD_COMMAND": "pass rclone",
        "RCLONE_S3_ACCESS_KEY_ID": "x",
        "RCLONE_DRIVE_SERVICE_ACCOUNT_FILE": "x",
        "RCLONE_CA_CERT": "x",
    }
    assert rclone_environment(kept | LEAVES_OUT) == kept
    assert ignored_variables(kept | LEAVES_OUT) == sorted(LEAVES_OUT)


def test_the_options_of_every_backend_of_rclone_may_stand_in_the_environment():
    done = subprocess.run(
        [rclone_folder() / "rclone", "help", "backends"], capture_output=True, text=True, check=True
    )
    listed = done.stdout.partition("\n\nTo see more")[0]
    backends = {name.upper() for name in re.findall(r"^  (\w+) ", listed, re.MULTILINE)}
    assert backends - {"LOCAL"} == set(BACKENDS.split())
