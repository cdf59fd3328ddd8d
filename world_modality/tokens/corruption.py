"""Ways to make the world token that a policy reads wrong: one table for offline and closed loop.

Offline, tokens can be moved between recorded frames. Closed loop has the training episodes' token
counts, the tokens of some whole training episodes, and what the policy saw so far. Where the two
differ, so do the names: `task_shuffle` permutes recorded frames of a task, `task_marginal` draws
from the task's training frames.

Where a frame has several tokens (slots), all of them are made wrong, or one: moved tokens are those
of one other frame, drawn ones are drawn for each slot from what that slot had in training. Where
the tokens of earlier frames are read, too, those of every frame are made wrong: moved tokens are
those of the other frame's own past, drawn ones are drawn for each frame. Or one of them alone is
made wrong: offline a position of the history, in closed loop the frames of a stretch, wherever they
stand in the history.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError

Tokens = Int[np.ndarray, " M"]


@dataclass(frozen=True)
class RecordedTokens:
    """World tokens, and what is read of them.

    Attributes:
        tokens: of all frames.
        episodes: of the same frames.
        frames: those that are evaluated.
        train_frames: those that random tokens come from.
        lags: how many frames before a frame those lie whose tokens are read at it, oldest first.
    """

    tokens: Int[np.ndarray, " N *W"]
    episodes: Episodes
    frames: Int[np.ndarray, " M"]
    train_frames: Int[np.ndarray, " P"]
    lags: tuple[int, ...] = (0,)

    def read_at(self, frames: Int[np.ndarray, " M2"]) -> Int[np.ndarray, " M2 *RW"]:
        """Return what is read at frames; before an episode's start its first frame's tokens."""
        if len(self.lags) == 1:
            return self.tokens[frames]
        starts = self.episodes.starts[self.episodes.of_frame[frames]]
        return self.tokens[np.maximum(frames[:, None] - np.array(self.lags), starts[:, None])]


def _shuffled_in_task(recorded: RecordedTokens, lag: int, rng: np.random.Generator) -> Tokens:
    """Permute the evaluated frames of each task; how often each token occurs in a task stays."""
    task = recorded.episodes.tasks[recorded.episodes.of_frame[recorded.frames]]
    frames = recorded.frames.copy()
    for value in np.unique(task):
        frames[task == value] = rng.permutation(frames[task == value])
    return frames


def _of_other_episode(recorded: RecordedTokens, lag: int, rng: np.random.Generator) -> Tokens:
    """Return the frames with the same number of one other training episode of the task.

    One is drawn for each evaluated episode; past its end its last frame is repeated. A task without
    another training episode keeps its own frames.
    """
    episodes = recorded.episodes
    trained = np.unique(episodes.of_frame[recorded.train_frames])
    of_frame = episodes.of_frame[recorded.frames]
    frames = recorded.frames.copy()
    for episode in np.unique(of_frame):
        is_of_task = episodes.tasks[trained] == episodes.tasks[episode]
        others = trained[is_of_task & (trained != episode)]
        if len(others):
            other = rng.choice(others)
            own = of_frame == episode
            number = recorded.frames[own] - episodes.starts[episode]
            frames[own] = np.minimum(episodes.starts[other] + number, episodes.ends[other] - 1)
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
        of_stream: whether the tokens of a whole other episode are read, frame by frame. Offline it
            is there for policies that read a history: without one `task_shuffle` asks the same.
        older_name: what flags and results of older versions call it.
        lag: age of the token in frames; any number above 0 in the table.
        slot: the only token of a frame that is made wrong; None for all.
        position: the only position of the history that is made wrong, offline: 0 for the present
            frame, n for the oldest; None for all.
        frames: the first and the last frame, counted from the episode's start, whose tokens are
            made wrong in closed loop; None for all.
    """

    name: str
    label: str
    meaning: str
    pool: Callable[[Tokens], Tokens] | None = None
    moved_from: Callable[[RecordedTokens, int, np.random.Generator], Tokens] | None = None
    of_task: bool = False
    offline: bool = True
    closed_loop: bool = True
    of_stream: bool = False
    older_name: str = ""
    lag: int = 0
    slot: int | None = None
    position: int | None = None
    frames: tuple[int, int] | None = None

    def __str__(self) -> str:
        name = f"{self.name}:{self.lag}" if self.lag else self.name
        name += "" if self.slot is None else f"@{self.slot}"
        name += "" if self.position is None else f"@position{self.position}"
        return name if self.frames is None else name + "@frames{}-{}".format(*self.frames)

    @property
    def is_partial(self) -> bool:
        """Whether some of the tokens that are read stay right."""
        return (self.slot, self.position, self.frames) != (None, None, None)

    @property
    def severity(self) -> tuple[int, ...]:
        """Sort key: the less a frame's tokens still say about it, the larger."""
        place = [one.name for one in CORRUPTIONS].index(self.name)
        first = None if self.frames is None else self.frames[0]
        parts = [1 if one is None else -one for one in (self.slot, self.position, first)]
        return -place, self.lag, *parts

    def aged(self, lag: int) -> "Corruption":
        """Return it with the token of `lag` frames before."""
        return dataclasses.replace(self, lag=lag, label=f"{self.label} {lag}")

    def of_slot(self, slot: int | None) -> "Corruption":
        """Return it with only this token of a frame made wrong; with None it is as it was."""
        if slot is None:
            return self
        return dataclasses.replace(self, slot=slot, label=f"{self.label} (slot {slot})")

    def of_position(self, position: int | None) -> "Corruption":
        """Return it with only this position of the history wrong; with None it is as it was."""
        if position is None:
            return self
        label = f"{self.label} (position {position})"
        return dataclasses.replace(self, position=position, label=label)

    def of_frames(self, frames: tuple[int, int] | None) -> "Corruption":
        """Return it with only these frames' tokens wrong; with None it is as it was."""
        if frames is None:
            return self
        label = "{} (frames {} to {})".format(self.label, *frames)
        return dataclasses.replace(self, frames=frames, label=label)

    def is_hit(self, num_read: int, num_slots: int) -> Bool[np.ndarray, "R W"]:
        """Tell which of the W tokens of R frames, oldest first, are made wrong offline."""
        hit = np.zeros((num_read, num_slots), dtype=bool)
        frames = slice(None) if self.position is None else num_read - 1 - self.position
        hit[frames, slice(None) if self.slot is None else self.slot] = True
        return hit

    def offline_tokens(
        self,
        recorded: RecordedTokens,
        rng: np.random.Generator,
        own: Int[np.ndarray, " M *RW"] | None = None,
    ) -> Int[np.ndarray, " M *RW"]:
        """Return what the policy reads at the evaluated frames instead of their own tokens.

        Args:
            recorded: what tokens are taken from.
            rng: of random ones. A slot or a position reads what it would if all were made wrong.
            own: what the others read where only one is made wrong, if not the recorded tokens.
        """
        wrong = self._all_wrong(recorded, rng)
        if not self.is_partial:
            return wrong
        right = recorded.read_at(recorded.frames) if own is None else own
        num_slots = 1 if recorded.tokens.ndim == 1 else recorded.tokens.shape[1]
        hit = self.is_hit(len(recorded.lags), num_slots).reshape(wrong.shape[1:])
        return np.where(hit, wrong, right)

    def _all_wrong(
        self, recorded: RecordedTokens, rng: np.random.Generator
    ) -> Int[np.ndarray, " M *RW"]:
        if self.pool is None:
            assert self.moved_from is not None, f"{self} is for closed loop"
            return recorded.read_at(self.moved_from(recorded, self.lag, rng))
        trained, num_frames = recorded.tokens[recorded.train_frames], len(recorded.frames)
        count = num_frames if len(recorded.lags) == 1 else (num_frames, len(recorded.lags))
        if trained.ndim == 1:
            return rng.choice(self.pool(trained), count)
        return np.stack([rng.choice(self.pool(slot), count) for slot in trained.T], axis=-1)

    def shares(
        self, counts: Int[np.ndarray, "num_tasks *W V"]
    ) -> Float[np.ndarray, "rows *W V"] | None:
        """Return how probable each token is in closed loop, from the training frames' counts.

        A row for each task if tokens of the task are drawn, else one; None where none is drawn. Of
        several slots each has shares of its own.
        """
        if self.pool is None:
            return None
        rows = counts if self.of_task else counts.sum(axis=0, keepdims=True)
        num_tokens = counts.shape[-1]
        pools = [
            self.pool(np.repeat(np.arange(num_tokens), row)) for row in rows.reshape(-1, num_tokens)
        ]
        drawn = np.stack([np.bincount(pool, minlength=num_tokens) for pool in pools])
        shares = drawn / np.maximum(drawn.sum(axis=1, keepdims=True), 1)
        return shares.reshape(rows.shape)


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
    Corruption(
        "other_episode",
        "other episode",
        "the same frame's of another training episode of the task",
        moved_from=_of_other_episode,
        of_task=True,
        of_stream=True,
    ),
    Corruption("stale", "stale", "that of k frames before (stale)", moved_from=_earlier, lag=1),
    Corruption("none", "own token", "its own", offline=False),
)
OFFLINE = tuple(one for one in CORRUPTIONS if one.offline)
CLOSED_LOOP = tuple(one for one in CORRUPTIONS if one.closed_loop)


