"""The plugin as a distribution of its own: LeRobot finds it by its name."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import world_modality

ROOT = Path(__file__).parents[2]
NAME = "lerobot_policy_world_modality"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that the plugin is installed into."""
    folder = tmp_path_factory.mktemp("site")
    # A build leaves files beside the sources; the checkout is no place for them.
    source = shutil.copytree(ROOT / NAME, folder / "source")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    options = ["--no-build-isolation", "--target", str(folder / "site"), str(source)]
    subprocess.run([*install, *options], check=True)
    return folder / "site"


def test_every_module_is_installed_under_the_name_that_lerobot_looks_for(site):
    own = {path.name for path in (ROOT / NAME).glob("*.py")}
    assert {path.name for path in (site / NAME).glob("*.py")} == own
    (metadata,) = site.glob("*.dist-info/METADATA")
    assert f"\nName: {NAME}\n" in metadata.read_text(encoding="utf-8")


def test_lerobot_finds_the_policy_without_being_told(site, tmp_path):
    program = (
        "from lerobot.utils.import_utils import register_third_party_plugins\n"
        "register_third_party_plugins()\n"
        "from lerobot.policies.factory import get_policy_class\n"
        "print(get_policy_class('world_modality').__module__)\n"
        f"import {NAME}; print({NAME}.__file__)\n"
    )
    # The checkout gives this project's packages; the plugin comes from the folder before it.
    path = os.pathsep.join([str(site), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    module, file = done.stdout.splitlines()
    assert module == f"{NAME}.modeling_world_modality"
    assert file == str(site / NAME / "__init__.py")


def test_the_two_distributions_have_one_version():
    text = (ROOT / NAME / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    assert project["version"] == world_modality.__version__
    assert f"world-modality-vla=={world_modality.__version__}" in project["dependencies"]
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == own["requires-python"]
