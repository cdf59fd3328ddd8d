"""The whole experiment in one command, on demonstrations recorded from a simulator.

Each stage is the command that a user would type, printed before it runs; what is already done is
reused. The encoder is `pixel-pca`, a stand-in that needs no hub: the table shows how the test of
the claim works, not what DINOv2 tokens are worth.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.atomic import replacing, write_json
from world_modality.cli import run_cli
from world_modality.errors import UserError
from world_modality.intervals import Interval, ratio_interval

DATASET_NAME = "local/metaworld_demo"
ARMS = ("A", "B", "C", "C_no_world_input")
SCRIPTS = {
    "A": "train_baseline_a.py",
    "B": "train_baseline_b.py",
    "C": "train_model_c.py",
    "C_no_world_input": "train_model_c.py",
}


@dataclass(frozen=True)
class DemoConfig:
    """Record demonstrations, make world tokens, train four arms, and test the claim on them."""

    out_dir: Path = Path("demo")
    """Receives the dataset, the cache, the runs and the reports."""
    tasks: tuple[str, ...] = ()
    """MetaWorld tasks to record; the recorder's six where left out."""
    episodes_per_task: int = 25
    """Successful demonstrations of each task."""
    num_epochs: int = 10
    """Training epochs of each arm."""
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
    analysis_dir = config.out_dir / "analysis"
    tokens_dir = config.out_dir / "token_inspection"
    _stage("world_modality.analyze_world_tokens", *cache_flags, "--out_dir", str(analysis_dir))
    _stage(
        "world_modality.inspect_token_images",
        *(*cache_flags, "--dataset_root", dataset_root, "--out_dir", str(tokens_dir)),
    )
    for arm in ARMS:
        _train(config, arm, cache_flags)
    reports = {arm: _evaluate(config, arm, cache_flags) for arm in ARMS}
    table = _table(reports)
    pictures = sorted(
        [*analysis_dir.glob("*.png"), tokens_dir / "contact_sheet.jpg"]
        + [path for arm in ARMS for path in _log_dir(config, arm).glob("*/*.png")]
    )
    text = "\n".join([table, "", "pictures:", *(f"  {path}" for path in pictures)])
    with replacing(config.out_dir / "summary.md") as partial:
        partial.write_text(text + "\n")
    write_json(config.out_dir / "summary.json", reports)
    print(f"\n{text}\n\nalso in {config.out_dir / 'summary.md'}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    return reports


def _log_dir(config: DemoConfig, arm: str) -> Path:
    return config.out_dir / f"logs_{arm.lower()}"


def _train(config: DemoConfig, arm: str, cache_flags: list[str]) -> None:
    _command(
        SCRIPTS[arm],
        *("--model_type", arm, *cache_flags, "--log_dir", str(_log_dir(config, arm))),
        *("--num_epochs", str(config.num_epochs), "--seed", str(config.seed)),
        *("--d_model", "128", "--n_layers", "3", "--learning_rate", "1e-3", "--resume"),
    )


def _evaluate(config: DemoConfig, arm: str, cache_flags: list[str]) -> dict[str, Any]:
    log_dir = _log_dir(config, arm)
    checkpoint = log_dir / f"model_{arm}_epoch{config.num_epochs - 1}.pt"
    flags = ["--checkpoint", str(checkpoint), *cache_flags]
    reports = {}
    for module, name in (
        ("world_modality.eval_offline", "eval_offline"),
        ("world_modality.intervention_corrupt_world", "corrupt_world"),
    ):
        path = log_dir / f"{name}_{checkpoint.stem}" / f"{name}.json"
        if not path.exists() or path.stat().st_mtime < checkpoint.stat().st_mtime:
            _stage(module, *flags)
        reports[name] = json.loads(path.read_text())
    return reports


def _stage(module: str, *arguments: str) -> None:
    _command("-m", module, *arguments)


def _command(*arguments: str) -> None:
    print("\n$ python " + " ".join(arguments), flush=True)
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code != 0:
        raise UserError(
            f"the stage above failed with exit code {code}; run the same again after mending it"
        )


def _table(reports: dict[str, dict[str, Any]]) -> str:
    """Return the summary as Markdown: per arm, then the paired differences that test the claim."""
    first = reports["A"]["eval_offline"]
    lines = [
        f"{first['run']['num_val_episodes']} held-out episodes, {first['run']['num_val_frames']} "
        "frames; 95 % intervals by bootstrap over episodes; one seed.",
        f"Encoder: {first['run']['encoder_note']}.",
        "",
        "| arm | action MSE (training std²) | top-1 at k = 1 | top-5 at k = 1 "
        "| top-1 where the token changes | corrupted / clean |",
        "|---|---|---|---|---|---|",
    ]
    for arm, report in reports.items():
        error = _interval(report["eval_offline"]["actions"]["model"]["mse"])
        ratio = _interval(report["corrupt_world"]["corruptions"]["task_shuffle"]["ratio"])
        accuracies = _accuracies(report["eval_offline"]["world"], "model")
        lines.append(f"| {arm} | {error} | {accuracies} | {ratio} |")
    for name, label in (
        ("task_mean", "training mean of the task"),
        ("last_action", "last action held"),
    ):
        lines.append(f"| {label} | {_interval(first['actions'][name]['mse'])} | – | – | – | – |")
    world = reports["B"]["eval_offline"]["world"]
    for name, label in (
        ("copy", "copy of `w_t`"),
        ("bigram", "bigram"),
        ("change_bigram", "bigram told that the token changes"),
    ):
        lines.append(f"| {label} | – | {_accuracies(world, name)} | – |")
    lines += ["", *_comparisons(reports)]
    return "\n".join(lines)


def _accuracies(world: dict[str, Any] | None, predictor: str) -> str:
    """Return three cells: top-1 and top-5 on all frames, top-1 where the token changes."""
    if world is None:
        return "– | – | –"
    everywhere, changed = (world[subset][0]["accuracy"] for subset in ("all", "changed"))
    cells = [everywhere.get(f"{predictor}_{top}") for top in ("top1", "top5")]
    if predictor == "change_bigram":
        cells = [None, None]  # on frames where the token stays it has been told a falsehood
    cells.append(changed[f"{predictor}_top1"])
    return " | ".join("–" if cell is None else _interval(cell).percent for cell in cells)


def _comparisons(reports: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["action MSE, paired by episode (negative: the first is better):"]
    for arm, reference in (("B", "A"), ("C", "B"), ("C", "C_no_world_input")):
        difference = _paired_difference(
            reports[arm]["eval_offline"]["episodes"], reports[reference]["eval_offline"]["episodes"]
        )
        verdict = "not resolved: the interval spans 0"
        if difference.low is not None and difference.low > 0:
            verdict = f"{arm} is worse"
        if difference.high is not None and difference.high < 0:
            verdict = f"{arm} is better"
        lines.append(f"- {arm} minus {reference}: {difference} ({verdict}, for this one seed)")
    gain = _interval(reports["C"]["eval_offline"]["world"]["all"][0]["model_minus_bigram"])
    lines.append(f"- top-1 at k = 1, C's world head minus bigram: {gain.percent}")
    ratio = reports["C"]["corrupt_world"]["corruptions"]["task_shuffle"]["ratio"]
    lines.append(
        f"- C's action MSE with another frame's token of the same task, over its own: "
        f"{_interval(ratio)}"
    )
    return lines


def _paired_difference(first: dict[str, Any], second: dict[str, Any]) -> Interval:
    sums = np.array(first["squared_error_sum"]) - np.array(second["squared_error_sum"])
    return ratio_interval(sums, np.array(first["num_steps"]))


def _interval(stored: dict[str, Any]) -> Interval:
    return Interval(**stored)


def main() -> None:
    """Run the demo from the command line."""
    run_cli(DemoConfig, run)


if __name__ == "__main__":
    main()
