"""The world tokens that arm C reads in closed loop: its own, or wrong ones.

Offline, `world_modality.intervention_corrupt_world` asks whether the actions depend on the token;
this asks whether success does.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from world_modality.arms import (
    CLOSED_LOOP_READS,
    DUMMY_TOKEN,
    ONE_CODE,
    OWN_TOKEN,
    ControlName,
)
from world_modality.system.errors import InvalidInputError, missing_key
from world_modality.tokens.corruption import CLOSED_LOOP, Corruption, read_corruption

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint
    from world_modality.policy.config import PolicyConfig

Tokens = int | np.ndarray
"""Of one frame: its only token, or int32 [W]. What is read of R frames is int32 [R], or [R, W]."""

# Keeps these draws apart from the layouts', which are seeded by the same numbers.
_STREAM = zlib.crc32(b"world input")


@runtime_checkable
class Episode(Protocol):
    """What an episode is known by, so that its draws are its own."""

    @property
    def task(self) -> str:
        """The suite's name of the task."""

    @property
    def instruction(self) -> str:
        """The task in words, as the policy reads it."""

    @property
    def episode(self) -> int:
        """The number of the episode within the task."""

    @property
    def seed(self) -> int:
        """Of everything that is drawn."""


@dataclass(frozen=True)
class WorldInput:
    """Which tokens are read instead of `w_t`: of several a frame, all of them or those of a slot.

    A control arm that was trained without its own token goes without it here too, whatever the
    corruption: `dummy` reads one code always, `shuffled` another frame's token of the task.

    Where the tokens of earlier frames are read, too, those of every frame are replaced.

    Attributes:
        corruption: which, `none` for its own token.
        shares: for the random ones, the probability of each token, `Corruption.shares`: [rows, V],
            or [rows, W, V], where each of a frame's W tokens is drawn by itself.
        task_rows: row of each task, by the suite's name where the recording says it, and by text.
        lags: how many frames before the present one those lie whose tokens are read, oldest first.
    """

    corruption: Corruption
    shares: np.ndarray | None = field(default=None, repr=False)
    task_rows: Mapping[str, int] = field(default_factory=dict, repr=False)
    lags: tuple[int, ...] = (0,)

    @classmethod
    def without_draws(cls, control: ControlName, policy: "PolicyConfig") -> "WorldInput":
        """Return what an arm reads that needs no draw: its own token, or one code always.

        Raises:
            InvalidInputError: the control arm reads another token.
        """
        lags, reads = policy.window.world_lags, CLOSED_LOOP_READS[control]
        if reads == OWN_TOKEN:
            return cls(read_corruption(OWN_TOKEN, control), lags=lags)
        if reads != ONE_CODE:
            raise InvalidInputError(f"--token_control {control} reads a token that is drawn")
        shares = np.zeros((1, *policy.frame.world.axis, policy.frame.world.num_world_tokens))
        shares[..., DUMMY_TOKEN] = 1
        return cls(read_corruption(OWN_TOKEN, control), shares, lags=lags)

    @classmethod
    def of(cls, corruption: Corruption, checkpoint: "Checkpoint") -> "WorldInput":
        """Return what a checkpoint reads under a corruption.

        Raises:
            InvalidInputError: the checkpoint is an oracle's, has no such slot, or lacks the token
                counts that random tokens are drawn from.
        """
        control = checkpoint.train_config.token_control
        reads = CLOSED_LOOP_READS[control]
        if reads is None:
            raise InvalidInputError(
                f"--token_control {control} reads a token that closed loop does not have: this arm "
                "is for offline evaluation only"
            )
        _require_slot(corruption.slot, checkpoint)
        lags = checkpoint.policy_config.window.world_lags
        if reads == ONE_CODE:
            return cls.without_draws(control, checkpoint.policy_config)
        if reads != OWN_TOKEN:
            corruption = read_corruption(reads, f"what {control} reads,", CLOSED_LOOP)
        if corruption.pool is None:
            return cls(corruption, lags=lags)
        counts = checkpoint.cache_arrays.get("train_token_counts")
        if counts is None:
            train = checkpoint.train_config
            raise InvalidInputError(
                f"--corrupt_world {corruption} draws from the training episodes' token counts, "
                "which this checkpoint of an older version lacks; train again: "
                f"python train_model_c.py --dataset_name {train.dataset_name} "
                f"--cache_dir {train.cache_dir} --log_dir {train.log_dir} … --overwrite"
            )
        trained = counts.cpu().numpy()
        num_tokens = trained.reshape(len(trained), -1).sum(axis=1)
        rows = _task_rows(checkpoint, np.flatnonzero(num_tokens).tolist())
        return cls(corruption, corruption.shares(trained), rows, lags)

    @property
    def observed_lags(self) -> frozenset[int]:
        """How many frames before the present one those lie whose own tokens are needed."""
        moved = () if self.shares is not None else (lag + self.corruption.lag for lag in self.lags)
        kept = () if self.corruption.slot is None else self.lags
        return frozenset((*moved, *kept))

    def begin(self, episode: Episode) -> "EpisodeWorldInput":
        """Return the input of one episode; its draws depend on seed, task and episode alone.

        Raises:
            MissingKeyError: tokens of the task are drawn, and none of its episodes was trained on.
        """
        shares = None if self.shares is None else self.shares[0]
        if self.shares is not None and self.corruption.of_task:
            # By name first: a control that tells another instruction leaves the task what it is.
            row = self.task_rows.get(episode.task, self.task_rows.get(episode.instruction))
            if row is None:
                where = f"the checkpoint's training episodes, which {self.corruption} draws from"
                raise missing_key("task", episode.task, self.task_rows, where)
            shares = self.shares[row]
        words = [episode.seed, _STREAM, zlib.crc32(episode.task.encode()), episode.episode]
        rng = np.random.default_rng(words)
        corruption = self.corruption
        return EpisodeWorldInput(corruption.lag, shares, rng, corruption.slot, self.lags)


