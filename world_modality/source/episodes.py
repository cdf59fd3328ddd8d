"""Where episodes begin and end, and which of them are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from world_modality.system.errors import InvalidInputError

# Keeps the choice of labelled episodes apart from other draws of the same seed.
_LABELS = 0x1ABE1


@dataclass(frozen=True)
class Episodes:
    """The E episodes of a dataset as frame ranges `[start, end)`, in frame order.

    Attributes:
        starts: first frame of each episode.
        ends: one past its last frame.
        ids: the dataset's numbers of the episodes (its `episode_index`, or `--episode_id_key`).
        tasks: the task of each episode (that of its first frame).
    """

    starts: Int[np.ndarray, " E"]
    ends: Int[np.ndarray, " E"]
    ids: Int[np.ndarray, " E"]
    tasks: Int[np.ndarray, " E"]

    @classmethod
    def from_frames(
        cls,
        episode_index: Int[np.ndarray, " N"],
        task_index: Int[np.ndarray, " N"],
        numbered: Sequence[int] | None = None,
    ) -> "Episodes":
        """Find the episodes in the per-frame columns.

        `numbered` lists the ids where `episode_index` counts them, as a cache does with ids that
        int32 does not hold.

        Raises:
            InvalidInputError: no frames, an episode's frames are not consecutive, or a number has
                no id.
        """
        if len(episode_index) == 0:
            raise InvalidInputError("the dataset has no frames")
        starts = np.concatenate([[0], np.flatnonzero(np.diff(episode_index)) + 1])
        ends = np.concatenate([starts[1:], [len(episode_index)]])
        ids = np.asarray(episode_index)[starts]
        if numbered is not None:
            if not np.array_equal(ids, np.arange(len(numbered))):
                raise InvalidInputError(
                    f"expected the episodes 0 to {len(numbered) - 1} in order, one for each of the "
                    f"{len(numbered)} ids that the manifest lists, found {ids[:5].tolist()} …"
                )
            ids = np.array(numbered, dtype=np.int64)
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) != len(ids):
            split = unique[counts > 1][:5].tolist()
            raise InvalidInputError(
                f"expected each episode's frames one after another, but episode_index {split} "
                "appear in several places; is the episode key right?"
            )
        return cls(starts=starts, ends=ends, ids=ids, tasks=np.asarray(task_index)[starts])

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def num_frames(self) -> int:
        """Number of frames N."""
        return int(self.ends[-1])

    @property
    def lengths(self) -> Int[np.ndarray, " E"]:
        """Frames per episode."""
        lengths: np.ndarray = self.ends - self.starts
        return lengths

    @property
    def of_frame(self) -> Int[np.ndarray, " N"]:
        """Position (0…E-1) of the episode that each frame belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def positions_of(self, ids: list[int]) -> Int[np.ndarray, " E2"]:
        """Return the positions of the episodes with these ids, in frame order."""
        return np.flatnonzero(np.isin(self.ids, np.asarray(ids, dtype=np.int64)))

    def frames_of(self, ids: list[int]) -> Int[np.ndarray, " N2"]:
        """Return all frames of the episodes with these `episode_index` values, in frame order."""
        return np.flatnonzero(self.frame_mask(ids))

    def frame_mask(self, ids: list[int]) -> Bool[np.ndarray, " N"]:
        """Mark the frames of the episodes with these `episode_index` values."""
        return np.repeat(np.isin(self.ids, np.asarray(ids, dtype=np.int64)), self.lengths)

    def require_context(self, num_context: int) -> None:
        """Check that every episode holds at least one full context.

        Raises:
            InvalidInputError: names the episodes that are shorter than `num_context` frames.
        """
        short = self.lengths < num_context
        if short.any():
            shown = ", ".join(
                f"{i} ({n} frames)"
                for i, n in zip(self.ids[short][:5], self.lengths[short][:5], strict=True)
            )
            raise InvalidInputError(
                f"{short.sum()} of {len(self)} episodes are shorter than --context_frames "
                f"{num_context}: episode {shown}; lower --context_frames to "
                f"{self.lengths.min()} or less"
            )

    def require_reach(self, flags: str, num_frames: int) -> None:
        """Check that some episode is long enough to look this many frames back.

        Args:
            flags: what asks for it, as on the command line.
            num_frames: how far back the oldest frame lies.

        Raises:
            InvalidInputError: in every episode the oldest frame would always be the first one.
        """
        if num_frames >= (longest := int(self.lengths.max())):
            raise InvalidInputError(
                f"{flags} reaches {num_frames} frames back, but the longest episode has {longest} "
                f"frames; let it reach at most {longest - 1} frames back"
            )


