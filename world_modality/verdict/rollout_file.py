"""The episodes of one `results.jsonl`, checkpoint by checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from world_modality.system.errors import InvalidInputError
from world_modality.tokens.corruption import read_corruption
from world_modality.verdict.finished_run import read_json, repeated_command

EpisodeKey = tuple[str, str, int, int, int, int]
"""Task, instruction, number of the episode, initial state, seed, step limit."""

_OF_EPISODE = ("task", "instruction", "episode", "initial_state", "seed", "max_steps")
_NEEDED = (
    *("checkpoint", "checkpoint_sha256", "model_type", "policy", "suite", "gl_backend"),
    *("rendering", "world_corruption", "success", "versions", *_OF_EPISODE),
)
# What identifies the policy, or its arm, is not a condition that it was tested under.
_NO_CONDITION = ("model_type", "token_control", "cache_fingerprint", "corrupt_world", "encoder")


@dataclass(frozen=True)
class PolicyRollouts:
    """What one checkpoint did under one corruption of its world token.

    Attributes:
        file: the results file.
        checkpoint: as the evaluation was given it.
        checkpoint_sha256: of its file.
        corruption: `none`, or what was done to the token.
        conditions: all that has to be the same for two checkpoints to be compared.
        outcomes: by episode; None where it ended in an error.
        num_steps: by episode; None where the file does not say it.
        command: what rolls out again; None where no flags lie beside the file.
        policy: what the evaluation recorded of the policy.
        outage_length: frames for which the cameras were dark.
    """

    file: Path
    checkpoint: str
    checkpoint_sha256: str
    corruption: str
    conditions: Mapping[str, Any]
    outcomes: Mapping[EpisodeKey, bool | None]
    num_steps: Mapping[EpisodeKey, int | None]
    command: str | None
    policy: Mapping[str, Any] = field(default_factory=dict)
    outage_length: int = 0

    @property
    def num_solved(self) -> int:
        """Solved episodes."""
        return sum(outcome is True for outcome in self.outcomes.values())

    @property
    def num_counted(self) -> int:
        """Episodes without an error."""
        return sum(outcome is not None for outcome in self.outcomes.values())

    @property
    def num_errors(self) -> int:
        """Episodes that say nothing of success."""
        return len(self.outcomes) - self.num_counted


def read_rollouts(path: Path) -> list[PolicyRollouts]:
    """Read a results file; of several lines for an episode the last counts.

    A last line that was cut off by a kill is left out, as the evaluation itself does.

    Raises:
        InvalidInputError: the file is empty, or a line is no result.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1].splitlines()
    if not whole:
        raise InvalidInputError("holds no finished episode")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number, raw in enumerate(whole, 1):
        line = _parsed(raw, number)
        groups.setdefault((line["checkpoint_sha256"], line["world_corruption"]), []).append(line)
    config_path = path.with_name("config.json")
    config = read_json(config_path) if config_path.exists() else {}
    return [_group(path, lines, config) for lines in groups.values()]


def _parsed(raw: bytes, number: int) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError as error:
        raise InvalidInputError(f"line {number} is damaged ({error})") from error
    lacking = [name for name in _NEEDED if not isinstance(line, dict) or name not in line]
    if lacking:
        raise InvalidInputError(f"line {number} lacks {', '.join(lacking)}")
    corruption = read_corruption(line["world_corruption"], f"line {number}: world_corruption")
    return {**line, "world_corruption": str(corruption)}


def _group(path: Path, lines: list[dict[str, Any]], config: Mapping[str, Any]) -> PolicyRollouts:
    last = lines[-1]
    # Which episode ended first is chance, and must not decide what a page looks like.
    by_episode = sorted(
        {itemgetter(*_OF_EPISODE)(line): line for line in lines}.items(), key=itemgetter(0)
    )
    policy = {
        name: value
        for name, value in last["policy"].items()
        if name not in _NO_CONDITION and not name.endswith("sha256")
    }
    # An arm that predicts goes on with its predictions in the dark: that is the arm, while what
    # else it may read there is a control.
    if policy.get("world_input") == "own_prediction":
        del policy["world_input"]
    return PolicyRollouts(
        file=path,
        checkpoint=last["checkpoint"],
        checkpoint_sha256=last["checkpoint_sha256"],
        corruption=last["world_corruption"],
        conditions={
            "suite": last["suite"],
            "gl_backend": last["gl_backend"],
            "rendering": last["rendering"],
            "simulator": last["versions"],
            "wrong_instruction": bool(config.get("wrong_instruction", False)),
            **_outage(last, config),
            **policy,
        },
        outcomes={key: line["success"] for key, line in by_episode},
        num_steps={key: line.get("num_steps") for key, line in by_episode},
        command=_command(last["suite"], config),
        policy=last["policy"],
        outage_length=last.get("outage_length", 0),
    )


def _outage(line: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    length = line.get("outage_length", 0)
    return {"outage": {"length": length, "start": config.get("outage_start")}} if length else {}


def _command(suite: str, config: Mapping[str, Any]) -> str | None:
    if not config:
        return None
    simulator = suite.split("_")[0]
    program = f"-m benchmarks.{simulator}.eval_{simulator}_success"
    # How many at once, and how often it was interrupted, changes no result.
    return repeated_command(program, config, ("env_num", "resume", "overwrite"))
