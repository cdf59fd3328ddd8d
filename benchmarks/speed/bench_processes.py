"""How training scales over processes: all together against one of them, in turns in one run.

    accelerate launch --multi_gpu --num_processes 2 \
      -m benchmarks.speed.bench_processes --device cpu

The global batch is the same for both. While the first process trains alone, the others sleep in a
receive, so that it has the machine to itself; every process keeps its number of threads.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.harness.synthetic_training import (
    open_trainer,
    synthetic_train_config,
    write_synthetic_cache,
)
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError

if TYPE_CHECKING:
    from world_modality.system.process_group import ProcessGroup
    from world_modality.training.trainer import Trainer


@dataclass(frozen=True)
class BenchProcessesConfig:
    """Measure training in the launched processes together against one of them."""

    work_dir: Path | None = None
    """Holds the synthetic cache; by default a temporary folder."""
    num_frames: int = 20_000
    """Frames of the synthetic cache."""
    embedding_dim: int = 768
    """Embedding dim of the synthetic cache."""
    d_model: int = 128
    """Width of the trunk; small models show the cost of the messages best."""
    n_layers: int = 3
    """Depth of the trunk."""
    batch_size: int = 256
    """Windows a step, over all processes together."""
    num_rounds: int = 6
    """Together and alone take turns this many times."""
    steps_per_round: int = 4
    """Optimiser steps a turn."""
    device: str = "auto"
    """auto, cpu, cuda; each process takes a GPU of its own."""
    num_threads: int = 1
    """CPU threads of each process."""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


def measure(
    config: BenchProcessesConfig, group: "ProcessGroup", alone: "Trainer", shared: "Trainer"
) -> dict[str, float]:
    """Return samples a second alone and together, their ratio, and the seconds of the messages."""
    import torch

    parameters = [torch.zeros_like(p) for p in shared.policy.parameters()]
    epochs = alone.epoch(0), shared.epoch(0)

    def step_alone() -> None:
        if group.is_first:
            next(epochs[0])

    def step_together() -> None:
        next(epochs[1])
        group.any(False)

    def send_messages() -> None:
        group.sum(torch.zeros(2, device=group.device))
        group.sum_in_place(parameters)
        group.any(False)

    turns = {"alone": step_alone, "together": step_together, "messages": send_messages}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + config.num_rounds):
        for name, step in turns.items():
            seconds[name].append(_timed(step, config.steps_per_round, group))
    # The first turn warms up. Medians, since these machines are noisy.
    per_step = {
        name: float(np.median(times[1:])) / config.steps_per_round
        for name, times in seconds.items()
    }
    ratios = np.array(seconds["alone"][1:]) / np.array(seconds["together"][1:])
    return {
        "alone_samples_per_s": config.batch_size / per_step["alone"],
        "together_samples_per_s": config.batch_size / per_step["together"],
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
        "step_s": per_step["together"],
        "messages_s": per_step["messages"],
        "message_bytes": float(sum(p.nbytes for p in parameters)),
    }


def _timed(step: Callable[[], None], num_steps: int, group: "ProcessGroup") -> float:
    """Return the seconds of so many steps, from the moment when all processes are there."""
    import torch

    group.any(False)
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    if group.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def run(config: BenchProcessesConfig) -> dict[str, Any]:
    """Measure, print, and write JSON if asked."""
    import torch

    from world_modality.system.process_group import ProcessGroup

    torch.set_num_threads(config.num_threads)
    with ProcessGroup.joined(config.device) as group, tempfile.TemporaryDirectory() as temporary:
        if group.is_alone:
            raise InvalidInputError(
                "there is one process; start several: accelerate launch --multi_gpu "
                "--num_processes 2 -m benchmarks.speed.bench_processes"
            )
        work_dir = config.work_dir or Path(temporary)
        cache = group.from_first(
            lambda: write_synthetic_cache(work_dir, config.num_frames, config.embedding_dim)
        )
        train_config = synthetic_train_config(
            d_model=config.d_model,
            n_layers=config.n_layers,
            batch_size=config.batch_size,
            device=config.device,
        )
        alone, shared = (
            open_trainer(cache, train_config, of) for of in (ProcessGroup(group.device), group)
        )
        speed = measure(config, group, alone, shared)
        _print(config, group, speed)
        if config.json_path is not None and group.is_first:
            write_json(config.json_path, speed)
    return speed


def _print(config: BenchProcessesConfig, group: "ProcessGroup", speed: dict[str, float]) -> None:
    machine = f"{group.num_processes} processes of {config.num_threads} threads"
    print(
        f"{machine} on {group.device.type}: {speed['together_samples_per_s']:.0f} samples/s; one "
        f"{speed['alone_samples_per_s']:.0f}; ratio {speed['ratio']:.2f} "
        f"({speed['ratio_min']:.2f} to {speed['ratio_max']:.2f}) of {group.num_processes}"
    )
    print(
        f"a step {1e3 * speed['step_s']:.0f} ms, of it messages {1e3 * speed['messages_s']:.1f} ms "
        f"({speed['message_bytes'] / 1e6:.1f} MB of gradients)"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchProcessesConfig, run)


if __name__ == "__main__":
    main()
