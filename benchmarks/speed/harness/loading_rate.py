"""Batches alone, and training fed by them: gathered by index, and by LeRobot's DataLoader."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.harness.lerobot_loading import (
    DrawnFrames,
    LeRobotBatches,
    require_same_windows,
)
from benchmarks.speed.harness.synthetic_training import trainer_on

if TYPE_CHECKING:
    import torch

    from world_modality.cache.frame_shapes import WindowShape
    from world_modality.cache.frame_tensors import Batch
    from world_modality.policy.config import TrainConfig
    from world_modality.tokens.control_tokens import TokenControl
    from world_modality.training.trainer import Trainer

NUM_WORKERS = (0, 2)
GATHERED_BATCHES = 200
LOADED_BATCHES = 2
TRAINED_STEPS = 8


class FedBatches:
    """Stands in a trainer's control: hands it the batches that something else has loaded."""

    def __init__(self, batches: Iterator["Batch"], device: "torch.device") -> None:
        self._batches = batches
        self._device = device

    def gather(
        self,
        frames: "torch.Tensor",
        shape: "WindowShape",
        step: int,
        part: slice = slice(None),
    ) -> "Batch":
        """Return the next batch on the device, whatever the frames."""
        batch = next(self._batches)
        moved = {n: v.to(self._device) for n, v in vars(batch).items() if v is not None}
        return replace(batch, **moved)


def measure_loading(
    drawn: DrawnFrames, config: "TrainConfig", image_size: int, num_rounds: int
) -> dict[str, Any]:
    """Return samples a second of batches alone and of training, ours and LeRobot's in turns.

    LeRobot reads a dataset with a camera, as recordings have, and one that holds no more than the
    arrays of a cache, which is the least that its DataLoader can be asked for.
    """
    from world_modality.system.device import resolve_device

    device = resolve_device(config.device)
    tensors = drawn.tensors(device)
    frames = np.arange(drawn.num_frames)
    ours = trainer_on(tensors, frames, drawn.num_world_tokens, config)
    fed = trainer_on(tensors, frames, drawn.num_world_tokens, config)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        peers = {}
        for name, size in (("with camera", image_size), ("arrays only", 0)):
            root = Path(temporary) / name.replace(" ", "_")
            drawn.record(root, size)
            peers[name] = LeRobotBatches(root, ours.window_shape, config.batch_size)
            require_same_windows(tensors, peers[name], ours.window_shape)
        for _ in range(num_rounds):
            _add(rates, "batches: ours", _gather_rate(ours))
            _add(rates, "training: ours", _training_rate(ours, TRAINED_STEPS))
            for name, peer in peers.items():
                for workers in NUM_WORKERS:
                    label = f"LeRobot, {name}, {workers} workers"
                    batches = peer.shuffled(workers)
                    _add(rates, f"batches: {label}", _loader_rate(batches, config.batch_size))
                    fed.control = _as_control(FedBatches(batches, device))
                    _add(rates, f"training: {label}", _training_rate(fed, LOADED_BATCHES))
    return {
        name: {
            "samples_per_s": float(np.median(measured)),
            "ratio": float(np.median(np.array(rates[f"{name.split(':')[0]}: ours"]) / measured)),
        }
        for name, measured in rates.items()
    }


def _as_control(batches: FedBatches) -> "TokenControl":
    from typing import cast

    return cast("TokenControl", batches)


def _add(rates: dict[str, list[float]], name: str, rate: float) -> None:
    rates.setdefault(name, []).append(rate)


def _gather_rate(trainer: "Trainer") -> float:
    import torch

    size, num_frames = trainer.config.batch_size, trainer.tensors.episodes.num_frames
    drawn = torch.randint(num_frames, (GATHERED_BATCHES, size), device=trainer.tensors.device)
    return _rate(
        lambda: [trainer.tensors.gather(chosen, trainer.window_shape) for chosen in drawn],
        GATHERED_BATCHES * size,
    )


def _loader_rate(batches: Iterator["Batch"], batch_size: int) -> float:
    next(batches)  # starts the workers
    return _rate(
        lambda: [next(batches) for _ in range(LOADED_BATCHES)], LOADED_BATCHES * batch_size
    )


def _training_rate(trainer: "Trainer", num_steps: int) -> float:
    import torch

    size, num_frames = trainer.config.batch_size, trainer.tensors.episodes.num_frames
    drawn = torch.randint(num_frames, (1 + num_steps, size), device=trainer.tensors.device)
    trainer.step(drawn[0])
    return _rate(lambda: [trainer.step(chosen) for chosen in drawn[1:]], num_steps * size)


def _rate(work: Callable[[], object], num_samples: int) -> float:
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return num_samples / (time.perf_counter() - started)