@dataclass(frozen=True)
class Split:
    """Which episodes train and which validate, as ascending ids."""

    train: list[int]
    val: list[int]


def split_episodes(episodes: Episodes, val_fraction: float, seed: int) -> Split:
    """Hold out episodes for validation, spread evenly over the tasks.

    Systematic sampling from the episodes ordered by task (tasks and the episodes within each in
    random order): every `1 / val_fraction`-th episode is held out. The total is `val_fraction` of
    all episodes, rounded; each task gives its share of that, rounded up or down, so that a task of
    few episodes may give none, or all of one or two.

    Args:
        episodes: all episodes of the dataset.
        val_fraction: share of the episodes to hold out, in (0, 1).
        seed: the same seed gives the same split in every stage.

    Raises:
        InvalidInputError: fewer than two episodes, or a fraction outside (0, 1).
    """
    num_episodes = len(episodes)
    if num_episodes < 2:
        raise InvalidInputError(
            f"{num_episodes} episode cannot be split into training and validation "
            "episodes; record at least 2"
        )
    if not 0 < val_fraction < 1:
        raise InvalidInputError(f"--val_fraction must lie between 0 and 1, not {val_fraction}")
    num_val = int(np.clip(round(num_episodes * val_fraction), 1, num_episodes - 1))
    held_out = _spread_over_tasks(episodes.tasks, num_val, np.random.default_rng(seed))
    return Split(
        train=sorted(episodes.ids[~held_out].tolist()), val=sorted(episodes.ids[held_out].tolist())
    )


def labelled_episodes(
    episodes: Episodes, train_ids: list[int], fraction: float, seed: int
) -> list[int]:
    """Return the training episodes whose actions are learned from, spread evenly over the tasks.

    Args:
        episodes: all episodes of the dataset.
        train_ids: those of them that train.
        fraction: share of these, rounded to whole episodes; 1 takes all.
        seed: the same seed gives the same episodes to every arm.

    Raises:
        InvalidInputError: the fraction leaves no episode.
    """
    if fraction == 1:
        return train_ids
    num_labelled = round(len(train_ids) * fraction)
    if num_labelled == 0:
        raise InvalidInputError(
            f"--labelled_fraction {fraction:g} of {len(train_ids)} training episodes is none; give "
            f"{1 / len(train_ids):.2g} or more"
        )
    positions = episodes.positions_of(train_ids)
    rng = np.random.default_rng([seed, _LABELS])
    chosen = positions[_spread_over_tasks(episodes.tasks[positions], num_labelled, rng)]
    return sorted(episodes.ids[chosen].tolist())


def _spread_over_tasks(
    tasks: Int[np.ndarray, " E"], count: int, rng: np.random.Generator
) -> Bool[np.ndarray, " E"]:
    """Mark so many of these episodes, evenly over their tasks."""
    num_episodes = len(tasks)
    known = np.unique(tasks)
    task_rank = rng.permutation(len(known))[np.searchsorted(known, tasks)]
    order = np.lexsort((rng.permutation(num_episodes), task_rank))
    # One episode from each of `count` equal stretches of the order, at a common random offset.
    picks = ((np.arange(count) + rng.random()) * num_episodes / count).astype(np.int64)
    marked = np.zeros(num_episodes, dtype=bool)
    marked[order[picks]] = True
    return marked
