"""What a checkpoint's own reports say of it: named on the command line, or found beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_modality.cache.contract import sha256_of_file
from world_modality.statistics.intervals import Interval
from world_modality.system.errors import InvalidInputError, MissingFileError

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

PREDICTORS = {
    "model": "this policy",
    "task_mean": "training mean of the task",
    "last_action": "last action held",
}
OFFLINE_FILE, ROLLOUTS_FILE = "eval_offline.json", "summary.json"


@dataclass(frozen=True)
class CheckpointIdentity:
    """By what a report is known to be that of a checkpoint.

    Attributes:
        path: its file.
        sha256: of that file.
        model_type: the arm.
        epoch: how many epochs are done.
        cache_fingerprint: of the cache that it was trained on.
    """

    path: Path
    sha256: str
    model_type: str
    epoch: int
    cache_fingerprint: str

    @classmethod
    def of(cls, path: Path, checkpoint: "Checkpoint") -> "CheckpointIdentity":
        """Identify a checkpoint that was read from a file."""
        model_type = checkpoint.policy_config.model_type
        fingerprint = checkpoint.cache_fingerprint
        return cls(path, sha256_of_file(path), model_type, checkpoint.epoch, fingerprint)


@dataclass(frozen=True)
class OfflineResult:
    """Errors on held-out episodes.

    Attributes:
        num_episodes: held-out episodes.
        errors: mean squared error by predictor, in training standard deviations squared.
        token_accuracy: top-1 of the next world token; None for an arm that predicts none.
    """

    num_episodes: int
    errors: Mapping[str, Interval]
    token_accuracy: Interval | None


@dataclass(frozen=True)
class RolloutResults:
    """Success in closed loop.

    Attributes:
        suite: the simulator's tasks.
        corruption: what was done to the world token; `none` for its own.
        execution: how much of a predicted chunk was executed, in words.
        rendering: what the images were like, in words.
        tasks: success rate by task.
        overall: of all episodes.
        num_errors: episodes that ended in an error, and are left out.
    """

    suite: str
    corruption: str
    execution: str
    rendering: str
    tasks: Mapping[str, Interval]
    overall: Interval
    num_errors: int


@dataclass(frozen=True)
class ReportedResults:
    """All reports of one checkpoint."""

    offline: OfflineResult | None
    rollouts: Sequence[RolloutResults]

    @classmethod
    def of(
        cls,
        identity: CheckpointIdentity,
        recorded: Mapping[str, Any],
        eval_offline: Path | None = None,
        rollouts: Sequence[Path] = (),
    ) -> "ReportedResults":
        """Read the reports that are named, or where none is those beside the checkpoint.

        Args:
            identity: of the checkpoint.
            recorded: the rendering of its recording; nothing where it is not known.
            eval_offline: `eval_offline.json`.
            rollouts: `summary.json` of rollouts.

        Raises:
            MissingFileError: a named report is not there.
            InvalidInputError: a report is damaged, or a named one is of another checkpoint.
        """
        offline_path = eval_offline or _offline_beside(identity.path)
        results = []
        for path in rollouts or _rollouts_beside(identity):
            own = _own_rollouts(_read(path), identity)
            if not own:
                raise InvalidInputError(
                    f"{path} reports no rollouts of {identity.path} (by the SHA-256 of the file); "
                    "roll this checkpoint out, or leave --rollouts out"
                )
            results += [_rollout_result(one, path, recorded) for one in own]
        offline = None if offline_path is None else _offline_result(offline_path, identity)
        return cls(offline, results)


def _offline_beside(checkpoint: Path) -> Path | None:
    path = checkpoint.parent / f"eval_offline_{checkpoint.stem}" / OFFLINE_FILE
    return path if path.exists() else None


def _rollouts_beside(identity: CheckpointIdentity) -> list[Path]:
    # The matrix puts a cell's rollouts beside the folder of its training.
    log_dir = identity.path.absolute().parent
    found = [
        path
        for folder in (log_dir, log_dir.parent)
        for path in folder.glob(f"rollouts*/{ROLLOUTS_FILE}")
    ]
    return sorted(path for path in found if _own_rollouts(_read(path), identity))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"no report {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path} is not JSON ({error}); make the report again") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} is no report of this project: not an object")
    return content


def _own_rollouts(summary: Mapping[str, Any], identity: CheckpointIdentity) -> list[dict[str, Any]]:
    return [
        one
        for one in summary.get("checkpoints", [])
        if one.get("origin", {}).get("checkpoint_sha256") == identity.sha256
    ]


def _offline_result(path: Path, identity: CheckpointIdentity) -> OfflineResult:
    content = _read(path)
    try:
        run = content["run"]
        expected = {
            name: getattr(identity, name) for name in ("model_type", "epoch", "cache_fingerprint")
        }
        for name, value in expected.items():
            if run[name] != value:
                raise InvalidInputError(
                    f"{path} is the report of another checkpoint: its {name} is {run[name]!r}, "
                    f"that of the checkpoint {value!r}; run python -m world_modality.eval_offline "
                    "on this one"
                )
        errors = {name: Interval(**content["actions"][name]["mse"]) for name in PREDICTORS}
        accuracy = None
        if content["world"] is not None:
            accuracy = Interval(**content["world"]["all"][0]["accuracy"]["model_top1"])
        return OfflineResult(int(run["num_val_episodes"]), errors, accuracy)
    except (KeyError, TypeError, IndexError) as error:
        raise InvalidInputError(
            f"{path} is no report of python -m world_modality.eval_offline: {error!r} is missing "
            "or malformed"
        ) from error


def _rollout_result(
    one: Mapping[str, Any], path: Path, recorded: Mapping[str, Any]
) -> RolloutResults:
    try:
        origin, policy = one["origin"], one["origin"]["policy"]
        differing = {k: v for k, v in origin["rendering"].items() if recorded.get(k) != v}
        rendering = ", ".join(f"{k} {json.dumps(v)}" for k, v in differing.items())
        coeff = policy["temporal_ensemble_coeff"]
        execution = f"{policy['n_action_steps']} of a chunk's actions executed"
        if coeff is not None:
            execution += f", temporal ensembling {coeff}"
        return RolloutResults(
            suite=str(origin["suite"]),
            corruption=str(origin["world_corruption"]),
            execution=execution,
            rendering=rendering or "as recorded",
            tasks={name: Interval(**task["success_rate"]) for name, task in one["tasks"].items()},
            overall=Interval(**one["overall"]["success_rate"]),
            num_errors=int(one["overall"]["num_errors"]),
        )
    except (KeyError, TypeError) as error:
        raise InvalidInputError(
            f"{path} is no report of rollouts: {error!r} is missing or malformed"
        ) from error
