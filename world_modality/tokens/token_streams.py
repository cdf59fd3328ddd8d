"""The world tokens of whole training episodes, which closed loop gives instead of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError

EPISODES_PER_TASK = 50
# 4 MiB of a checkpoint; a hundred tasks of 16 tokens a frame keep fewer episodes each.
MAX_TOKENS = 2**20
_ARRAYS = ("train_stream_tokens", "train_stream_ends", "train_stream_tasks")


@dataclass(frozen=True)
class TokenStreams:
    """World tokens of M frames: E episodes, each from its start to its end.

    Attributes:
        tokens: of all of them, one episode behind the other.
        ends: one past each episode's last frame.
        tasks: each episode's row in the manifest's `dataset.tasks`.
    """

    tokens: Int[np.ndarray, " M *W"]
    ends: Int[np.ndarray, " E"]
    tasks: Int[np.ndarray, " E"]

    @classmethod
    def of_training(
        cls,
        tokens: Int[np.ndarray, " N *W"],
        episodes: Episodes,
        train_ids: Sequence[int],
        rows: Mapping[int, int],
    ) -> "TokenStreams":
        """Take up to `EPISODES_PER_TASK` training episodes of each task, spread evenly over them.

        Args:
            tokens: of all frames.
            episodes: of the same frames.
            train_ids: the episodes that may be taken.
            rows: the row of each `task_index`.
        """
        trained = episodes.positions_of(list(train_ids))
        per_episode = episodes.lengths[trained].mean() * (tokens[0].size if len(tokens) else 1)
        fitting = int(MAX_TOKENS / (per_episode * len(rows)))
        limit = min(EPISODES_PER_TASK, max(fitting, 1))
        chosen: list[int] = []
        for task in np.unique(episodes.tasks[trained]):
            own = trained[episodes.tasks[trained] == task]
            count = min(limit, len(own))
            chosen += own[np.arange(count) * len(own) // count].tolist()
        frames = [np.arange(episodes.starts[one], episodes.ends[one]) for one in chosen]
        return cls(
            tokens=np.ascontiguousarray(tokens[np.concatenate(frames)], dtype=np.int32),
            ends=np.cumsum(episodes.lengths[chosen]).astype(np.int32),
            tasks=np.array([rows[int(episodes.tasks[one])] for one in chosen], dtype=np.int32),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint keeps, by name."""
        return dict(zip(_ARRAYS, (self.tokens, self.ends, self.tasks), strict=True))

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], num_tokens: int
    ) -> "TokenStreams | None":
        """Return what a checkpoint of these arrays keeps; None where it keeps none.

        Raises:
            InvalidInputError: the arrays do not fit together, or hold a token that is not below
                `num_tokens`.
        """
        if not any(name in arrays for name in _ARRAYS):
            return None
        tokens, ends, tasks = (arrays.get(name, np.zeros(0, np.int32)) for name in _ARRAYS)
        lengths = np.diff(ends, prepend=0)
        is_whole = len(ends) == len(tasks) > 0 and (lengths > 0).all()
        if not is_whole or ends[-1] != len(tokens):
            raise InvalidInputError(
                f"the checkpoint's token streams do not fit together: {len(tokens)} frames, "
                f"{len(ends)} ends, {len(tasks)} tasks; train again"
            )
        if tokens.min() < 0 or tokens.max() >= num_tokens:
            raise InvalidInputError(
                f"the checkpoint's token streams hold {tokens.min()} to {tokens.max()}, but its "
                f"codebook has {num_tokens} tokens; train again"
            )
        return cls(tokens, ends, tasks)

    def of_task(self, row: int) -> list[Int[np.ndarray, " frames *W"]]:
        """Return the streams of a task's episodes."""
        starts = np.concatenate([[0], self.ends[:-1]])
        return [
            self.tokens[start:end]
            for start, end, task in zip(starts, self.ends, self.tasks, strict=True)
            if task == row
        ]
