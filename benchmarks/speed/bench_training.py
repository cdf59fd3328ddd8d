"""How fast training is: against its floors, against LeRobot's DataLoader, and from the start.

    python -m benchmarks.speed.bench_training

The cache is synthetic and of LIBERO's size (273,465 frames of 768 dims), written once to
--work_dir; the dataset that LeRobot reads is recorded anew. Each part takes a minute or two.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.speed.harness import first_step, training_step
from benchmarks.speed.harness.lerobot_loading import DrawnFrames
from benchmarks.speed.harness.loading_rate import measure_loading
from benchmarks.speed.harness.synthetic_training import (
    DATASET_NAME,
    open_trainer,
    synthetic_train_config,
    write_synthetic_cache,
)
from benchmarks.speed.harness.training_step import (
    NUM_WORLD_TOKENS,
    PARTS,
    Part,
    measure_flops,
    measure_throughput,
)
from world_modality.cache.contract import Cache
from world_modality.policy.config import TrainConfig, flags_of, from_flags
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.system.device import resolve_device


@dataclass(frozen=True)
class BenchTrainingConfig:
    """Measure training against its floors and its peer, in one run."""

    parts: tuple[Part, ...] = PARTS
    """What to measure."""
    work_dir: Path | None = None
    """Holds the synthetic caches (470 MB); by default a temporary folder."""
    num_frames: int = 273_465
    """Frames of the synthetic cache; memory is also measured at a tenth of them."""
    embedding_dim: int = 768
    """Embedding dim of the synthetic cache."""
    d_model: int = 128
    """Width of the trunk; small models show the trainer's own cost best."""
    n_layers: int = 3
    """Depth of the trunk."""
    wide_d_model: int = 512
    """Width of a second trunk, of as many layers, whose FLOP/s are measured too."""
    batch_size: int = 256
    """Windows a step."""
    num_rounds: int = 8
    """What is compared takes turns this many times."""
    steps_per_round: int = 12
    """Optimiser steps a turn."""
    recorded_frames: int = 1_200
    """Frames of the dataset that LeRobot reads."""
    recorded_dim: int = 192
    """Embedding dim there; the demo's."""
    image_size: int = 128
    """Side of its camera's images."""
    loading_rounds: int = 2
    """Our batches and LeRobot's take turns this many times."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the steps and of the matrix product that they are compared with."""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


def measure_first_step(
    config: BenchTrainingConfig, cache: Cache, place: str = "auto"
) -> dict[str, float]:
    """Return seconds of import, from there to the first step's end, and the peak memory."""
    with tempfile.TemporaryDirectory() as log_dir:
        flags = {
            "dataset_name": DATASET_NAME,
            "cache_dir": str(cache.cache_dir),
            "log_dir": log_dir,
            "model_type": "C",
            "device": config.device,
            "embeddings_on": place,
        }
        command = [sys.executable, "-m", first_step.__name__, json.dumps(flags)]
        environment = {**os.environ, first_step.STARTED_VARIABLE: str(time.time())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    result |= {"num_frames": config.num_frames, "embedding_dim": config.embedding_dim}
    result["array_bytes"] = sum(p.stat().st_size for p in cache.folder.glob("*.npy"))
    result["peak_over_arrays_bytes"] = result["peak_bytes"] - result["array_bytes"]
    return result


def measure_growth(config: BenchTrainingConfig, folder: Path) -> dict[str, Any]:
    """Return the peak memory at a tenth of the frames and at all, with the embeddings on either.

    In fresh processes; by the first step every row has been read, for checks and statistics.
    """
    sizes = (config.num_frames // 10, config.num_frames)
    caches = [_cache(config, folder, n) for n in sizes]
    return {
        place: {
            "num_frames": sizes,
            "peak_bytes": [measure_first_step(config, c, place)["peak_bytes"] for c in caches],
        }
        for place in ("device", "disk")
    }


def _cache(config: BenchTrainingConfig, folder: Path, num_frames: int) -> Cache:
    return write_synthetic_cache(folder / f"{num_frames}_frames", num_frames, config.embedding_dim)


def run(config: BenchTrainingConfig) -> dict[str, Any]:
    """Measure, print, and write JSON if asked."""
    import torch

    device = resolve_device(config.device)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"machine: {machine}, device {device}, {config.precision}")
    result: dict[str, Any] = {"machine": machine, "device": str(device)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.work_dir or Path(temporary)
        for part in config.parts:
            result[part] = _measure(part, config, folder)
            print("\n".join(training_step.lines(part, result[part])), flush=True)
    if config.json_path is not None:
        write_json(config.json_path, result)
    return result


def _measure(part: Part, config: BenchTrainingConfig, folder: Path) -> dict[str, Any]:
    train_config = synthetic_train_config(
        device=config.device,
        precision=config.precision,
        d_model=config.d_model,
        n_layers=config.n_layers,
        batch_size=config.batch_size,
    )
    if part == "memory":
        return measure_growth(config, folder)
    if part == "loading":
        drawn = DrawnFrames(config.recorded_frames, config.recorded_dim, NUM_WORLD_TOKENS)
        return measure_loading(drawn, train_config, config.image_size, config.loading_rounds)
    if part == "flops":
        frames = DrawnFrames(config.recorded_frames, config.embedding_dim, NUM_WORLD_TOKENS)
        return {
            str(width): measure_flops(
                frames.tensors(resolve_device(config.device)),
                from_flags(TrainConfig, flags_of(train_config) | {"d_model": width}),
                config.num_rounds,
            )
            for width in (config.d_model, config.wide_d_model)
        }
    cache = _cache(config, folder, config.num_frames)
    if part == "start":
        return dict(measure_first_step(config, cache))
    return measure_throughput(
        open_trainer(cache, replace(train_config, embeddings_on="device")),
        open_trainer(cache, replace(train_config, embeddings_on="disk")),
        config.num_rounds,
        config.steps_per_round,
    )


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchTrainingConfig, run)


if __name__ == "__main__":
    main()
