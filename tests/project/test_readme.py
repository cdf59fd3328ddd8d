"""README.md and docs/: every command line parses, every link and every path is there."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from tests.project.test_command_lines import STAGES
from world_modality.policy.config import flags_of

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
# The page of a run as it was made, whose commands are those of its commit.
RECORD = "docs/report.md"
LAUNCHER = re.compile(r"^accelerate launch (?:--\w+ (?:\d+ )?)*")
ARRAY_JOB = re.compile(r"^sbatch \S+ ops/slurm/precompute_array\.sbatch")
PACKAGE_PATH = re.compile(r"`((?:world_modality|benchmarks|coc_vla|ops|tests|docs)/[\w./-]*)`")


def shell_commands(text):
    """Return the commands of a Markdown text's bash blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line and not line.startswith("#")]


def python_commands(text):
    """Return the stages' command lines of a page, without what starts several processes."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = [" ".join(words.split()) for words in re.findall(r"`([^`]+)`", prose)]
    started = [command.split(" -- ")[-1] for command in (*shell_commands(text), *inline)]
    stages = [LAUNCHER.sub("python ", command) for command in started]
    stages = [ARRAY_JOB.sub("python -m world_modality.precompute_world_tokens", c) for c in stages]
    return [c for c in stages if re.match(r"python (-m [\w.]+|\w+\.py)( |$)", c)]


COMMANDS = [
    pytest.param(command, id=f"{page}: {command}")
    for page, text in PAGES.items()
    if page != RECORD
    for command in dict.fromkeys(python_commands(text))
]


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


def anchors(text):
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_and_the_pages_show_every_stage():
    shown = "\n".join(command for page in PAGES.values() for command in python_commands(page))
    missing = {stage for stage in STAGES if stage not in shown}
    # Shown by ops/README.md, started by `make demo`, and started by the three training scripts.
    elsewhere = {"ops.chaos", "ops.chaos_sync", "ops.sync"}
    assert missing == {*elsewhere, "world_modality.demo", "world_modality.train"}
    assert "--backend qwen3-vl" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_every_python_command_of_the_pages_parses(command, monkeypatch):
    flags = re.findall(r" --(\w+)", command)
    if not flags:
        assert hasattr(importlib.import_module(command.split()[2]), "main")
        return
    values = flags_of(parsed_config(command, monkeypatch))
    for flag in flags:
        assert flag in values or flag.removeprefix("no_") in values


def test_a_misspelt_flag_would_not_parse(monkeypatch):
    with pytest.raises(SystemExit):
        parsed_config("python train_model_c.py --dataset_nam x", monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_path_of_a_page_leads_somewhere(page):
    for path in PACKAGE_PATH.findall(PAGES[page]):
        assert (ROOT / path).exists(), path
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = folder / path if path else ROOT / page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_map_shows_folders_that_exist():
    drawn = README.split("## The map")[1].split("```")[1]
    parents = [ROOT, *(ROOT / name for name in ("world_modality", "benchmarks", "coc_vla"))]
    folders = re.findall(r"(\w+)/", drawn)
    assert {"world_modality", "verdict", "system", "rollouts", "head", "docs"} <= set(folders)
    for folder in folders:
        assert any((parent / folder).is_dir() for parent in parents), folder


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_every_make_target_of_the_pages_exists():
    text = "\n".join(PAGES.values())
    targets = set(re.findall(r"^make (?:-s )?([a-z][a-z-]*)", text, re.MULTILINE))
    targets |= set(re.findall(r"[`(](?:\w+=\S+ )?make (?:-s )?([a-z][a-z-]*)[`) ]", text))
    assert {"demo", "test", "env", "clean", "verdict", "lint", "python"} <= targets
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
