"""The world token that arm C reads in closed loop: its own, or a wrong one.

Offline, `world_modality.intervention_corrupt_world` asks whether the actions depend on the token;
this asks whether success does.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.suite import EpisodeSpec
from world_modality.arms import CLOSED_LOOP_READS, DUMMY_TOKEN, ONE_CODE, OWN_TOKEN
from world_modality.system.errors import InvalidInputError, missing_key
from world_modality.tokens.corruption import CLOSED_LOOP, Corruption, read_corruption

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

# Keeps these draws apart from the layouts', which are seeded by the same numbers.
_STREAM = zlib.crc32(b"world input")


@dataclass(frozen=True)
class WorldInput:
    """Which token is read instead of `w_t`.

    A control arm that was trained without its own token goes without it here too, whatever the
    corruption: `dummy` reads one code always, `shuffled` another frame's token of the task.

    Attributes:
        corruption: which, `none` for its own token.
        shares: for the random ones, the probability of each token, `Corruption.shares`.
        task_rows: row of each task, by the suite's name where the recording says it, and by text.
    """

    corruption: Corruption
    shares: np.ndarray | None = field(default=None, repr=False)
    task_rows: Mapping[str, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, corruption: Corruption, checkpoint: "Checkpoint") -> "WorldInput":
        """Return what a checkpoint reads under a corruption.

        Raises:
            InvalidInputError: the checkpoint is an oracle's, or lacks the token counts that random
                tokens are drawn from.
        """
        control = checkpoint.train_config.token_control
        reads = CLOSED_LOOP_READS[control]
        if reads is None:
            raise InvalidInputError(
                f"--token_control {control} reads a token that closed loop does not have: this arm "
                "is for offline evaluation only"
            )
        if reads == ONE_CODE:
            shares = np.zeros((1, checkpoint.policy_config.frame.world.num_world_tokens))
            shares[0, DUMMY_TOKEN] = 1
            return cls(read_corruption(OWN_TOKEN, control), shares)
        if reads != OWN_TOKEN:
            corruption = read_corruption(reads, f"what {control} reads,", CLOSED_LOOP)
        if corruption.pool is None:
            return cls(corruption)
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
        rows = _task_rows(checkpoint, np.flatnonzero(trained.sum(axis=1)).tolist())
        return cls(corruption, corruption.shares(trained), rows)

    def begin(self, episode: EpisodeSpec) -> "EpisodeWorldInput":
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
        return EpisodeWorldInput(self.corruption.lag, shares, np.random.default_rng(words))


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


@dataclass(frozen=True)
class EncodedFrame:
    """One observed frame as the policy's inputs hold it.

    Attributes:
        embedding: float16 [D], as the cache would hold it.
        state: float32 [S], raw units.
        token: the world token; None for a policy that reads none.
    """

    embedding: np.ndarray
    state: np.ndarray
    token: int | None


@dataclass
class EpisodeMemory:
    """One running episode.

    Attributes:
        instruction: float16 [L], None without language.
        world: chooses the world token that is read; None for a policy that reads none.
        frames: the frames that later queries may need, by number.
        chunks: the predicted action chunks [H, A] that later actions may need, by frame.
    """

    instruction: np.ndarray | None
    world: EpisodeWorldInput | None
    frames: dict[int, EncodedFrame] = field(default_factory=dict)
    chunks: dict[int, np.ndarray] = field(default_factory=dict)

    def context(self, step: int, num_frames: int) -> list[EncodedFrame]:
        """Return the frames step-num_frames+1…step, oldest first.

        Before the episode's start its first frame is repeated, as `FrameTensors.gather` does.
        """
        return [self.frames[max(step - lag, 0)] for lag in range(num_frames - 1, -1, -1)]

    def world_token(self, step: int) -> int:
        """Return the world token that is read at a frame; 0 where none is read."""
        if self.world is None:
            return 0
        own = {number: f.token for number, f in self.frames.items() if f.token is not None}
        return self.world.token(own, step)

    def forget_before(self, next_step: int, lags: Iterable[int]) -> None:
        """Drop the frames that no query from frame `next_step` on needs."""
        oldest = max(next_step - max(lags), 0)
        self.frames = {number: f for number, f in self.frames.items() if number >= oldest}