@dataclass(frozen=True)
class EpisodeWorldInput:
    """The input of one episode; every query of a random one advances `rng`."""

    lag: int
    shares: np.ndarray | None
    rng: np.random.Generator
    slot: int | None = None
    lags: tuple[int, ...] = (0,)

    def tokens(self, own: Mapping[int, Tokens], step: int) -> Tokens:
        """Return what the policy reads at a frame: one token, or int32 [W], [R] or [R, W].

        Args:
            own: the tokens seen so far, by frame; those of `WorldInput.observed_lags` are among
                them, or, where one lies before the start, that of frame 0.
            step: the frame that is acted in.
        """
        read = [self._tokens_of(own, step - lag) for lag in self.lags]
        return read[0] if len(read) == 1 else np.array(read, dtype=np.int32)

    def _tokens_of(self, own: Mapping[int, Tokens], frame: int) -> Tokens:
        """Return what is read instead of a frame's tokens; before the start there is frame 0."""
        read = own[max(frame - self.lag, 0)] if self.shares is None else self._drawn(self.shares)
        if self.slot is None or isinstance(read, int):
            return read
        mixed = np.array(own[max(frame, 0)])
        mixed[self.slot] = read[self.slot]
        return mixed

    def _drawn(self, shares: np.ndarray) -> Tokens:
        num_tokens = shares.shape[-1]
        if shares.ndim == 1:
            return int(self.rng.choice(num_tokens, p=shares))
        drawn = [self.rng.choice(num_tokens, p=of_slot) for of_slot in shares]
        return np.array(drawn, dtype=np.int32)


def _require_slot(slot: int | None, checkpoint: "Checkpoint") -> None:
    if slot is None:
        return
    num_slots = checkpoint.policy_config.frame.world.num_world_slots
    if not 0 <= slot < num_slots:
        raise InvalidInputError(
            f"--corrupt_slot {slot}: the policy has {num_slots} world tokens a frame, counted from "
            f"0; give one of 0 to {num_slots - 1}, or leave it out for all"
        )


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
