"""What seeds trained side by side cost, against the same seeds in a row.

    python -m benchmarks.speed.bench_seeds

Both take turns in one process, so that neither start-up nor the loading of data is in the figure.
Beside the time, the operations of one step are counted, views left out: each is at least one kernel
launch on a GPU, where a small policy waits for launches more than for arithmetic.
"""

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.synthetic_training import (
    open_trainer,
    synthetic_train_config,
    write_synthetic_cache,
)
from world_modality.atomic import write_json
from world_modality.cli import run_cli

if TYPE_CHECKING:
    from world_modality.trainer import Trainer


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
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


def count_operations(step: Callable[[], object]) -> int:
    """Return how many operations that are no views reach the device in this step."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            aliases = [result.alias_info for result in func._schema.returns]
            is_view = any(alias is not None and not alias.is_write for alias in aliases)
            self.count += not is_view
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        step()
    return counter.count


def measure(config: BenchSeedsConfig) -> dict[str, float]:
    """Return seconds a step of both, their ratio, and the operations of a step."""
    import torch

    from world_modality.device import resolve_device
    from world_modality.random_draws import RandomState
    from world_modality.stacked_trainer import StackedTrainer

    device = resolve_device(config.device)
    train_config = synthetic_train_config(
        d_model=config.d_model,
        n_layers=config.n_layers,
        batch_size=config.batch_size,
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
    stacked = StackedTrainer(together, [RandomState(device) for _ in together])
    epochs = [trainer.epoch(0) for trainer in alone]
    stacked_epoch = stacked.epoch(0, 0)

    def in_a_row() -> None:
        for epoch in epochs:
            for _ in range(config.steps_per_round):
                next(epoch)

    def side_by_side() -> None:
        for _ in range(config.steps_per_round):
            next(stacked_epoch)

    turns = {"in_a_row": in_a_row, "side_by_side": side_by_side}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + config.num_rounds):
        for name, turn in turns.items():
            started = time.perf_counter()
            turn()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - started) / config.steps_per_round)
    # The first turn warms up. Medians, since these machines are noisy.
    ratios = np.array(seconds["side_by_side"][1:]) / np.array(seconds["in_a_row"][1:])
    return {
        **{f"{name}_step_s": float(np.median(times[1:])) for name, times in seconds.items()},
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
        "one_seed_operations": count_operations(lambda: next(epochs[0])),
        "side_by_side_operations": count_operations(lambda: next(stacked_epoch)),
    }


def run(config: BenchSeedsConfig) -> dict[str, Any]:
    """Measure, print the table, and write JSON if asked."""
    import torch

    figures = measure(config)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"machine: {machine}, device {config.device}")
    print(
        f"{config.num_seeds} seeds: side by side {figures['side_by_side_step_s']:.3f} s a step, "
        f"in a row {figures['in_a_row_step_s']:.3f} s; ratio {figures['ratio']:.2f} "
        f"({figures['ratio_min']:.2f} to {figures['ratio_max']:.2f})"
    )
    print(
        f"operations a step: {figures['side_by_side_operations']:.0f} for all side by side, "
        f"{figures['one_seed_operations']:.0f} for one seed alone"
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
