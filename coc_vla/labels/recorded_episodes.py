"""The episodes of a dataset as the labelling stage sees them: instruction, motion, keyframes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from coc_vla.events.gripper import GripperChannel
from coc_vla.events.hand_axes import HandAxes
from coc_vla.events.motion import EpisodeMotion
from world_modality.source.dataset_episodes import read_episodes
from world_modality.source.episodes import Episodes
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingKeyError, missing_key

# What LeRobot calls the text of a frame's task. It is no column: the column is its number.
TASK_ALIASES = ("task", "instruction")


@dataclass(frozen=True)
class MotionColumns:
    """Which numbers of a frame are the hand's position and the gripper's command.

    Attributes:
        state_key: column with the position.
        action_key: column with the command.
        position_dims: of the state, height last.
        gripper: of the action.
        axes: which way the first two numbers of the position point, None where nobody knows.
    """

    state_key: str
    action_key: str
    position_dims: tuple[int, int, int]
    gripper: GripperChannel
    axes: HandAxes | None = None


@dataclass(frozen=True)
class RecordedEpisodes:
    """A dataset's episodes and their instructions.

    Attributes:
        source: the dataset.
        episodes: where they begin and end.
        instructions: one an episode, by position; may be blank.
        instruction_origin: where they are from, for a reader.
        num_with_several: episodes whose text changes on the way; their first is taken.
    """

    source: LeRobotSource
    episodes: Episodes
    instructions: tuple[str, ...] = field(repr=False)
    instruction_origin: str
    num_with_several: int

    @classmethod
    def read(
        cls, source: LeRobotSource, episode_key: str, task_key: str, instruction_key: str | None
    ) -> "RecordedEpisodes":
        """Read where episodes begin and what each is told to do; no image is touched.

        Args:
            source: the dataset.
            episode_key: column that numbers the episodes.
            task_key: column that numbers the tasks.
            instruction_key: a column of texts. None, `task` and `instruction` stand for LeRobot's
                own task texts where the dataset has no column of that name.

        Raises:
            MissingKeyError: no such column; lists those there are, nearest first.
            InvalidInputError: the columns are damaged, or a task has no text.
        """
        episodes = read_episodes(source, episode_key, task_key)
        by_task = instruction_key is None or (
            instruction_key in TASK_ALIASES and instruction_key not in source.features
        )
        if by_task or instruction_key is None:
            texts, num_several = _texts_by_task(source, episodes, task_key)
            origin = "the dataset's task table (LeRobot's `task`)"
            return cls(source, episodes, texts, origin, num_several)
        if instruction_key not in source.features:
            keys = [TASK_ALIASES[0], *source.features]
            missing = missing_key("column", instruction_key, keys, f"dataset {source.name}")
            raise MissingKeyError(
                f"{missing}; --instruction_key {TASK_ALIASES[0]} takes the dataset's own task texts"
            )
        column_texts, num_several = _texts_of_column(source, instruction_key, episodes)
        origin = f"column {instruction_key}"
        return cls(source, episodes, column_texts, origin, num_several)

    def motions(
        self, columns: MotionColumns, positions: Int[np.ndarray, " P"]
    ) -> Iterator[EpisodeMotion]:
        """Yield the motion of some episodes, reading the dataset once, in order.

        Args:
            columns: where position and gripper are.
            positions: ascending positions in `episodes`.

        Raises:
            InvalidInputError: a number is not finite.
        """
        wanted = iter(positions.tolist())
        position = next(wanted, None)
        start = 0
        kept: list[tuple[int, np.ndarray, np.ndarray]] = []
        for block in self.source.columns([columns.state_key, columns.action_key]):
            states = block[columns.state_key].reshape(len(block[columns.state_key]), -1)
            actions = block[columns.action_key].reshape(len(states), -1)
            kept.append((start, states, actions))
            start += len(states)
            while position is not None and int(self.episodes.ends[position]) <= start:
                first, end = int(self.episodes.starts[position]), int(self.episodes.ends[position])
                yield self._motion(columns, kept, first, end)
                position = next(wanted, None)
            if position is None:
                return
            begin = int(self.episodes.starts[position])
            kept = [part for part in kept if part[0] + len(part[1]) > begin]

    def _motion(
        self,
        columns: MotionColumns,
        parts: Sequence[tuple[int, np.ndarray, np.ndarray]],
        first: int,
        end: int,
    ) -> EpisodeMotion:
        inside = [
            (
                states[max(first - start, 0) : end - start],
                actions[max(first - start, 0) : end - start],
            )
            for start, states, actions in parts
            if start < end and start + len(states) > first
        ]
        states = np.concatenate([part[0] for part in inside]).astype(np.float64)
        actions = np.concatenate([part[1] for part in inside]).astype(np.float64)
        for key, values in ((columns.state_key, states), (columns.action_key, actions)):
            bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(bad):
                raise InvalidInputError(
                    f"column {key} of {self.source.name} is not finite in frame "
                    f"{first + int(bad[0])}; mend the episode, or leave it out with --episodes"
                )
        return EpisodeMotion(
            states[:, list(columns.position_dims)],
            columns.gripper.events(
                actions, f"column {columns.action_key} of {self.source.name}, frames {first}:{end},"
            ),
            self.source.fps,
            columns.axes,
        )


def choose_episodes(ids: Sequence[int], chosen: str | None, max_episodes: int | None) -> list[int]:
    """Return the ascending positions of the episodes that `--episodes` names.

    Args:
        ids: every episode's id.
        chosen: ids and ranges whose end is not in it, as in `0:100,205`; None for all.
        max_episodes: only the first so many.

    Raises:
        InvalidInputError: not such a list, or an episode that does not exist.
    """
    if max_episodes is not None and max_episodes < 1:
        raise InvalidInputError("--max_episodes must be at least 1")
    if chosen is None:
        return list(range(len(ids)))[:max_episodes]
    position_of = {episode: position for position, episode in enumerate(ids)}
    positions: set[int] = set()
    for part in chosen.split(","):
        try:
            bounds = [int(bound) for bound in part.split(":")]
        except ValueError:
            bounds = []
        if len(bounds) not in (1, 2):
            raise InvalidInputError(
                f"--episodes {chosen}: {part!r} is neither an episode nor a range like 0:100"
            )
        if len(bounds) == 1:
            found = [bounds[0]] if bounds[0] in position_of else []
        else:
            found = [episode for episode in ids if bounds[0] <= episode < bounds[1]]
        if not found:
            raise InvalidInputError(
                f"--episodes {part}: no such episode; the dataset has {len(ids)}, {min(ids)} to "
                f"{max(ids)}"
            )
        positions.update(position_of[episode] for episode in found)
    return sorted(positions)[:max_episodes]


def _texts_by_task(
    source: LeRobotSource, episodes: Episodes, task_key: str
) -> tuple[tuple[str, ...], int]:
    """Return each episode's first text, and how many episodes have several."""
    tasks = np.concatenate([block[task_key].reshape(-1) for block in source.columns([task_key])])
    missing = sorted(set(tasks.tolist()) - set(source.tasks))
    if missing:
        raise InvalidInputError(
            f"column {task_key} of {source.name} has values {missing[:5]} that meta/tasks.parquet "
            "does not list; is --task_index_key right?"
        )
    changes = tasks != np.repeat(episodes.tasks, episodes.lengths)
    num_several = len(np.unique(episodes.of_frame[changes]))
    return tuple(source.tasks[task] for task in episodes.tasks.tolist()), num_several


def _texts_of_column(
    source: LeRobotSource, key: str, episodes: Episodes
) -> tuple[tuple[str, ...], int]:
    """Return each episode's first text, and how many episodes have several."""
    texts: list[str | None] = [None] * len(episodes)
    several: set[int] = set()
    start = 0
    for block in source.raw_blocks(key):
        values = block.to_pylist()
        first = int(np.searchsorted(episodes.ends, start, side="right"))
        position = first
        for frame, text in enumerate(values, start):
            while frame >= int(episodes.ends[position]):
                position += 1
            if text is not None and not isinstance(text, str):
                raise InvalidInputError(f"column {key} of {source.name} holds no texts: {text!r}")
            if frame == int(episodes.starts[position]):
                texts[position] = text
            elif text != texts[position]:
                several.add(position)
        start += len(values)
    return tuple(text or "" for text in texts), len(several)
