"""`metrics.jsonl` and TensorBoard of a training run."""

import json
from pathlib import Path
from typing import Any

from world_modality.atomic import replacing


class RunLog:
    """Appends to a run's log; a resumed run first drops what was logged past its checkpoint.

    Lines are `{"kind": "step", …}` every few steps and `{"kind": "epoch", …}` after validation.

    Args:
        log_dir: folder of the run.
        num_epochs: how many epochs the run goes on from; 0 starts the log anew.
        num_steps: how many optimiser steps those epochs had.
    """

    def __init__(self, log_dir: Path, num_epochs: int, num_steps: int) -> None:
        path = log_dir / "metrics.jsonl"
        kept, self.last_epoch_metrics = _lines_up_to(path, num_epochs)
        with replacing(path) as partial:
            partial.write_text("".join(kept))
        self._file = path.open("a")
        self._num_steps = num_steps
        self._tensorboard_dir = log_dir
        self._tensorboard: Any = None

    def step(self, global_step: int, losses: dict[str, float], learning_rate: float) -> None:
        """Log the losses of one training step, by name."""
        values = {**losses, "learning_rate": learning_rate}
        self._write({"kind": "step", "global_step": global_step, **values})
        self._scalars("train", values, global_step)

    def epoch(self, epoch: int, global_step: int, metrics: dict[str, float]) -> None:
        """Log the metrics of a finished epoch (counted from 0)."""
        self._write({"kind": "epoch", "epoch": epoch, "global_step": global_step, **metrics})
        self._scalars("epoch", metrics, global_step)

    def close(self) -> None:
        """Flush and close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _scalars(self, group: str, values: dict[str, float], global_step: int) -> None:
        if self._tensorboard is None:
            # Imported at the first line, since it takes longer than the first training steps.
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(self._tensorboard_dir), purge_step=self._num_steps + 1
            )
        for name, value in values.items():
            self._tensorboard.add_scalar(f"{group}/{name}", value, global_step)


def _lines_up_to(path: Path, num_epochs: int) -> tuple[list[str], dict[str, float]]:
    """Return the log's lines up to the end of that many epochs, and the last epoch's metrics."""
    if num_epochs == 0 or not path.exists():
        return [], {}
    lines = path.read_text().splitlines(keepends=True)
    for position, line in enumerate(lines):
        record = json.loads(line)
        if record["kind"] == "epoch" and record["epoch"] == num_epochs - 1:
            metrics = {k: v for k, v in record.items() if k.startswith(("train_", "val_"))}
            return lines[: position + 1], metrics
    return [], {}
