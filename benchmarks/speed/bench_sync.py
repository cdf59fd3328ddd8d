"""What `ops.sync run` costs the training beside it, at one checkpoint a minute.

    python -m benchmarks.speed.bench_sync

The training is a stand-in that keeps all cores busy with matrix products, logs a line a second and
writes a checkpoint through `world_modality.system.atomic`. It runs in turns with and without the
sync, on a folder remote. Two figures: the loss of steps, and the processor time of the sync and of
rclone, which is the one that noise from other programs touches least.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.speed.harness.measuring import (
    BenchConfig,
    Comparison,
    Figure,
    fresh_process,
    report,
)
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli

_RESULT = "stand_in.json"
_SIDE = 512


@dataclass(frozen=True)
class BenchSyncConfig(BenchConfig):
    """Measure what saving on a remote costs the training."""

    num_rounds: int = 3
    """How many turns the training runs with the sync, and how many without."""
    turn_s: float = 130.0
    """Seconds of a turn, in which two checkpoints and a last one are saved."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    checkpoint_mb: float = 40.0
    """Size of a checkpoint in MB; a policy of 3.3 M parameters with its optimiser takes 40 MB."""
    interval_s: float = 60.0
    """Seconds from one round of the sync to the next."""


def stand_in(folder_path: str, turn_s: float, every_s: float, checkpoint_mb: float) -> None:
    """Compute, log, and write checkpoints for `turn_s` seconds; write what that gave, too."""
    folder = Path(folder_path)
    rng = np.random.default_rng(0)
    content = rng.bytes(int(checkpoint_mb * 1e6))
    matrix = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    num_steps = num_checkpoints = num_lines = 0
    checkpoint_s = 0.0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < turn_s:
        matrix @ matrix
        num_steps += 1
        if elapsed > num_lines:
            num_lines += 1
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": num_steps, "loss": 0.5}) + "\n")
        if elapsed > every_s * (num_checkpoints + 1):
            begun = time.perf_counter()
            with replacing(folder / f"model_{num_checkpoints}.pt") as partial:
                # Other bytes every time, or the second one would not have to be sent.
                partial.write_bytes(str(num_checkpoints).encode() + content)
            checkpoint_s += time.perf_counter() - begun
            num_checkpoints += 1
    wall_s = time.perf_counter() - started
    result = {
        "steps_per_s": num_steps / wall_s,
        "cpu_s": _cpu_s(resource.RUSAGE_SELF),
        "wall_s": wall_s,
        "checkpoint_s": checkpoint_s,
    }
    write_json(folder / _RESULT, result)


def take_turn(config: BenchSyncConfig, *, with_sync: bool) -> dict[str, float]:
    """Run the stand-in once, alone or beside the sync.

    Returns:
        `steps_per_s`, `checkpoint_s` and `wall_s` of the stand-in, and `beside_s`, the processor
        time of everything else in the turn.
    """
    with tempfile.TemporaryDirectory() as work:
        folder, remote = Path(work, "logs"), Path(work, "remote")
        folder.mkdir()
        sizes = (config.turn_s, config.checkpoint_every_s, config.checkpoint_mb)
        words = fresh_process(stand_in, folder, *sizes)
        if with_sync:
            sync = [sys.executable, "-m", "ops.sync", "run", "--local", str(folder)]
            sync += ["--remote", f":local:{remote}", "--interval", str(config.interval_s)]
            words = [*sync, "--quiet", "--", *words]
        before = _cpu_s(resource.RUSAGE_CHILDREN)
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        total_s = _cpu_s(resource.RUSAGE_CHILDREN) - before
        result: dict[str, float] = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    return {**result, "beside_s": total_s - result["cpu_s"]}


def _cpu_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def measure(config: BenchSyncConfig) -> Iterator[Figure]:
    """Take turns without and with the sync."""
    pairs = [
        (take_turn(config, with_sync=False), take_turn(config, with_sync=True))
        for _ in range(config.num_rounds)
    ]
    alone, synced = zip(*pairs, strict=True)
    rates = {
        name: [turn["steps_per_s"] for turn in turns]
        for name, turns in (("steps alone", alone), ("steps beside the sync", synced))
    }
    speeds = Comparison("steps/s", rates)
    yield speeds.figure("steps alone")
    yield speeds.figure("steps beside the sync", "steps alone", "at least 0.98")
    cores = len(os.sched_getaffinity(0))
    shares = [100 * turn["beside_s"] / (turn["wall_s"] * cores) for turn in synced]
    name, wanted = f"the sync's share of {cores} cores", "below 2 (start, rounds, hashing, rclone)"
    yield Figure.alone(name, "%", *shares, wanted=wanted)
    shares = [100 * turn["checkpoint_s"] / turn["wall_s"] for turn in (*alone, *synced)]
    name = f"writing {config.checkpoint_mb:.0f} MB every {config.checkpoint_every_s:.0f} s"
    yield Figure.alone(name, "%", *shares)


def run(config: BenchSyncConfig) -> list[Figure]:
    """Measure, print the table, and write JSON if asked."""
    return report(config, measure(config))


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchSyncConfig, run)


if __name__ == "__main__":
    main()
