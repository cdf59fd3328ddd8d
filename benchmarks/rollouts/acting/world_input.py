"""The world token that arm C reads in closed loop: its own, or a wrong one.

Offline, `world_modality.intervention_corrupt_world` asks whether the actions depend on the token;
this asks whether success does.
"""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from benchmarks.rollouts.suite import EpisodeSpec
from world_modality.arms import DUMMY_TOKEN, stored_control
from world_modality.system.errors import InvalidInputError, missing_key

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

Corruption = Literal["none", "random", "task", "stale"]
_UNAGED: dict[str, Corruption] = {"none": "none", "random": "random", "task": "task"}
# Keeps these draws apart from the layouts', which are seeded by the same numbers.
_STREAM = zlib.crc32(b"world input")


@dataclass(frozen=True)
class WorldInput:
    """Which token is read in the place of `w_t`.

    A control arm that was trained without its own token goes without it here too, whatever the
    corruption: `dummy` reads one code always, `shuffled` another frame's token of the task.

    Attributes:
        corruption: `none`, `random` (uniform over the codes that training episodes use), `task`
            (as often as the task's training episodes have each) or `stale`.
        lag: age of a stale token in frames; 0 for the others.
        shares: for the random ones, by row of the manifest's tasks, the probability of each token.
        task_rows: row of each task, by the suite's name where the recording says it, and by text.
    """

    corruption: Corruption
    lag: int = 0
    shares: np.ndarray | None = field(default=None, repr=False)
    task_rows: Mapping[str, int] = field(default_factory=dict, repr=False)

    @property
    def spelled(self) -> str:
        """As `--corrupt_world` spells it."""
        return f"stale:{self.lag}" if self.corruption == "stale" else self.corruption

    @classmethod
    def of(cls, text: str, checkpoint: "Checkpoint") -> "WorldInput":
        """Read a `--corrupt_world` for a checkpoint.

        Raises:
            InvalidInputError: no such corruption, or the checkpoint lacks the token counts that
                random ones are drawn from.
        """
        corruption, lag = parse_corruption(text)
        control = stored_control(checkpoint.train_config)
        if control == "oracle":
            raise InvalidInputError(
                "--token_control oracle reads a token of the future, which closed loop does not "
                "have: this arm is for offline evaluation only"
            )
        if control == "dummy":
            shares = np.zeros((1, checkpoint.policy_config.num_world_tokens))
            shares[0, DUMMY_TOKEN] = 1
            return cls("none", shares=shares)
        if control == "shuffled":
            corruption, lag = "task", 0
        if corruption not in ("random", "task"):
            return cls(corruption, lag)
        counts = checkpoint.cache_arrays.get("train_token_counts")
        if counts is None:
            train = checkpoint.train_config
            raise InvalidInputError(
                f"--corrupt_world {text} draws from the training episodes' token counts, which "
                "this checkpoint of an older version lacks; train again: python train_model_c.py "
                f"--dataset_name {train['dataset_name']} --cache_dir {train['cache_dir']} "
                f"--log_dir {train['log_dir']} … --overwrite"
            )
        weights = counts.cpu().numpy().astype(np.float64)
        rows = _task_rows(checkpoint, np.flatnonzero(weights.sum(axis=1)).tolist())
        if corruption == "random":
            weights = np.minimum(weights.sum(axis=0, keepdims=True), 1)
        shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        return cls(corruption, lag, shares, rows)

    def begin(self, episode: EpisodeSpec) -> "EpisodeWorldInput":
        """Return the input of one episode; its draws depend on seed, task and episode alone.

        Raises:
            MissingKeyError: `task`, and the checkpoint was not trained on the episode's task.
        """
        shares = None if self.shares is None else self.shares[0]
        if self.shares is not None and self.corruption == "task":
            # By name first: a control that tells another instruction leaves the task what it is.
            row = self.task_rows.get(episode.task, self.task_rows.get(episode.instruction))
            if row is None:
                where = "the checkpoint's training episodes, which --corrupt_world task draws from"
                raise missing_key("task", episode.task, self.task_rows, where)
            shares = self.shares[row]
        words = [episode.seed, _STREAM, zlib.crc32(episode.task.encode()), episode.episode]
        return EpisodeWorldInput(self.lag, shares, np.random.default_rng(words))


@dataclass(frozen=True)
class EpisodeWorldInput:
    """The input of one episode; every query of a random one advances `rng`."""

    lag: int
    shares: np.ndarray | None
    rng: np.random.Generator

    def token(self, own: Mapping[int, int], step: int) -> int:
        """Return what the policy reads at a frame.

        Args:
            own: the tokens seen so far, by frame; that of frame `step - lag` is among them, or,
                where this lies before the start, that of frame 0.
            step: the frame that is acted in.
        """
        if self.shares is None:
            return own[max(step - self.lag, 0)]
        return int(self.rng.choice(len(self.shares), p=self.shares))


def parse_corruption(text: str) -> tuple[Corruption, int]:
    """Read `none`, `random`, `task` or `stale:<k>`; return which, and k (0 for the others).

    Raises:
        InvalidInputError: it is none of these.
    """
    if text in _UNAGED:
        return _UNAGED[text], 0
    match = re.fullmatch(r"stale:([1-9][0-9]*)", text)
    if match is None:
        raise InvalidInputError(
            f"--corrupt_world {text} is none of none, random, task, stale:<k> with k at least 1 "
            "(stale:8, for example)"
        )
    return "stale", int(match[1])


def _task_rows(checkpoint: "Checkpoint", trained: list[int]) -> dict[str, int]:
    """Return the rows of the tasks that have training frames, by text and by name."""
    dataset = checkpoint.manifest["dataset"]
    rows = {text: row for row, text in enumerate(dataset["tasks"].values()) if row in trained}
    recorded = (dataset.get("recording") or {}).get("tasks", {})
    named = {
        name: rows[task["instruction"]]
        for name, task in recorded.items()
        if task["instruction"] in rows
    }
    return {**rows, **named}
