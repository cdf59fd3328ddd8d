"""Names of remotes, what the environment says to rclone, and whether what is saved is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ops.store.errors import OpsError
from ops.store.rclone import (
    BACKENDS,
    ignored_variables,
    parse_remote,
    rclone_environment,
    rclone_folder,
)

ROOT = Path(__file__).parents[2]
INLINE = ":s3,provider=AWS,access_key_id=AKIA1234567,secret_access_key='s3cr3t/value':bucket/run"
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


@pytest.mark.parametrize("text", ["gdrive:runs/logs_c", "my drive:x", ":local:/mnt/a b/c", INLINE])
def test_names_that_rclone_takes_are_taken(text):
    assert parse_remote(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        *('gdrive:a"; touch /tmp/x; "', "gdrive:$(touch /tmp/x)", "gdrive:`id`", "gdrive:a\nb"),
        *("gdrive:a\\b", "gdrive:../other", "gdrive:runs/../../other", "-gdrive:x"),
        *("--config=x:y", "", ":", ":local:", "gdrive:" + "x" * 2000),
    ],
)
def test_names_that_a_shell_would_read_or_that_leave_their_folder_are_refused(text):
    with pytest.raises(OpsError):
        parse_remote(text)


def test_a_path_without_a_remote_is_refused_with_the_name_to_give():
    with pytest.raises(OpsError, match=r"for a folder write :local:/mnt/disk"):
        parse_remote("/mnt/disk")


def test_a_relative_local_remote_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse_remote(":local:runs/c").text == f":local:{tmp_path}/runs/c"


def test_credentials_of_a_connection_string_are_masked_everywhere():
    remote = parse_remote(INLINE)
    message = remote.scrub(f"cannot reach {INLINE} with AKIA1234567 and s3cr3t/value")
    for shown in (str(remote), repr(remote), message):
        assert "AKIA1234567" not in shown
        assert "s3cr3t" not in shown
    assert str(remote) == ":s3,***:bucket/run"
    with pytest.raises(OpsError) as caught:
        parse_remote(':s3,secret_access_key="abcdef$":bucket')
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "secret"),
    [
        ('token = {"access_token":"ya29.abc","refresh_token":"1//xyz"}', "1//xyz"),
        (r"{\"access_token\":\"ya29.abc\"}", "ya29"),
        ("oauth2: client_secret=GOCSPX-abc failed", "GOCSPX"),
        ("401 Authorization: Bearer ya29.abc", "ya29"),
        ("https://user:hunter2@host/x", "hunter2"),
        ("config at /home/me/.config/rclone/rclone.conf", "/home/me"),
        ("bad key from-the-environment", "from-the"),
    ],
)
def test_credentials_in_messages_of_rclone_are_masked(message, secret, monkeypatch):
    monkeypatch.setenv("RCLONE_S3_SECRET_ACCESS_KEY", "from-the-environment")
    scrubbed = parse_remote("gdrive:x").scrub(message)
    assert secret not in scrubbed
    assert "***" in scrubbed


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
    return {path.name: path.read_text("utf-8") for path in back.iterdir() if path.is_file()}


def test_variables_that_would_leave_files_out_have_no_effect(tmp_path):
    done = save(tmp_path, **LEAVES_OUT)
    assert "everything is saved" in done.stderr, done.stderr
    assert f"rclone runs without {', '.join(sorted(LEAVES_OUT))}" in done.stderr
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
