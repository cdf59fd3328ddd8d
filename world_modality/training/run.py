"""A training run from where it stands to its last epoch: steps, validation, log, checkpoints."""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from world_modality.policy.checkpoint import Checkpoint, RunPosition
from world_modality.policy.config import TrainConfig
from world_modality.policy.heads import loss_names
from world_modality.policy.predictions import predict
from world_modality.system.errors import InvalidInputError
from world_modality.system.stop_signals import StopSignals
from world_modality.training.log import NoLog, RunLog
from world_modality.training.saver import CheckpointSaver
from world_modality.training.tracker import open_tracker
from world_modality.training.trainer import StepRecord, Trainer


def validate(trainer: Trainer, frames: Int[np.ndarray, " M"]) -> dict[str, float]:
    """Return exact means over the validation frames.

    `val_action_mse` is in units of the training standard deviation; `val_world_top1` and
    `val_world_top5` are over all horizons, as are R² and cosine of targets that are vectors.
    """
    tokens = trainer.control.evaluation_tokens(frames, trainer.window_shape)
    errors = predict(trainer.policy, trainer.tensors, frames, tokens)
    metrics = {"val_action_mse": float(errors.squared_error.sum() / errors.valid.sum())}
    if errors.token_rank is not None:
        ranks = errors.token_rank[errors.token_rank >= 0]
        metrics["val_world_top1"] = float((ranks == 0).mean())
        metrics["val_world_top5"] = float((ranks < 5).mean())
    for target, found in errors.vectors.items():
        metrics |= found.metrics(target)
    if errors.change_rank is not None:
        ranks = errors.change_rank[errors.change_rank >= 0]
        for best in (1, 5) if len(ranks) else ():  # held-out episodes may all be too short
            metrics[f"val_change_token_top{best}"] = float((ranks < best).mean())
    return metrics