def spellings(offered: tuple[Corruption, ...]) -> dict[str, str]:
    """Return the meaning of each corruption by the way it is spelled, `stale:<k>` for an age.

    In results `@<slot>`, `@position<i>` and `@frames<lo>-<hi>` follow where only that token of a
    frame, that position of the history, or these frames' tokens were made wrong.
    """
    return {f"{one.name}:<k>" if one.lag else one.name: one.meaning for one in offered}


def read_corruption(
    text: str, where: str, offered: tuple[Corruption, ...] = CORRUPTIONS
) -> Corruption:
    """Read a corruption as flags and results spell it, today's or an older version's.

    Raises:
        InvalidInputError: it is none of them.
    """
    name, at, part = text.rpartition("@")
    if at and re.fullmatch("[0-9]+", part):
        return read_corruption(name, where, offered).of_slot(int(part))
    if at and (found := re.fullmatch("position([0-9]+)", part)):
        return read_corruption(name, where, offered).of_position(int(found[1]))
    if at and (found := re.fullmatch("frames([0-9]+)-([0-9]+)", part)):
        stretch = int(found[1]), int(found[2])
        return read_corruption(name, where, offered).of_frames(stretch)
    for one in offered:
        if text in (one.name, one.older_name or one.name) and not one.lag:
            return one
        if one.lag and (found := re.fullmatch(f"{one.name}:([1-9][0-9]*)", text)):
            return one.aged(int(found[1]))
    raise InvalidInputError(
        f"{where} {text} is none of {', '.join(spellings(offered))} with k at least 1 (stale:8, "
        "for example)"
    )


def read_closed_loop_corruption(text: str, where: str) -> Corruption:
    """Read a corruption that closed loop is to have.

    Raises:
        InvalidInputError: it is none, or one of a position of the history.
    """
    one = read_corruption(text, where, CLOSED_LOOP)
    if one.position is not None:
        raise InvalidInputError(
            f"{where} {text}: in closed loop frames are made wrong, counted from the episode's "
            f"start, not positions of the history; give {one.name}@frames0-7, for example"
        )
    return one
