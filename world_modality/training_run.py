"""A training run from where it stands to its last epoch: steps, validation, log, checkpoints."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from world_modality.checkpoint import Checkpoint
from world_modality.checkpoint_files import RunPosition
from world_modality.checkpoint_saver import CheckpointSaver
from world_modality.errors import InvalidInputError
from world_modality.offline_predictions import predict
from world_modality.run_log import NoLog, RunLog
from world_modality.stop_signals import StopSignals
from world_modality.train_config import TrainConfig
from world_modality.trainer import StepRecord, Trainer


class TrainingRun:
    """Trains to the last epoch, or until a signal asks to stop; killed at any moment, it can go on.

    Of the processes that share the training the first one validates, writes and prints; the
    others wait for it. A signal to one of them stops all after the same step.

    Args:
        config: all flags.
        trainer: at the state that the run goes on from.
        val_frames: where each epoch is validated.
        start: the checkpoint that the run goes on from, or what its checkpoints have in common:
            model and training state are replaced by those of the moment.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        val_frames: Int[np.ndarray, " M"],
        start: Checkpoint,
    ) -> None:
        self._config = config
        self._trainer = trainer
        self._val_frames = val_frames
        self._start = start
        self._epoch = start.epoch
        self._stop = StopSignals()
        self._saver = CheckpointSaver(config.log_dir, config.model_type, config.keep_last)
        self._group = trainer.group
        self._log = (
            RunLog(config.log_dir, self._position, trainer.global_step)
            if self._group.is_first
            else NoLog()
        )
        self._names = ["loss", "action_loss", "world_loss"]
        self._names += [] if trainer.head is None else [f"{trainer.head.name}_loss"]
        empty = torch.zeros(len(self._names))
        # Sums over the steps of the epoch that is under way.
        self._totals = start.training_state.get("epoch_totals", empty).to(trainer.tensors.device)

    def to_the_end(self) -> dict[str, float]:
        """Train; returns the metrics of the last epoch.

        Raises:
            InvalidInputError: the loss is not finite, or the last checkpoint could not be written.
            KeyboardInterrupt: SIGTERM or SIGINT came; what was done is saved.
        """
        metrics = self._log.last_epoch_metrics
        with self._stop, self._saver, self._log:
            while self._epoch < self._config.num_epochs:
                self._steps()
                metrics = self._train_means() | self._validate()
                self._log.epoch(self._epoch, self._trainer.global_step, metrics)
                shown = ", ".join(f"{k} {v:.4f}" for k, v in metrics.items())
                print(f"epoch {self._epoch}: {shown}")
                self._epoch += 1
                self._totals.zero_()
                self._save()
                if self._epoch < self._config.num_epochs and self._must_stop():
                    self._leave()
            self._saver.finish()
        return metrics

    @property
    def _position(self) -> RunPosition:
        done = self._epoch * self._trainer.steps_per_epoch
        return RunPosition(self._epoch, self._trainer.global_step - done)

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint of this moment belongs."""
        return self._config.log_dir / self._position.file_name(self._config.model_type)

    def _steps(self) -> None:
        """Make the steps that the epoch still has; a signal is obeyed after each."""
        done = self._position.epoch_step
        bar = tqdm(
            self._trainer.epoch(self._epoch, done),
            initial=done,
            total=self._trainer.steps_per_epoch,
            desc=f"epoch {self._epoch}",
            disable=not self._group.is_first,
        )
        every = self._config.save_every_steps
        for record in bar:
            losses = torch.stack(dataclasses.astuple(record.losses)[: len(self._names)])
            self._totals += losses
            if record.global_step % self._config.log_every == 0:
                bar.set_postfix(loss=f"{self._log_step(record, losses.tolist()):.4f}")
            is_due = every is not None and record.global_step % every == 0
            must_stop = self._must_stop()
            if is_due or must_stop:
                self._save()
            if must_stop:
                bar.close()
                self._leave()

    def _must_stop(self) -> bool:
        return self._group.any(self._stop.requested is not None)

    def _log_step(self, record: StepRecord, losses: list[float]) -> float:
        total, *parts = losses
        _require_finite_loss(total, record.global_step)
        named = dict(zip(self._names[1:], parts, strict=True))
        self._log.step(record.global_step, named, record.learning_rate)
        return total

    def _train_means(self) -> dict[str, float]:
        means = (self._totals / self._trainer.steps_per_epoch).tolist()
        _require_finite_loss(means[0], self._trainer.global_step)
        return {f"train_{name}": value for name, value in zip(self._names, means, strict=True)}

    def _validate(self) -> dict[str, float]:
        trainer = self._trainer
        metrics: dict[str, float] = {}
        is_interrupted = False
        if self._group.is_first:
            try:
                with self._stop.at_once():
                    metrics = validate(trainer, self._val_frames)
                    if trainer.head is not None:
                        metrics |= trainer.head.validate(trainer.policy, trainer.tensors)
            except KeyboardInterrupt:
                is_interrupted = True
        if self._group.any(is_interrupted):
            # All steps of the epoch are done; the resumed run begins with its validation.
            self._save()
            self._leave()
        return metrics

    def _save(self) -> None:
        """Save the run as it is now; what a checkpoint says is done has been logged before."""
        if not self._group.is_first:
            return
        path = self.checkpoint
        try:
            self._log.sync()
        except OSError as error:
            self._saver.report_failure(path, error)
            return
        self._saver.save(path, self._snapshot())

    def _snapshot(self) -> Checkpoint:
        trainer = self._trainer
        head = trainer.head
        state: dict[str, Any] = trainer.state()
        if self._position.epoch_step > 0:
            state["epoch_totals"] = self._totals
        return dataclasses.replace(
            self._start,
            epoch=self._epoch,
            global_step=trainer.global_step,
            model=trainer.policy.state_dict(),
            training_state=state,
            auxiliary_head=None if head is None else head.content(),
        )

    def _leave(self) -> None:
        self._saver.finish()
        print(
            f"stopped by {self._stop.requested or 'a signal to another process'} after step "
            f"{self._trainer.global_step}, saved as {self.checkpoint}",
            flush=True,
        )
        raise KeyboardInterrupt


def _require_finite_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InvalidInputError(
            f"the loss is {loss} at step {step}; lower --learning_rate, or look for outliers "
            "in the cache's actions, states and embeddings"
        )


def validate(trainer: Trainer, frames: Int[np.ndarray, " M"]) -> dict[str, float]:
    """Return exact means over the validation frames.

    `val_action_mse` is in units of the training standard deviation; `val_world_top1` and
    `val_world_top5` are over all horizons.
    """
    tokens = trainer.control.evaluation_tokens(frames, trainer.window_shape)
    errors = predict(trainer.policy, trainer.tensors, frames, tokens)
    metrics = {"val_action_mse": float(errors.squared_error.sum() / errors.valid.sum())}
    if errors.token_rank is not None:
        ranks = errors.token_rank[errors.token_rank >= 0]
        metrics["val_world_top1"] = float((ranks == 0).mean())
        metrics["val_world_top5"] = float((ranks < 5).mean())
    return metrics
