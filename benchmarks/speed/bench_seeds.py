"""What seeds trained side by side cost, against the same seeds in a row.

    python -m benchmarks.speed.bench_seeds

Both take turns in one process, so that neither start-up nor the loading of data is in the figure.
"""

import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.speed.harness.synthetic_training import (
    open_trainer,
    synthetic_train_config,
    write_synthetic_cache,
)
from benchmarks.speed.harness.turns import median_ratio, take_turns
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli

if TYPE_CHECKING:
    from world_modality.training.trainer import Trainer


@dataclass(frozen=True)
class BenchSeedsConfig:
    """Measure seeds side by side against the same seeds in a row."""

    num_seeds: int = 3
    """Seeds that are trained."""
    num_frames: int = 20_000
    """Frames of the synthetic cache; a step does not grow with them."""
    embedding_dim: int = 768
    """Embedding dim of the synthetic cache."""
    d_model: int = 128
    """Width of the trunk."""
    n_layers: int = 3
    """Depth of the trunk."""
    batch_size: int = 256
    """Windows a step."""
    num_rounds: int = 6
    """Both take turns this many times."""
    steps_per_round: int = 4
    """Optimiser steps of each seed in a turn."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the steps; auto is the trainer's."""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


def measure(config: BenchSeedsConfig) -> dict[str, float]:
    """Return seconds a step of all seeds in both ways, and how many times faster side by side."""
    from world_modality.system.device import resolve_device
    from world_modality.training.side_by_side import SeedContext

    train_config = synthetic_train_config(
        d_model=config.d_model,
        n_layers=config.n_layers,
        batch_size=config.batch_size,
        precision=config.precision,
        device=config.device,
    )

    def trainers() -> list["Trainer"]:
        return [
            open_trainer(cache, replace(train_config, seed=seed))
            for seed in range(config.num_seeds)
        ]

    with tempfile.TemporaryDirectory() as folder:
        cache = write_synthetic_cache(Path(folder), config.num_frames, config.embedding_dim)
        alone, together = trainers(), trainers()
    contexts = [SeedContext(resolve_device(config.device)) for _ in together]
    steps = [[_steps(trainer) for trainer in half] for half in (alone, together)]

    def in_a_row() -> None:
        for own in steps[0]:
            for _ in range(config.steps_per_round):
                next(own)

    def side_by_side() -> None:
        for _ in range(config.steps_per_round):
            for context, own in zip(contexts, steps[1], strict=True):
                with context.entered():
                    next(own)

    seconds = take_turns({"side_by_side": side_by_side, "in_a_row": in_a_row}, config.num_rounds)
    medians = {
        f"{name}_step_s": float(np.median(times)) / config.steps_per_round
        for name, times in seconds.items()
    }
    return medians | median_ratio(seconds["in_a_row"], seconds["side_by_side"])


def _steps(trainer: "Trainer") -> Iterator[object]:
    """Train epoch after epoch."""
    return chain.from_iterable(trainer.epoch(number) for number in count())


def run(config: BenchSeedsConfig) -> dict[str, Any]:
    """Measure, print the table, and write JSON if asked."""
    import torch

    figures = measure(config)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"machine: {machine}, device {config.device}")
    print(
        f"{config.num_seeds} seeds: side by side {1e3 * figures['side_by_side_step_s']:.2f} ms a "
        f"step of all, in a row {1e3 * figures['in_a_row_step_s']:.2f} ms; times faster "
        f"{figures['ratio']:.2f} ({figures['ratio_min']:.2f} to {figures['ratio_max']:.2f})"
    )
    result = {"machine": machine, "seeds": figures}
    if config.json_path is not None:
        write_json(config.json_path, result)
    return result


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchSeedsConfig, run)


if __name__ == "__main__":
    main()
