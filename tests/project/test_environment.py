"""ops/environment.sh without installing anything: a stand-in for uv records what it is asked."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from ops.uv_from_pip import read_pip_settings, uv_variables

REPOSITORY = Path(__file__).resolve().parents[2]
REQUIREMENTS_FILES = ("requirements.txt", "requirements-keep-torch.txt")


def without_installers() -> dict[str, str]:
    """Return this process's environment without what pip and uv read of it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}


class Checkout:
    """A copy of what the script needs, with its own cache and its own PATH."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self.cache = folder / "cache"
        self.bin = folder / "bin"
        self.log = folder / "uv.log"
        (self.root / "ops").mkdir(parents=True)
        self.bin.mkdir()
        for name in (*REQUIREMENTS_FILES, "ops/environment.sh", "ops/uv_from_pip.py"):
            (self.root / name).write_bytes((REPOSITORY / name).read_bytes())
        self.fake_uv("exit 0")

    def fake_uv(self, behaviour: str) -> None:
        log = shlex.quote(str(self.log))
        self.program("uv", f'echo "$@" >> {log}\n{behaviour}')

    def program(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def start(self, command: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            **without_installers(),
            "PYTHON": sys.executable,
            "ENV_DIR": "",
            "KEEP_TORCH": "",
            "XDG_CACHE_HOME": str(self.cache),
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "PIP_CONFIG_FILE": os.devnull,
            **variables,
        }
        script = str(self.root / "ops" / "environment.sh")
        return subprocess.Popen(
            ["bash", script, command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(command, **variables)
        out, errors = process.communicate(timeout=120)
        return process.returncode, out.strip(), errors

    def installs(self) -> list[str]:
        return self.log.read_text("utf-8").splitlines() if self.log.exists() else []

    def environment_path(self, **variables: str) -> str:
        code, _, errors = self.run("python", **variables)
        assert code == 1
        return errors.split("there is no environment at ")[1].split(";")[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'command not found' >&2; exit 127", "does not run; name a Python 3.11 or 3.12"),
        ("echo 3.9", "is Python 3.9; Python 3.11 or 3.12 is needed"),
    ],
)
def test_a_python_that_does_not_run_or_does_not_fit_is_refused(checkout, body, told):
    code, _, errors = checkout.run("create", PYTHON=str(checkout.program("some-python", body)))
    assert (code, told in errors) == (1, True), errors


def test_shims_that_do_not_run_are_passed_over_and_without_a_python_it_is_said_what_to_install(
    checkout,
):
    for name in ("python3.11", "python3.12", "python3"):
        checkout.program(name, "exit 127")
    code, _, errors = checkout.run("create", PYTHON="")
    assert code == 1
    assert "apt-get install python3.11 python3.11-venv" in errors
    checkout.program("python3", f'exec {shlex.quote(sys.executable)} "$@"')
    assert checkout.environment_path(PYTHON="").startswith(str(checkout.cache))


@pytest.mark.skipif("x86_64" not in os.uname(), reason="the lock is of this platform alone")
def test_the_lock_of_this_python_is_installed_unless_it_is_of_other_requirements(checkout):
    first = checkout.environment_path()
    assert first == checkout.environment_path()
    checkout.fake_uv("echo 'some-package==1'")
    assert checkout.run("lock")[0] == 0
    lock = checkout.root / "requirements-{}.{}.lock".format(*sys.version_info)
    locked = checkout.environment_path()
    assert checkout.run("create")[0] == 0
    assert checkout.installs()[-1].endswith(f"--requirement {lock}")

    lock.write_text(lock.read_text("utf-8") + "another-package==1\n")
    assert checkout.environment_path() != locked, "the path changes with the lock"

    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("another-package\n")
    assert checkout.environment_path() not in (first, locked), "and with the requirements"
    code, _, errors = checkout.run("create")
    assert code == 0
    assert f"{lock} was not made from this requirements.txt" in errors
    assert checkout.installs()[-1].endswith(f"--requirement {checkout.root}/requirements.txt")


def test_locks_are_made_for_both_pythons_and_name_what_they_were_made_from(checkout):
    checkout.fake_uv("echo 'some-package==1'")
    code, _, errors = checkout.run("lock")
    assert code == 0, errors
    digest = hashlib.sha256((checkout.root / "requirements.txt").read_bytes()).hexdigest()
    for version, call in zip(("3.11", "3.12"), checkout.installs(), strict=True):
        header, package = (
            (checkout.root / f"requirements-{version}.lock").read_text("utf-8").splitlines()
        )
        assert header.endswith(digest)
        assert package == "some-package==1"
        assert f"--generate-hashes --upgrade --python-version {version} " in call
    checkout.fake_uv("exit 1")
    before = (checkout.root / "requirements-3.11.lock").read_text("utf-8")
    code, _, errors = checkout.run("lock")
    assert code == 1
    assert "does not resolve on Python 3.11" in errors
    assert (checkout.root / "requirements-3.11.lock").read_text("utf-8") == before


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_the_locks_are_of_these_requirements_and_name_no_source(version):
    lock = (REPOSITORY / f"requirements-{version}.lock").read_text("utf-8")
    digest = hashlib.sha256((REPOSITORY / "requirements.txt").read_bytes()).hexdigest()
    assert lock.splitlines()[0].endswith(digest), "run make lock"
    assert "://" not in lock
    packages = re.findall(r"^([a-z0-9].*?)==\S+ (.*)$", lock, re.MULTILINE)
    assert len(packages) > 100
    assert all(hashed == "\\" for _, hashed in packages)


def test_a_kept_torch_has_to_be_there_and_is_overridden_out_of_the_installation(checkout, tmp_path):
    venv.create(tmp_path / "parent", with_pip=False)
    parent = str(tmp_path / "parent" / "bin" / "python")
    code, _, errors = checkout.run("create", PYTHON=parent, KEEP_TORCH="1")
    assert code == 1
    assert "there is no torch to keep" in errors
    assert checkout.installs() == []

    (packages,) = (tmp_path / "parent" / "lib").glob("python*/site-packages")
    (packages / "torch.py").write_text("__version__ = '2.99+rocm'")
    code, _, errors = checkout.run("create", PYTHON=parent, KEEP_TORCH="1")
    assert code == 0, errors
    assert f"kept torch 2.99+rocm {packages}/torch.py" in errors
    assert "--override" in checkout.installs()[0]
    overrides = (REPOSITORY / "requirements-keep-torch.txt").read_text("utf-8").splitlines()
    dropped = {line.split(" ; ")[0] for line in overrides if not line.startswith("#")}
    assert {"torch", "torchvision", "torchaudio", "triton"} <= dropped


def test_where_uv_cannot_be_had_pip_installs(checkout):
    (checkout.bin / "uv").unlink()
    (checkout.root / "requirements.txt").write_text("# nothing\n")
    code, _, errors = checkout.run("create", PIP_NO_INDEX="1")
    assert code == 0, errors
    assert "uv cannot be had; installing with pip" in errors


def test_an_installation_is_whole_before_it_is_used(checkout):
    checkout.fake_uv("exit 1")
    code, _, errors = checkout.run("create")
    assert code == 1
    assert "could not be installed" in errors
    env_dir = Path(checkout.environment_path())
    (env_dir / "leftover").touch()

    checkout.fake_uv("sleep 1")
    both = [checkout.start("create") for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(checkout.installs()) == 2, "the failed install, and one of the two at once"
    assert not (env_dir / "leftover").exists()

    code, out, _ = checkout.run("python")
    assert (code, out) == (0, str(env_dir / "bin" / "python"))
    assert checkout.run("create")[0] == 0
    assert len(checkout.installs()) == 2, "a whole environment is not installed again"

    neighbour = checkout.cache / "world-modality-vla" / "neighbour"
    neighbour.mkdir()
    assert checkout.run("remove")[0] == 0
    assert not env_dir.exists()
    assert neighbour.exists()


@pytest.mark.parametrize("command", ["create", "remove"])
def test_a_folder_of_somebody_else_is_left_alone(checkout, tmp_path, command):
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "chapter").write_text("text")
    code, _, errors = checkout.run(command, ENV_DIR=str(mine))
    assert code == 1
    assert "was not made by this Makefile" in errors
    assert (mine / "chapter").read_text("utf-8") == "text"


def test_pips_sources_become_uvs():
    listing = (
        ":env:.find-links='/wheels /more'\n"
        "global.extra-index-url='first'\n"
        "global.index-url='from-file'\n"
        "install.index-url='from-install'\n"
    )
    assert uv_variables(read_pip_settings(listing), {}) == {
        "UV_DEFAULT_INDEX": "from-install",
        "UV_INDEX": "first",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_what_the_user_set_for_uv_wins_over_pip():
    settings = {"index-url": "pip", "cert": "pip.pem"}
    environment = {"UV_INDEX_URL": "mine", "SSL_CERT_FILE": "mine.pem"}
    assert uv_variables(settings, environment) == {}


def test_the_exports_survive_the_shell(tmp_path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://user:a$b@mirror.example/simple\n")
    script = shlex.join([sys.executable, str(REPOSITORY / "ops" / "uv_from_pip.py")])
    environment = {**without_installers(), "PIP_CONFIG_FILE": str(config)}
    shell = f'eval "$({script})"; printf %s "$UV_DEFAULT_INDEX"'
    out = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True)
    assert out.stdout == "https://user:a$b@mirror.example/simple"
