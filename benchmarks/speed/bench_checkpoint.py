"""What checkpoints cost the training that writes them, at one a minute.

    python -m benchmarks.speed.bench_checkpoint

The trainer takes turns with and without checkpoints, which are written far more often than once a
minute, so that their cost stands out of the noise: what a turn loses, over its checkpoints, is the
cost of one. The floor is the copy in memory, which the training has to wait for.
"""

import dataclasses
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.speed.harness.synthetic_training import (
    open_trainer,
    synthetic_train_config,
    write_synthetic_cache,
)
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint
    from world_modality.training.trainer import Trainer

_MINUTE_S = 60.0


@dataclass(frozen=True)
class BenchCheckpointConfig:
    """Measure what a checkpoint costs the training."""

    num_frames: int = 20_000
    """Frames of the synthetic cache; a checkpoint does not grow with them."""
    embedding_dim: int = 768
    """Embedding dim of the synthetic cache."""
    d_model: int = 256
    """Width of the trunk."""
    n_layers: int = 4
    """Depth of the trunk."""
    batch_size: int = 256
    """Windows a step."""
    num_turns: int = 6
    """Turns with and turns without checkpoints."""
    saves_per_turn: int = 4
    """Checkpoints in a turn."""
    steps_per_save: int = 10
    """Optimiser steps between them."""
    device: str = "auto"
    """auto, cpu, cuda, …"""
    json_path: Path | None = None
    """Where to write the figures, if anywhere."""


class Turns:
    """Turns of one trainer with and without checkpoints.

    Args:
        config: how long a turn is.
        trainer: goes on from turn to turn.
        checkpoint: what does not change from one checkpoint to the next.
        log_dir: receives the checkpoints.
    """

    def __init__(
        self,
        config: BenchCheckpointConfig,
        trainer: "Trainer",
        checkpoint: "Checkpoint",
        log_dir: Path,
    ) -> None:
        self._config = config
        self._trainer = trainer
        self._checkpoint = checkpoint
        self._log_dir = log_dir
        self._steps = (record for epoch in range(10**6) for record in trainer.epoch(epoch))
        self.path = log_dir / "model_C_epoch0.pt"

    def take(self, *, with_checkpoints: bool) -> tuple[float, float]:
        """Return the seconds of a turn, and those that the training waited for its checkpoints."""
        import torch

        from world_modality.training.saver import CheckpointSaver

        waited_s = 0.0
        started = time.perf_counter()
        with CheckpointSaver(self._log_dir, "C", None) as saver:
            for _ in range(self._config.saves_per_turn):
                if with_checkpoints:
                    begun = time.perf_counter()
                    saver.save(self.path, self._of_now())
                    waited_s += time.perf_counter() - begun
                for _ in range(self._config.steps_per_save):
                    next(self._steps)
            if self._trainer.tensors.device.type == "cuda":
                torch.cuda.synchronize()
        return time.perf_counter() - started, waited_s

    def _of_now(self) -> "Checkpoint":
        return dataclasses.replace(
            self._checkpoint,
            model=self._trainer.policy.state_dict(),
            training_state=self._trainer.state(),
        )


def run(config: BenchCheckpointConfig) -> dict[str, float]:
    """Measure and print; write JSON if asked."""
    import torch

    from world_modality.policy.checkpoint import Checkpoint, checkpoint_arrays

    with tempfile.TemporaryDirectory() as work:
        cache = write_synthetic_cache(Path(work, "cache"), config.num_frames, config.embedding_dim)
        train_config = synthetic_train_config(
            device=config.device,
            d_model=config.d_model,
            n_layers=config.n_layers,
            batch_size=config.batch_size,
        )
        trainer = open_trainer(cache, train_config)
        checkpoint = Checkpoint(
            policy_config=trainer.policy.config,
            train_config=trainer.config,
            epoch=1,
            global_step=0,
            model={},
            training_state={},
            manifest=cache.manifest,
            cache_fingerprint=cache.fingerprint(),
            cache_arrays=checkpoint_arrays(cache),
        )
        turns = Turns(config, trainer, checkpoint, Path(work))
        turns.take(with_checkpoints=True)  # warms up
        pairs = [
            (turns.take(with_checkpoints=False), turns.take(with_checkpoints=True))
            for _ in range(config.num_turns)
        ]
        num_bytes = turns.path.stat().st_size
    lost = [(saving[0] - alone[0]) / config.saves_per_turn for alone, saving in pairs]
    waited = [saving[1] / config.saves_per_turn for _, saving in pairs]
    result = {
        "checkpoint_bytes": float(num_bytes),
        "lost_s_per_checkpoint": float(np.median(lost)),
        "lost_s_least": min(lost),
        "lost_s_most": max(lost),
        "waited_s_per_checkpoint": float(np.median(waited)),
        "share_at_one_a_minute": float(np.median(lost)) / _MINUTE_S,
    }
    print(f"machine: {platform.machine()}, {torch.get_num_threads()} threads, {config.device}")
    print(
        f"a checkpoint of {num_bytes / 1e6:.0f} MB costs the training {np.median(lost):.3f} s "
        f"({min(lost):.3f} to {max(lost):.3f}), of which it waits {np.median(waited):.3f} s for "
        f"the copy; at one a minute {100 * result['share_at_one_a_minute']:.2f} % of its time, "
        "wanted below 2 % together with the sync (bench_sync)"
    )
    if config.json_path is not None:
        write_json(config.json_path, result)
    return result


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchCheckpointConfig, run)


if __name__ == "__main__":
    main()
