"""`metrics.jsonl` and TensorBoard of a training run."""

import json
import sys
from pathlib import Path
from typing import Any

from world_modality.policy.checkpoint import RunPosition
from world_modality.system.atomic import LineFile, replacing
from world_modality.system.errors import InvalidInputError
from world_modality.training.tracker import Tracker


class RunLog:
    """Appends to a run's log; a resumed run first drops what was logged after its checkpoint.

    Lines are `{"kind": "step", …}` every few steps and `{"kind": "epoch", …}` after validation.
    They reach the disk at `sync`, before the checkpoint that needs them; TensorBoard's events
    are for looking at only, and a disk that refuses them is reported once.

    Args:
        log_dir: folder of the run.
        start: where the run goes on from; at its beginning the log starts empty.
        num_steps: how many optimiser steps were made until there.
        tracker: gets the same numbers; None for none.

    Raises:
        InvalidInputError: the log that the run goes on from is damaged.
    """

    def __init__(
        self, log_dir: Path, start: RunPosition, num_steps: int, tracker: Tracker | None = None
    ) -> None:
        path = log_dir / "metrics.jsonl"
        kept = _lines_up_to(path, start, num_steps)
        self.last_epoch_metrics: dict[str, float] = _last_epoch_metrics(kept)
        with replacing(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = LineFile(path)
        self._pending: list[str] = []
        self._num_steps = num_steps
        self._tensorboard_dir = log_dir
        self._tensorboard: Any = None
        self._tracker = tracker

    def step(self, global_step: int, losses: dict[str, float], learning_rate: float) -> None:
        """Log the losses of one training step, by name."""
        values = {**losses, "learning_rate": learning_rate}
        self._add("train", {"kind": "step", "global_step": global_step}, values)

    def epoch(self, epoch: int, global_step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a finished epoch (counted from 0)."""
        self._add("epoch", {"kind": "epoch", "epoch": epoch, "global_step": global_step}, metrics)

    def sync(self) -> None:
        """Bring all lines to the disk.

        Raises:
            OSError: the disk is full or gone; the lines are kept for the next call.
        """
        self._file.append(self._pending)
        self._pending.clear()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._tracker is not None:
            self._tracker.close()

    def _add(self, group: str, line: dict[str, Any], values: dict[str, float]) -> None:
        self._pending.append(json.dumps({**line, **values}))
        if self._tracker is not None:
            named = {f"{group}/{name}": value for name, value in values.items()}
            self._tracker.log(named, line["global_step"])
        if self._tensorboard is False:
            return
        try:
            if self._tensorboard is None:
                # Imported at the first line, since it takes longer than the first training steps.
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(
                    str(self._tensorboard_dir), purge_step=self._num_steps + 1
                )
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{group}/{name}", value, line["global_step"])
        except OSError as error:
            self._tensorboard = False
            print(f"warning: no more TensorBoard events of this run: {error}", file=sys.stderr)


class NoLog(RunLog):
    """The log of a process beside the first of its group: nothing is written."""

    def __init__(self) -> None:
        self.last_epoch_metrics = {}

    def sync(self) -> None:
        """Write nothing."""

    def __exit__(self, *error: object) -> None:
        pass

    def _add(self, group: str, line: dict[str, Any], values: dict[str, float]) -> None:
        pass


def _lines_up_to(path: Path, start: RunPosition, num_steps: int) -> list[str]:
    """Return the log's lines that belong to what the run goes on from."""
    if start == RunPosition(0):
        return []
    if not path.exists():
        print(f"note: {path} is missing; the log begins at step {num_steps + 1}", file=sys.stderr)
        return []
    kept: list[str] = []
    num_epochs = 0
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            is_epoch = record["kind"] == "epoch"
            past = record["global_step"] > num_steps or (is_epoch and num_epochs == start.epoch)
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{path} line {number} is damaged ({error!r}); bring the file back from a copy, or "
                "delete it: the run then goes on with a log that begins here"
            ) from error
        if past:
            break
        num_epochs += is_epoch
        kept.append(line.decode())
    if num_epochs < start.epoch:
        raise InvalidInputError(
            f"{path} holds {num_epochs} of the {start.epoch} epochs that the checkpoint has done; "
            "bring the file back from a copy, or delete it: the run then goes on with a log that "
            "begins here"
        )
    return kept


def _last_epoch_metrics(lines: list[str]) -> dict[str, float]:
    for line in reversed(lines):
        record = json.loads(line)
        if record["kind"] == "epoch":
            return {k: v for k, v in record.items() if k.startswith(("train_", "val_"))}
    return {}
