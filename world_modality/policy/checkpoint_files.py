"""Which checkpoints a run has, by their names alone: the order survives a copy to another machine.

`model_C_epoch3.pt` is made after epoch 3 (counted from 0), `model_C_epoch4_step120.pt` 120 steps
into epoch 4.
"""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class RunPosition:
    """How far a run has come.

    Attributes:
        epoch: how many epochs are done.
        epoch_step: how many optimiser steps of the next one are done.
    """

    epoch: int
    epoch_step: int = 0

    def file_name(self, model_type: str) -> str:
        """Return the name of the checkpoint that is made here."""
        if self.epoch_step == 0:
            return f"model_{model_type}_epoch{self.epoch - 1}.pt"
        return f"model_{model_type}_epoch{self.epoch}_step{self.epoch_step}.pt"


def checkpoint_path(log_dir: Path, model_type: str, epoch: int) -> Path:
    """Return where the checkpoint after `epoch` (counted from 0) is kept."""
    return log_dir / RunPosition(epoch + 1).file_name(model_type)


def newest_first(log_dir: Path, model_type: str) -> list[Path]:
    """Return an arm's checkpoints, the one that has come farthest first."""
    found = {
        _position(match): path
        for path in log_dir.glob(f"model_{model_type}_epoch*.pt")
        if (match := re.fullmatch(rf"model_{model_type}_epoch(\d+)(?:_step(\d+))?\.pt", path.name))
    }
    return [found[position] for position in sorted(found, reverse=True)]


def _position(match: re.Match[str]) -> RunPosition:
    if match[2] is None:
        return RunPosition(int(match[1]) + 1)
    return RunPosition(int(match[1]), int(match[2]))
