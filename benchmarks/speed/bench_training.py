"""How fast the trainer is: against a bare loop on one resident batch, and from start to first step.

    python -m benchmarks.speed.bench_training

The cache is synthetic and of LIBERO's size (273,465 frames of 768 dims), written once to
--work_dir.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed import first_step
from benchmarks.speed.synthetic_training import DATASET_NAME, open_trainer, write_synthetic_cache
from world_modality.atomic import write_json
from world_modality.cache import Cache
from world_modality.cli import run_cli


@dataclass(frozen=True)
class BenchTrainingConfig:
    """Measure training throughput and start-up, each against its floor, in one run."""

    work_dir: Path | None = None
    """Holds the synthetic cache (430 MB); by default a temporary folder."""
    num_frames: int = 273_465
    """Frames of the synthetic cache."""
    embedding_dim: int = 768
    """Embedding dim of the synthetic cache."""
    d_model: int = 128
    """Width of the trunk; small models show the trainer's own cost best."""
    n_layers: int = 3
    """Depth of the trunk."""
    batch_size: int = 256
    """Windows a step."""
    num_rounds: int = 8
    """Trainer and bare loop take turns this many times."""
    steps_per_round: int = 12
    """Optimiser steps a turn."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


def measure_throughput(config: BenchTrainingConfig, cache: Cache) -> dict[str, float]:
    """Return samples a second of the trainer and of a bare loop, taking turns, and their ratio."""
    import torch

    from world_modality.device import resolve_device
    from world_modality.losses import policy_losses
    from world_modality.policy import WorldPolicy
    from world_modality.trainer import autocast

    device = resolve_device(config.device)
    trainer = open_trainer(
        cache,
        device,
        d_model=config.d_model,
        n_layers=config.n_layers,
        batch_size=config.batch_size,
    )
    policy_config, tensors = trainer.policy.config, trainer.tensors
    frames = tensors.episodes.frames_of(cache.manifest["split"]["train"])
    bare = WorldPolicy(policy_config).to(device).train()
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-4, fused=device.type == "cuda")
    batch = tensors.gather(torch.from_numpy(frames[: config.batch_size]), trainer.window_shape)

    def bare_step() -> None:
        with autocast("auto", device):
            output = bare(batch.embeddings, batch.states, batch.world_tokens)
        optimizer.zero_grad(set_to_none=True)
        policy_losses(bare, output, batch, 0.2).total.backward()
        optimizer.step()

    epoch = trainer.epoch(0)
    turns = {"trainer": lambda: next(epoch), "bare": bare_step}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + config.num_rounds):
        for name, step in turns.items():
            started = time.perf_counter()
            for _ in range(config.steps_per_round):
                step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    samples = config.steps_per_round * config.batch_size
    # The first turn warms up. Medians, since these machines are noisy.
    rates = {name: samples / float(np.median(times[1:])) for name, times in seconds.items()}
    ratios = np.array(seconds["bare"][1:]) / np.array(seconds["trainer"][1:])
    return {
        "trainer_samples_per_s": rates["trainer"],
        "bare_samples_per_s": rates["bare"],
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def measure_first_step(config: BenchTrainingConfig, cache: Cache) -> dict[str, float]:
    """Return seconds of import, from there to the first step's end, and the peak memory."""
    with tempfile.TemporaryDirectory() as log_dir:
        flags = {
            "dataset_name": DATASET_NAME,
            "cache_dir": str(cache.cache_dir),
            "log_dir": log_dir,
            "model_type": "C",
            "device": config.device,
        }
        command = [sys.executable, "-m", first_step.__name__, json.dumps(flags)]
        environment = {**os.environ, first_step.STARTED_VARIABLE: str(time.time())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result["array_bytes"] = sum(p.stat().st_size for p in cache.folder.glob("*.npy"))
    result["peak_over_arrays_bytes"] = result["peak_bytes"] - result["array_bytes"]
    return result


def run(config: BenchTrainingConfig) -> dict[str, Any]:
    """Measure, print the table, and write JSON if asked."""
    import torch

    with tempfile.TemporaryDirectory() as temporary:
        cache_dir = config.work_dir or Path(temporary)
        cache = write_synthetic_cache(cache_dir, config.num_frames, config.embedding_dim)
        start = measure_first_step(config, cache)
        speed = measure_throughput(config, cache)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"machine: {machine}, device {config.device}")
    print(
        f"training: {speed['trainer_samples_per_s']:.0f} samples/s; bare loop on one resident "
        f"batch {speed['bare_samples_per_s']:.0f}; ratio {speed['ratio']:.3f} "
        f"({speed['ratio_min']:.3f} to {speed['ratio_max']:.3f}), wanted at least 0.9"
    )
    print(
        f"start: import {start['import_s']:.1f} s, then {start['first_step_s']:.1f} s to the first "
        f"step's end on {config.num_frames} x {config.embedding_dim}, wanted at most 5"
    )
    print(
        f"memory: peak {start['peak_bytes'] / 1e9:.2f} GB = arrays "
        f"{start['array_bytes'] / 1e9:.2f} + {start['peak_over_arrays_bytes'] / 1e9:.2f} GB, "
        "wanted at most arrays + 1.5"
    )
    result = {"machine": machine, "throughput": speed, "start": start}
    if config.json_path is not None:
        write_json(config.json_path, result)
    return result


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchTrainingConfig, run)


if __name__ == "__main__":
    main()
