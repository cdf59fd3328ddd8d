"""Ways to make the world token that a policy reads wrong: one table for offline and closed loop.

Offline, tokens can be moved between recorded frames. Closed loop has the training episodes' token
counts and what the policy saw so far. Where the two differ, so do the names: `task_shuffle`
permutes recorded frames of a task, `task_marginal` draws from the task's training frames.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError

Tokens = Int[np.ndarray, " M"]


@dataclass(frozen=True)
class RecordedTokens:
    """World tokens, the frames that are evaluated, and those that random tokens come from."""

    tokens: Int[np.ndarray, " N"]
    episodes: Episodes
    frames: Int[np.ndarray, " M"]
    train_frames: Int[np.ndarray, " P"]


def _shuffled_in_task(recorded: RecordedTokens, lag: int, rng: np.random.Generator) -> Tokens:
    """Permute the evaluated frames of each task; how often each token occurs in a task stays."""
    task = recorded.episodes.tasks[recorded.episodes.of_frame[recorded.frames]]
    frames = recorded.frames.copy()
    for value in np.unique(task):
        frames[task == value] = rng.permutation(frames[task == value])
    return frames


def _earlier(recorded: RecordedTokens, lag: int, rng: np.random.Generator) -> Tokens:
    """Return the frames `lag` before; before the episode's start its first frame."""
    starts = recorded.episodes.starts[recorded.episodes.of_frame[recorded.frames]]
    return np.maximum(recorded.frames - lag, starts)


@dataclass(frozen=True)
class Corruption:
    """One way to replace the token, from the table below.

    Attributes:
        name: what it is called, in flags and in results.
        label: on the axis of a figure.
        meaning: whose token is read, to be put into a sentence.
        pool: from the training frames' tokens, those that one is drawn from with equal chances.
        moved_from: where none is drawn, the frames whose tokens are read offline.
        of_task: whether it is a token of the same task that is read.
        offline, closed_loop: whether `intervention_corrupt_world` and `--corrupt_world` have it.
        older_name: what flags and results of older versions call it.
        lag: age of the token in frames; any number above 0 in the table.
    """

    name: str
    label: str
    meaning: str
    pool: Callable[[Tokens], Tokens] | None = None
    moved_from: Callable[[RecordedTokens, int, np.random.Generator], Tokens] | None = None
    of_task: bool = False
    offline: bool = True
    closed_loop: bool = True
    older_name: str = ""
    lag: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.lag}" if self.lag else self.name

    @property
    def severity(self) -> tuple[int, int]:
        """Sort key: the less a token still says about its frame, the larger."""
        return -[one.name for one in CORRUPTIONS].index(self.name), self.lag

    def aged(self, lag: int) -> "Corruption":
        """Return it with the token of `lag` frames before."""
        return dataclasses.replace(self, lag=lag, label=f"{self.label} {lag}")

    def offline_tokens(self, recorded: RecordedTokens, rng: np.random.Generator) -> Tokens:
        """Return what the policy reads at the evaluated frames instead of their own tokens."""
        if self.pool is not None:
            pool = self.pool(recorded.tokens[recorded.train_frames])
            return rng.choice(pool, len(recorded.frames))
        assert self.moved_from is not None, f"{self} is for closed loop"
        return recorded.tokens[self.moved_from(recorded, self.lag, rng)]

    def shares(self, counts: Int[np.ndarray, "num_tasks V"]) -> Float[np.ndarray, "rows V"] | None:
        """Return how probable each token is in closed loop, from the training frames' counts.

        A row for each task if tokens of the task are drawn, else one; None where none is drawn.
        """
        if self.pool is None:
            return None
        rows = counts if self.of_task else counts.sum(axis=0, keepdims=True)
        num_tokens = counts.shape[1]
        pools = [self.pool(np.repeat(np.arange(num_tokens), row)) for row in rows]
        drawn = np.stack([np.bincount(pool, minlength=num_tokens) for pool in pools])
        return drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1)


# From the most wrong token to the policy's own. `uniform` leaves out codes that no training frame
# has: the policy never learned an embedding for them, and the harm they do says nothing about
# whether it reads the world.
CORRUPTIONS = (
    Corruption("uniform", "any code", "any code in use", pool=np.unique, older_name="random"),
    Corruption("marginal", "any frame's", "any training frame's", pool=np.asarray),
    Corruption(
        "task_shuffle",
        "task",
        "another frame's of the same task",
        moved_from=_shuffled_in_task,
        of_task=True,
        closed_loop=False,
    ),
    Corruption(
        "task_marginal",
        "task",
        "any training frame's of the same task",
        pool=np.asarray,
        of_task=True,
        offline=False,
        older_name="task",
    ),
    Corruption("stale", "stale", "that of k frames before (stale)", moved_from=_earlier, lag=1),
    Corruption("none", "own token", "its own", offline=False),
)
OFFLINE = tuple(one for one in CORRUPTIONS if one.offline)
CLOSED_LOOP = tuple(one for one in CORRUPTIONS if one.closed_loop)


def spellings(offered: tuple[Corruption, ...]) -> dict[str, str]:
    """Return the meaning of each corruption by the way it is spelled, `stale:<k>` for an age."""
    return {f"{one.name}:<k>" if one.lag else one.name: one.meaning for one in offered}


def read_corruption(
    text: str, where: str, offered: tuple[Corruption, ...] = CORRUPTIONS
) -> Corruption:
    """Read a corruption as flags and results spell it, today's or an older version's.

    Raises:
        InvalidInputError: it is none of them.
    """
    for one in offered:
        if text in (one.name, one.older_name or one.name) and not one.lag:
            return one
        if one.lag and (found := re.fullmatch(f"{one.name}:([1-9][0-9]*)", text)):
            return one.aged(int(found[1]))
    raise InvalidInputError(
        f"{where} {text} is none of {', '.join(spellings(offered))} with k at least 1 (stale:8, "
        "for example)"
    )
