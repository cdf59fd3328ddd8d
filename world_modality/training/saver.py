"""Checkpoints written beside the training, which loses only the time of a copy in memory."""

import dataclasses
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from world_modality.policy.checkpoint import Checkpoint, newest_first, save_checkpoint
from world_modality.system.errors import InvalidInputError


class CheckpointSaver:
    """Writes one checkpoint at a time, and removes old ones if that is wanted.

    A checkpoint that cannot be written does not end the training: it is reported, and the next
    one is tried.

    Args:
        log_dir: the run's folder.
        model_type: the arm.
        keep_last: how many of the arm's checkpoints stay, the newest; None keeps all.
    """

    def __init__(self, log_dir: Path, model_type: str, keep_last: int | None) -> None:
        self._log_dir = log_dir
        self._model_type = model_type
        self._keep_last = keep_last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: tuple[Path, Future[None]] | None = None
        self._failed: OSError | None = None

    def __enter__(self) -> "CheckpointSaver":
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()
        self._pool.shutdown()

    def save(self, path: Path, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint's tensors and write them in the background.

        Waits first for the previous checkpoint, so that a slow disk slows the training instead of
        filling the memory.
        """
        self._wait()
        changing = {name: getattr(checkpoint, name) for name in _CHANGING}
        copied = dataclasses.replace(
            checkpoint, **{name: _copy(value) for name, value in changing.items()}
        )
        self._writing = path, self._pool.submit(self._write, path, copied)

    def report_failure(self, path: Path, error: OSError) -> None:
        """Warn that a checkpoint was not written; the run goes on."""
        self._failed = error
        print(
            f"warning: {path.name} could not be written ({error.strerror or error}: "
            f"{error.filename or path}); the training goes on and tries again at the next one. "
            f"{self._newest()}",
            file=sys.stderr,
            flush=True,
        )

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            InvalidInputError: it could not be written; the message names the newest whole one.
        """
        self._wait()
        if self._failed is not None:
            reason = self._failed.strerror or self._failed
            raise InvalidInputError(
                f"the last checkpoint could not be written to {self._log_dir} ({reason}). "
                f"{self._newest()}; make room or give yourself the right to write there, then give "
                "the same command with --resume"
            )

    def _wait(self) -> None:
        if self._writing is None:
            return
        path, future = self._writing
        self._writing = None
        try:
            future.result()
        except OSError as error:
            self.report_failure(path, error)
        else:
            self._failed = None

    def _write(self, path: Path, checkpoint: Checkpoint) -> None:
        save_checkpoint(path, checkpoint)
        if self._keep_last is not None:
            # Only now that a newer one is on the disk.
            for old in newest_first(self._log_dir, self._model_type)[self._keep_last :]:
                old.unlink()

    def _newest(self) -> str:
        found = newest_first(self._log_dir, self._model_type)
        return f"The newest checkpoint is {found[0]}" if found else "There is no checkpoint yet"


# The other parts of a checkpoint stay as they are during a run.
_CHANGING = ("model", "training_state", "auxiliary_head")


def _copy(value: Any) -> Any:
    """Copy the tensors in nested dicts and lists to the CPU's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
