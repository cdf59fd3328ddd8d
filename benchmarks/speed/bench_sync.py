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
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli

_RESULT = "stand_in.json"
_SIDE = 512


@dataclass(frozen=True)
class BenchSyncConfig:
    """Measure what saving on a remote costs the training."""

    num_turns: int = 3
    """Turns with and turns without the sync."""
    turn_s: float = 130.0
    """Seconds of a turn; two checkpoints and a last one."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    checkpoint_mb: float = 40.0
    """Size of a checkpoint; a policy of 3.3 M parameters with its optimiser has 40 MB."""
    interval_s: float = 60.0
    """Seconds between the rounds of the sync."""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""
    stand_in_dir: Path | None = None
    """Be the stand-in for a training that writes this folder (used by the benchmark itself)."""


@dataclass(frozen=True)
class Turn:
    """One turn of the stand-in.

    Attributes:
        steps_per_s: matrix products a second, from its first to its last.
        training_cpu_s: processor time of the stand-in.
        total_cpu_s: processor time of everything in the turn.
        wall_s: from the first product to the last.
        checkpoint_s: time spent in writing checkpoints.
    """

    steps_per_s: float
    training_cpu_s: float
    total_cpu_s: float
    wall_s: float
    checkpoint_s: float


def be_stand_in(config: BenchSyncConfig, folder: Path) -> None:
    """Compute, log, and write checkpoints for `turn_s` seconds."""
    rng = np.random.default_rng(0)
    content = rng.bytes(int(config.checkpoint_mb * 1e6))
    matrix = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    num_steps = num_checkpoints = num_lines = 0
    checkpoint_s = 0.0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < config.turn_s:
        matrix @ matrix
        num_steps += 1
        if elapsed > num_lines:
            num_lines += 1
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": num_steps, "loss": 0.5}) + "\n")
        if elapsed > config.checkpoint_every_s * (num_checkpoints + 1):
            begun = time.perf_counter()
            with replacing(folder / f"model_{num_checkpoints}.pt") as partial:
                # Other bytes every time, or the second one would not have to be sent.
                partial.write_bytes(str(num_checkpoints).encode() + content)
            checkpoint_s += time.perf_counter() - begun
            num_checkpoints += 1
    wall_s = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "steps_per_s": num_steps / wall_s,
        "training_cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": wall_s,
        "checkpoint_s": checkpoint_s,
    }
    write_json(folder / _RESULT, result)


def take_turn(config: BenchSyncConfig, *, with_sync: bool) -> Turn:
    """Run the stand-in once, alone or beside the sync."""
    with tempfile.TemporaryDirectory() as work:
        folder, remote = Path(work, "logs"), Path(work, "remote")
        folder.mkdir()
        words = [sys.executable, "-m", "benchmarks.speed.bench_sync"]
        words += ["--stand_in_dir", str(folder), "--turn_s", str(config.turn_s)]
        words += ["--checkpoint_every_s", str(config.checkpoint_every_s)]
        words += ["--checkpoint_mb", str(config.checkpoint_mb)]
        if with_sync:
            sync = [sys.executable, "-m", "ops.sync", "run", "--local", str(folder)]
            sync += ["--remote", f":local:{remote}", "--interval", str(config.interval_s)]
            words = [*sync, "--quiet", "--", *words]
        before = _children_cpu_s()
        subprocess.run(words, check=True, env=os.environ)
        total_cpu_s = _children_cpu_s() - before
        result = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
    return Turn(total_cpu_s=total_cpu_s, **result)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def run(config: BenchSyncConfig) -> dict[str, float] | None:
    """Measure and print; or be the stand-in."""
    if config.stand_in_dir is not None:
        be_stand_in(config, config.stand_in_dir)
        return None
    alone, synced = [], []
    for _ in range(config.num_turns):
        alone.append(take_turn(config, with_sync=False))
        synced.append(take_turn(config, with_sync=True))
    num_cores = len(os.sched_getaffinity(0))
    beside = [
        (turn.total_cpu_s - turn.training_cpu_s) / (turn.wall_s * num_cores) for turn in synced
    ]
    speeds = [[turn.steps_per_s for turn in turns] for turns in (alone, synced)]
    writing = [turn.checkpoint_s / turn.wall_s for turn in (*alone, *synced)]
    result = {
        "num_cores": float(num_cores),
        "sync_cpu_share": float(np.median(beside)),
        "steps_lost_share": 1 - float(np.median(speeds[1]) / np.median(speeds[0])),
        "steps_spread_share": float((max(speeds[0]) - min(speeds[0])) / np.median(speeds[0])),
        "checkpoint_writing_share": float(np.median(writing)),
    }
    print(
        f"sync: {100 * result['sync_cpu_share']:.2f} % of {num_cores} cores' time (start, rounds, "
        f"hashing, rclone); steps lost {100 * result['steps_lost_share']:.2f} %, where turns "
        f"without it spread by {100 * result['steps_spread_share']:.2f} %; wanted below 2 %"
    )
    print(
        f"writing {config.checkpoint_mb:.0f} MB every {config.checkpoint_every_s:.0f} s with fsync "
        f"takes the training {100 * result['checkpoint_writing_share']:.2f} % of its time"
    )
    if config.json_path is not None:
        write_json(config.json_path, result)
    return result


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchSyncConfig, run)


if __name__ == "__main__":
    main()
