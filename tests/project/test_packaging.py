"""The wheel, unpacked outside the checkout, is the whole product."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import ops
import world_modality
from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.project.test_command_lines import STAGES

ROOT = Path(__file__).parents[2]
PACKAGES = ("world_modality", "coc_vla", "benchmarks", "ops")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a folder with the content of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = (*PACKAGES, "README.md", "LICENSE", "pyproject.toml", "requirements.txt")
    source.mkdir()
    # A build leaves files beside the sources; the checkout is no place for them.
    for name in (*kept, *(path.name for path in ROOT.glob("train_*.py"))):
        subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run_installed(site, folder, *arguments):
    """Run Python where nothing but the wheel's content gives the packages."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_template_and_prompt_is_in_the_wheel(site):
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in {".py", ".j2", ".txt", ".yaml"}
    }
    assert {"world_modality/system/cli.py", "coc_vla/prompts/coc_v1.txt"} <= wanted
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert wanted - found == set()
    assert not [name for name in found if name.startswith("tests")]


def test_every_stage_outside_the_checkout_says_its_version(site, tmp_path):
    program = (
        "import importlib, sys\n"
        "for stage in sys.argv[1:]:\n"
        "    sys.argv = [stage, '--version']\n"
        "    module = importlib.import_module(stage)\n"
        f"    assert module.__file__.startswith({str(site)!r}), module.__file__\n"
        "    try:\n        module.main()\n"
        "    except SystemExit as stop:\n        assert not stop.code\n"
    )
    out = run_installed(site, tmp_path / "elsewhere", "-c", program, *STAGES)
    assert out == f"world-modality-vla {world_modality.__version__}\n" * len(STAGES)


def test_an_experiments_training_scripts_are_found_outside_the_checkout(site, tmp_path):
    program = (
        "from world_modality.system.cli import located\n"
        "print(located(['train_model_c.py', '--resume']))\n"
    )
    out = run_installed(site, tmp_path / "elsewhere", "-c", program)
    assert out == f"{[str(site / 'train_model_c.py'), '--resume']}\n"
    assert (site / "train_model_c.py").is_file()


@pytest.mark.slow
def test_three_stages_run_from_the_wheel(site, tmp_path):
    folder = tmp_path / "elsewhere"
    cache = write_synthetic_cache(tmp_path / "cache", SyntheticSpec(num_episodes=30))
    flags = ("--dataset_name", cache.dataset_name, "--cache_dir", cache.cache_dir)
    size = ("--d_model", 32, "--n_layers", 1, "--num_epochs", 1, "--device", "cpu")
    run_installed(site, folder, "-m", "world_modality.analyze_world_tokens", *flags)
    run_installed(site, folder, "-m", "train_model_c", *flags, *size, "--log_dir", "logs_c")
    checkpoint = folder / "logs_c" / "model_C_epoch0.pt"
    out = run_installed(
        *(site, folder, "-m", "world_modality.eval_offline", "--checkpoint", checkpoint, *flags)
    )
    assert "training mean of the task" in out


def test_the_version_is_the_same_everywhere():
    versions = {world_modality.__version__, ops.__version__}
    versions.add(yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"])
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions.add(re.findall(r"^## (\d\S*)", changes, re.MULTILINE)[0])
    assert len(versions) == 1
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["license"] == "Apache-2.0"
