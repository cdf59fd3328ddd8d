import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[2]


def shell_commands(text):
    """Return the commands of a Markdown text's bash blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line and not line.startswith("#")]


README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = shell_commands(README)
LAUNCHER = re.compile(r"^accelerate launch (?:--\w+ (?:\d+ )?)*")
PYTHON_COMMANDS = [
    command
    for command in (LAUNCHER.sub("python ", command) for command in COMMANDS)
    if command.startswith("python ")
]
INLINE_MODULES = sorted(set(re.findall(r"`python -m ([\w.]+)", README)))


def parsed_config(command, monkeypatch):
    """Return the config that a stage's command line gives, without running the stage."""
    words = shlex.split(command)[1:]
    module_name = words[1] if words[0] == "-m" else words[0].removesuffix(".py")
    arguments = words[2:] if words[0] == "-m" else words[1:]
    module = importlib.import_module(module_name)
    parsed = []

    def parse_only(config_type, run):
        parsed.append(tyro.cli(config_type, use_underscores=True))

    monkeypatch.setattr(module, "run_cli", parse_only)
    monkeypatch.setattr(sys, "argv", [module_name, *arguments])
    module.main()
    return parsed[0]


def test_the_readme_shows_every_stage():
    shown = "\n".join(COMMANDS)
    for stage in (
        "world_modality.precompute_world_tokens",
        "world_modality.precompute_instruction_embeddings",
        "world_modality.analyze_world_tokens",
        "world_modality.inspect_token_images",
        "world_modality.eval_offline",
        "world_modality.intervention_corrupt_world",
        "world_modality.experiment",
        "world_modality.report",
        "benchmarks.metaworld.collect_demos",
        "benchmarks.metaworld.eval_metaworld_success",
        "benchmarks.libero.collect_demos",
        "benchmarks.libero.eval_libero_success",
        "benchmarks.libero.export_libero_tasks_jsonl",
        "train_baseline_a.py",
        "train_baseline_b.py",
        "train_model_c.py",
    ):
        assert stage in shown


@pytest.mark.parametrize("command", PYTHON_COMMANDS)
def test_every_python_command_of_the_readme_parses(command, monkeypatch):
    config = parsed_config(command, monkeypatch)
    flags = re.findall(r"--(\w+)", command)
    assert flags
    for flag in flags:
        assert hasattr(config, flag)


def test_a_misspelt_flag_would_not_parse(monkeypatch):
    with pytest.raises(SystemExit):
        parsed_config("python train_model_c.py --dataset_nam x", monkeypatch)


@pytest.mark.parametrize("module", INLINE_MODULES)
def test_every_module_named_in_the_text_exists(module):
    assert hasattr(importlib.import_module(module), "main")


def test_every_make_target_of_the_readme_exists():
    targets = set(re.findall(r"make (?:-s )?([a-z][a-z-]*)", "\n".join(COMMANDS)))
    targets |= set(re.findall(r"`(?:\w+=\S+ )?make (?:-s )?([a-z][a-z-]*)", README))
    assert {"demo", "test", "env", "clean"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