class TrainingStoppedError(KeyboardInterrupt):
    """A run has ended because a signal asked for it, and is saved."""


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
        stop: the signals that the runs of several seeds, trained side by side, obey at the same
            step; the run is then opened and stepped from outside. None for a run on its own.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        val_frames: Int[np.ndarray, " M"],
        start: Checkpoint,
        stop: StopSignals | None = None,
    ) -> None:
        self._config = config
        self.trainer = trainer
        self._val_frames = val_frames
        self._start = start
        self._epoch = start.epoch
        self._stop = stop or StopSignals()
        self._label = "" if stop is None else f"seed {config.seed}, "
        self.saver = CheckpointSaver(config.log_dir, config.model_type, config.keep_last)
        self._group = trainer.group
        self._log = (
            RunLog(config.log_dir, self.position, trainer.global_step, open_tracker(config))
            if self._group.is_first
            else NoLog()
        )
        self.metrics = self._log.last_epoch_metrics
        self._names = loss_names(
            start.policy_config.frame.world.num_world_slots, config.target.world_target
        )
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
        self.print_header()
        with self._stop, self.opened():
            self.go_to(self._config.num_epochs * self.trainer.steps_per_epoch)
            self.saver.finish()
        return self.metrics

    def print_header(self) -> None:
        """Print what is trained, on what and where."""
        config, trainer, manifest = self._config, self.trainer, self._start.manifest
        device, encoder = trainer.tensors.device, manifest["encoder"]
        where = f"{device.type} of {self._group.num_processes} processes"
        num_parameters = sum(p.numel() for p in trainer.policy.parameters())
        print(
            f"model {config.model_type}: {num_parameters / 1e6:.2f} M parameters on "
            f"{device if self._group.is_alone else where}, {trainer.steps_per_epoch} steps an "
            f"epoch, {len(self._val_frames)} validation frames; encoder {encoder['name']}"
        )
        if config.use_language:
            print(f"language: {manifest['text']['name']}")
        if trainer.head is not None:
            num_own = sum(p.numel() for p in trainer.head.parameters())
            print(f"{trainer.head.name} head: {num_own / 1e6:.2f} M parameters")
        if encoder.get("note"):
            print(f"note: {encoder['note']}")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep the log and the writer of checkpoints open inside the block."""
        with self.saver, self._log:
            yield

    def go_to(self, global_step: int) -> None:
        """Train until this many optimiser steps are made, and end the epochs that they complete.

        Raises:
            KeyboardInterrupt: SIGTERM or SIGINT came; what was done is saved.
        """
        while self.position.epoch < self._config.num_epochs:
            if self.position.epoch_step == self.trainer.steps_per_epoch:
                self.end_epoch()
                if not self.is_finished and self._must_stop():
                    self.leave()
            elif self.trainer.global_step < global_step:
                self._steps(global_step)
            else:
                break

    def end_epoch(self) -> None:
        """Validate, log and save an epoch whose steps are all made.

        Raises:
            TrainingStoppedError: a signal came meanwhile; the epoch's steps are saved.
        """
        self.metrics = self._train_means() | self._validate()
        self._log.epoch(self._epoch, self.trainer.global_step, self.metrics)
        shown = ", ".join(f"{k} {v:.4f}" for k, v in self.metrics.items())
        print(f"{self._label}epoch {self._epoch}: {shown}")
        self._epoch += 1
        self._totals.zero_()
        self.save()

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done."""
        return self._epoch == self._config.num_epochs

    @property
    def position(self) -> RunPosition:
        """How far the run has come."""
        done = self._epoch * self.trainer.steps_per_epoch
        return RunPosition(self._epoch, self.trainer.global_step - done)

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint of this moment belongs."""
        return self._config.log_dir / self.position.file_name(self._config.model_type)

    def _steps(self, last: int) -> None:
        """Make the epoch's steps up to this one; a signal is obeyed after each."""
        done = self.position.epoch_step
        bar = tqdm(
            self.trainer.epoch(self._epoch, done),
            initial=done,
            total=self.trainer.steps_per_epoch,
            desc=f"{self._label}epoch {self._epoch}",
            disable=not self._group.is_first,
        )
        for record in bar:
            loss = self.note(record)
            if loss is not None:
                bar.set_postfix(loss=f"{loss:.4f}")
            must_stop = self._must_stop()
            if self.is_save_due or must_stop:
                self.save()
            if must_stop:
                bar.close()
                self.leave()
            if record.global_step == last:
                bar.close()
                break

    def note(self, record: StepRecord) -> float | None:
        """Add a step to the epoch's means; every `log_every` steps log it and return its loss."""
        losses = record.losses.stacked()[: len(self._names)]
        self._totals += losses
        if record.global_step % self._config.log_every != 0:
            return None
        total, *parts = losses.tolist()
        self._require_finite(total)
        named = dict(zip(self._names[1:], parts, strict=True))
        self._log.step(record.global_step, named, record.learning_rate)
        return total

    @property
    def is_save_due(self) -> bool:
        """Whether `save_every_steps` asks for a checkpoint here."""
        every = self._config.save_every_steps
        return every is not None and self.trainer.global_step % every == 0

    def _must_stop(self) -> bool:
        return self._group.any(self._stop.requested is not None)

    def _train_means(self) -> dict[str, float]:
        means = (self._totals / self.trainer.steps_per_epoch).tolist()
        self._require_finite(means[0])
        return {f"train_{name}": value for name, value in zip(self._names, means, strict=True)}

    def _require_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InvalidInputError(
                f"{self._label}the loss is {loss} at step {self.trainer.global_step}; lower "
                "--learning_rate, or look for outliers in the cache's actions, states and "
                "embeddings"
            )

    def _validate(self) -> dict[str, float]:
        trainer = self.trainer
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
            self.save()
            self.leave()
        return metrics

    def save(self) -> None:
        """Save the run as it is now; what a checkpoint says is done has been logged before."""
        if not self._group.is_first:
            return
        path = self.checkpoint
        try:
            self._log.sync()
        except OSError as error:
            self.saver.report_failure(path, error)
            return
        self.saver.save(path, self._snapshot())

    def _snapshot(self) -> Checkpoint:
        trainer = self.trainer
        head = trainer.head
        state: dict[str, Any] = trainer.state()
        if self.position.epoch_step > 0:
            state["epoch_totals"] = self._totals
        return dataclasses.replace(
            self._start,
            epoch=self._epoch,
            global_step=trainer.global_step,
            model=trainer.policy.state_dict(),
            training_state=state,
            auxiliary_head=None if head is None else head.content(),
        )

    def leave(self) -> NoReturn:
        """End the run, which is saved as it is, because a signal asked for it.

        Raises:
            TrainingStoppedError: always.
        """
        self.saver.finish()
        print(
            f"{self._label}stopped by {self._stop.requested or 'a signal to another process'} "
            f"after step {self.trainer.global_step}, saved as {self.checkpoint}",
            flush=True,
        )
        raise TrainingStoppedError
