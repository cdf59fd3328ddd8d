"""A tracker beside `metrics.jsonl` and TensorBoard: Weights & Biases."""

import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from world_modality.policy.config import TrainConfig, flags_of
from world_modality.system.atomic import replacing
from world_modality.system.errors import InvalidInputError

RUN_ID_FILE = "wandb_run_id.txt"
_PROJECT = "world-modality"


@runtime_checkable
class Tracker(Protocol):
    """Gets the numbers of a run, for looking at only: no failure of it ends a training."""

    def log(self, values: Mapping[str, float], global_step: int) -> None:
        """Take numbers by name, such as `epoch/val_action_mse`."""

    def close(self) -> None:
        """Send what is left."""


class WandbTracker:
    """A run of Weights & Biases; a resumed training goes on in the same one.

    Args:
        log_dir: of the training; wandb keeps its files there, and the run's id lies beside them.
        config: the training's flags.
        is_resumed: go on in the run whose id is there.

    Raises:
        InvalidInputError: wandb is not installed, or does not start.
    """

    def __init__(self, log_dir: Path, config: Mapping[str, Any], is_resumed: bool) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InvalidInputError(
                f"--tracker wandb: wandb cannot be imported ({error}); pip install wandb, or leave "
                "--tracker out"
            ) from error
        log_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=log_dir.absolute().name,
                id=_run_id(log_dir / RUN_ID_FILE, is_resumed),
                resume="allow",
                dir=str(log_dir),
                config=dict(config),
            )
            # A training that goes on after a kill repeats steps, which wandb's own count refuses.
            self._run.define_metric("*", step_metric="global_step")
        except wandb.Error as error:
            raise InvalidInputError(
                f"--tracker wandb does not start ({' '.join(str(error).split())[:200]}); wandb "
                "login, set WANDB_MODE=offline, or leave --tracker out"
            ) from error
        self._error_type: type[Exception] = wandb.Error
        self._has_failed = False

    def log(self, values: Mapping[str, float], global_step: int) -> None:
        """Take numbers by name; a failure is reported once."""
        if self._has_failed:
            return
        try:
            self._run.log({**values, "global_step": global_step})
        except (self._error_type, OSError) as error:
            self._has_failed = True
            print(f"warning: nothing more of this run reaches wandb: {error}", file=sys.stderr)

    def close(self) -> None:
        """Send what is left."""
        try:
            self._run.finish()
        except (self._error_type, OSError) as error:
            print(f"warning: wandb did not take the end of this run: {error}", file=sys.stderr)


def _run_id(path: Path, is_resumed: bool) -> str:
    if is_resumed and path.exists():
        return path.read_text(encoding="utf-8").strip()
    run_id = uuid.uuid4().hex[:12]
    with replacing(path) as partial:
        partial.write_text(f"{run_id}\n", encoding="utf-8")
    return run_id


def open_tracker(config: TrainConfig) -> Tracker | None:
    """Open the tracker that the flags ask for; None for none.

    Raises:
        InvalidInputError: it is not installed, or does not start.
    """
    if config.tracker == "none":
        return None
    return WandbTracker(config.log_dir, flags_of(config), config.resume)
