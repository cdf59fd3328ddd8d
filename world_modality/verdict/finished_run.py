"""One training run and its offline reports, read from its log_dir."""

import json
import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_modality.arms import (
    ARMS,
    FUTURE_INPUT_FLAGS,
    MODEL_TYPES,
    WORLD_INPUT_FLAGS,
    WORLD_TARGET_FLAGS,
)
from world_modality.policy.config import TrainConfig, flag_names, with_older_defaults
from world_modality.system.cli import flag_arguments
from world_modality.system.errors import InvalidInputError

FUTURE_KNOBS = ("future_offset", "future_stride", "world_loss_weight", *WORLD_TARGET_FLAGS)
# Where a run lies and what started it says nothing about what was trained.
_NOT_SETTINGS = (
    *("resume", "overwrite", "device", "log_every", "num_workers", "cache_dir", "log_dir"),
    *("cache_repo", "save_every_steps", "keep_last", "embeddings_on", "cuda_graph", "tracker"),
    *("model_type", "token_control", "seed", "dataset_name"),
)
_OTHER_STAGE = "coc_loss_weight"


def cache_arguments(config: Mapping[str, Any]) -> str:
    """Return the arguments that name the cache of a run, given its config.json."""
    names = ("dataset_name", "cache_dir", "cache_repo")
    return " ".join(flag_arguments({name: config.get(name) for name in names}))


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: its log_dir.
        config: the trainer's resolved flags.
        curve: the epoch lines of metrics.jsonl.
        evaluation: `eval_offline.json` of the last epoch.
        corruption: `corrupt_world.json` of the last epoch; None where it is not there.
    """

    folder: Path
    config: Mapping[str, Any]
    curve: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any]
    corruption: Mapping[str, Any] | None

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.config["seed"])

    @property
    def model_type(self) -> str:
        """The arm without its control."""
        return str(self.config["model_type"])

    @property
    def arm(self) -> str:
        """What the run is called in comparisons: the arm, its control, and what it reads else."""
        control = self.config["token_control"]
        name = self.model_type if control == "none" else f"{self.model_type}_{control}"
        knobs = [
            f"{knob.removeprefix('world_input_')} {self.config[knob]}"
            for knob, default in {**WORLD_INPUT_FLAGS, **FUTURE_INPUT_FLAGS}.items()
            if self.config.get(knob, default) != default
        ]
        return f"{name} ({', '.join(knobs)})" if knobs else name

    @property
    def checkpoint_name(self) -> str:
        """File name of the last epoch's checkpoint."""
        return f"model_{self.model_type}_epoch{self.config['num_epochs'] - 1}.pt"

    @property
    def fingerprint(self) -> str:
        """Of the cache that it was trained on."""
        return str(self.evaluation["run"]["cache_fingerprint"])

    @property
    def data(self) -> Mapping[str, Any]:
        """Dataset, split, rendering, encoder and codebook, as far as the report records them."""
        return {
            "encoder": self.evaluation["run"]["encoder"],
            **self.evaluation["run"].get("data", {}),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """All flags that runs of one comparison have to share; what the arm cannot use is None."""
        predicts_world = ARMS[self.model_type].predicts_world
        unused = (*WORLD_INPUT_FLAGS, *FUTURE_INPUT_FLAGS)
        unused += () if predicts_world else FUTURE_KNOBS
        asked = self.evaluation["run"].get("change_tokens")
        settings = {
            name: None if name in unused else value
            for name, value in sorted(self.config.items())
            if name not in _NOT_SETTINGS
        }
        return settings if asked is None else {**settings, "change_tokens": asked}

    def same_errors_as(self, other: "FinishedRun") -> bool:
        """Say whether another run is the same policy: its error in every episode is the same."""
        mine, theirs = (run.evaluation["episodes"]["squared_error_sum"] for run in (self, other))
        return bool(mine == theirs)

    @property
    def command(self) -> str:
        """The command that trains it."""
        script = ARMS[self.model_type].script
        left_out = ("num_workers", "resume", "overwrite", "tracker")
        return repeated_command(script, self.config, left_out)


def repeated_command(program: str, config: Mapping[str, Any], left_out: Collection[str]) -> str:
    """Return the command that gives a stage the flags of its stored config.json again.

    Args:
        program: script or module, as it follows `python`.
        config: flags by name; None and an empty list stand for one that was not given.
        left_out: flags that say nothing of the result, such as `resume`.
    """
    flags = {k: value for k, value in config.items() if value != [] and k not in left_out}
    return f"python {program} {shlex.join(flag_arguments(flags))}"


def is_training_config(config: object) -> bool:
    """Say whether a config.json is the trainer's."""
    return isinstance(config, dict) and {"model_type", "log_dir", "num_epochs"} <= config.keys()


def read_finished_run(folder: Path) -> FinishedRun:
    """Read a run.

    Raises:
        InvalidInputError: something is missing, damaged, unfinished or no run of an arm; the
            message says what, and the command that mends it where there is one.
    """
    config = read_json(folder / "config.json")
    if not is_training_config(config) or config["model_type"] not in MODEL_TYPES:
        raise InvalidInputError("config.json is not the trainer's")
    if _OTHER_STAGE in config:
        raise InvalidInputError("it explains itself: its eval_coc.json is reported on instead")
    curve = _epoch_lines(folder / "metrics.jsonl")
    if len(curve) < config["num_epochs"]:
        raise InvalidInputError(
            f"stopped after epoch {len(curve)} of {config['num_epochs']}; train with --resume"
        )
    stem = f"model_{config['model_type']}_epoch{config['num_epochs'] - 1}"
    evaluation_path = folder / f"eval_offline_{stem}" / "eval_offline.json"
    if not evaluation_path.exists():
        raise InvalidInputError(
            f"not evaluated; run python -m world_modality.eval_offline --checkpoint "
            f"{folder / stem}.pt {cache_arguments(config)}"
        )
    corruption_path = folder / f"corrupt_world_{stem}" / "corrupt_world.json"
    return FinishedRun(
        folder=folder,
        config=with_older_defaults(config, flag_names(TrainConfig)),
        curve=curve,
        evaluation=_read_evaluation(evaluation_path),
        corruption=(
            read_json(corruption_path, ("run", "clean_mse", "corruptions"))
            if corruption_path.exists()
            else None
        ),
    )


def read_json(path: Path, keys: Collection[str] = ()) -> Any:
    """Read a JSON file.

    Raises:
        InvalidInputError: it is missing or damaged, or lacks one of these keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidInputError(f"no {path.name}") from error
    except ValueError as error:
        raise InvalidInputError(f"{path.name} is damaged ({error})") from error
    lacking = [key for key in keys if not isinstance(content, dict) or key not in content]
    if lacking:
        raise InvalidInputError(f"{path.parent.name}/{path.name} lacks {', '.join(lacking)}")
    return content


def _read_evaluation(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = read_json(path, ("run", "actions", "episodes", "world"))
    episodes, name = content["episodes"], f"{path.parent.name}/{path.name}"
    if not all(isinstance(horizon, list) for horizon in episodes.get("top1_hits_all", [])):
        raise InvalidInputError(
            f"{name} holds token hits at k = 1 alone, as an earlier version wrote them; run "
            "python -m world_modality.eval_offline again"
        )
    counts = episodes.get("num_steps", [1])
    if not counts or not all(math.isfinite(count) for count in counts):
        raise InvalidInputError(f"{name} has no episodes")
    return content


def _epoch_lines(path: Path) -> tuple[Mapping[str, Any], ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InvalidInputError("no readable metrics.jsonl: the training did not start") from error
    epochs = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(f"metrics.jsonl line {number} is damaged") from error
        if record.get("kind") == "epoch":
            epochs.append(record)
    return tuple(epochs)
