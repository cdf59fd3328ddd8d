"""Which episodes are labelled, and what of each is handed to the author."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np
from jaxtyping import Int

from coc_vla.authors.vlm import Pictures
from coc_vla.events.motion import EpisodeMotion
from coc_vla.events.motion_columns import MotionColumns, MotionFlags
from coc_vla.labels.keyframes import (
    DEFAULT_NUM_KEYFRAMES,
    KeyframeChoice,
    event_keyframes,
    keyframe_images,
    uniform_keyframes,
)
from world_modality.source.dataset_episodes import EPISODE_KEY, read_episodes
from world_modality.source.episodes import Episodes
from world_modality.source.lerobot_format import content_sha256
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.source.task_texts import text_fault
from world_modality.system.errors import InvalidInputError, MissingKeyError, missing_key

# What LeRobot calls the text of a frame's task. It is no column: the column is its number.
TASK_ALIASES = ("task", "instruction")


@dataclass(frozen=True, kw_only=True)
class EpisodeFlags(MotionFlags):
    """The episodes that are asked for, and what is shown of each."""

    image_key: str | None = None
    """Camera to show; may be left out where there is only one."""
    instruction_key: str | None = None
    """Column of each frame's text. Left out, or `task` or `instruction` where the dataset has no
    such column: the dataset's own task texts."""
    episode_id_key: str = EPISODE_KEY
    """Column that numbers the episodes."""
    task_index_key: str = "task_index"
    """Column that numbers the tasks."""
    keyframes: KeyframeChoice = "uniform"
    """uniform: start, middle, end; events: where the gripper acts and the hand pauses."""
    num_keyframes: int | None = None
    """Frames shown of an episode; by default 3, with events at most 6."""
    max_image_side: int = 768
    """Larger images are made smaller."""
    episodes: str | None = None
    """Only these episodes, as in 0:100,205 (the end of a range is not in it)."""
    max_episodes: int | None = None
    """Only so many of them, the first ones."""

    def __post_init__(self) -> None:
        for name in ("num_keyframes", "max_episodes", "max_image_side"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise InvalidInputError(f"--{name} must be at least 1")

    @property
    def resolved_num_keyframes(self) -> int:
        """How many keyframes an episode has, with events at most."""
        return self.num_keyframes or DEFAULT_NUM_KEYFRAMES[self.keyframes]


@dataclass(frozen=True)
class EpisodeTask:
    """One episode to label.

    Attributes:
        episode_id: the dataset's `episode_index`.
        instruction: what the robot was told.
        keyframe_indices: frames within the episode.
        fps: of the recording.
        images: the keyframes, empty where the author reads the motion.
        motion: None where the author sees pictures.
        fault: why the episode cannot be asked about, None where it can.
    """

    episode_id: int
    instruction: str
    keyframe_indices: tuple[int, ...]
    fps: float
    images: Pictures = field(repr=False)
    motion: EpisodeMotion | None = field(repr=False)
    fault: str | None


@dataclass(frozen=True)
class Instructions:
    """What the robot is told in each episode, by position, and where from, for a reader.

    A text may be blank. Of several within an episode the first is taken, and the episode counted.
    """

    texts: tuple[str, ...]
    origin: str
    num_with_several: int

    def __str__(self) -> str:
        note = f" ({self.num_with_several} episodes have several; their first is taken)"
        return self.origin + (note if self.num_with_several else "")

    @classmethod
    def read(cls, source: LeRobotSource, episodes: Episodes, flags: EpisodeFlags) -> "Instructions":
        """Read the column that `--instruction_key` names, or LeRobot's own task texts.

        Raises:
            MissingKeyError: no such column; lists those there are, nearest first.
            InvalidInputError: the column is damaged, or a task has no text.
        """
        key = flags.instruction_key
        if key is not None and key in source.features:
            return cls(*_texts_of_column(source, key, episodes))
        if key is None or key in TASK_ALIASES:
            return cls(*_texts_by_task(source, flags.task_index_key, episodes))
        names = [TASK_ALIASES[0], *source.features]
        missing = missing_key("column", key, names, f"dataset {source.name}")
        raise MissingKeyError(
            f"{missing}; --instruction_key {TASK_ALIASES[0]} takes the dataset's own task texts"
        )


@dataclass(frozen=True)
class TaskPlan:
    """The episodes to label.

    Attributes:
        source: the dataset.
        flags: what is shown of each episode.
        episodes: all that the dataset has.
        instructions: of all of them.
        positions: the chosen ones, ascending positions in `episodes`.
        image_key: camera; None where no pictures are needed, but the motion.
        columns: position and gripper, None where they are not read.
        as_recorded: hand on the dataset's own image files instead of pixels where that is possible.
    """

    source: LeRobotSource
    flags: EpisodeFlags
    episodes: Episodes = field(repr=False)
    instructions: Instructions = field(repr=False)
    positions: Int[np.ndarray, " P"] = field(repr=False)
    image_key: str | None
    columns: MotionColumns | None
    as_recorded: bool

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def settings(self) -> dict[str, Any]:
        """What labels of these episodes depend on, beside the author."""
        flags, columns, camera = self.flags, self.columns, self.image_key
        cameras = () if camera is None else (camera,)
        key = flags.episode_id_key
        axes = flags.position_axes
        return {
            "dataset_sha256": content_sha256(self.source.root, self.source.data_files, cameras),
            # None as in files that were written before the column was kept.
            "episode_key": None if key == EPISODE_KEY else key,
            "instruction_origin": self.instructions.origin,
            "image_key": camera,
            "max_image_side": flags.max_image_side if camera else None,
            "images_as_recorded": self.as_recorded if camera else None,
            "keyframes": flags.keyframes,
            "num_keyframes": flags.resolved_num_keyframes,
            "state_key": columns and columns.state_key,
            "action_key": columns and columns.action_key,
            "position_dims": columns and list(columns.position_dims),
            "position_axes": columns and axes and list(axes),
            "gripper_dim": columns and columns.gripper.dim,
            "gripper_commands": columns and list(flags.gripper_commands),
        }

    def without(self, done: set[int]) -> "TaskPlan":
        """Return the plan for the episodes that are not done."""
        ids = self.episodes.ids[self.positions].tolist()
        is_open = np.array([episode not in done for episode in ids], dtype=bool)
        return replace(self, positions=self.positions[is_open])

    def tasks(self) -> Iterator[EpisodeTask]:
        """Yield the episodes with all that the author needs, reading the dataset once, in order.

        Raises:
            InvalidInputError: a state or action is not finite.
        """
        keyframes = self._keyframes()
        motions = self._motions() if self.image_key is None else repeat(None)
        images = repeat(()) if self.image_key is None else self._images(self.image_key, keyframes)
        for position, indices in zip(self.positions.tolist(), keyframes, strict=True):
            instruction, shown = self.instructions.texts[position], next(images)
            fault = text_fault(instruction)
            if fault is not None:
                fault = f"the instruction {fault}"
            elif isinstance(shown, str):
                fault = f"its keyframes cannot be read: {shown}"
            yield EpisodeTask(
                episode_id=int(self.episodes.ids[position]),
                instruction=instruction,
                keyframe_indices=indices,
                fps=self.source.fps,
                images=() if isinstance(shown, str) else shown,
                motion=next(motions),
                fault=fault,
            )

    def _keyframes(self) -> list[tuple[int, ...]]:
        count = self.flags.resolved_num_keyframes
        if self.flags.keyframes == "events":
            return [event_keyframes(motion, count) for motion in self._motions()]
        lengths = self.episodes.lengths[self.positions].tolist()
        return [uniform_keyframes(length, count) for length in lengths]

    def _images(
        self, camera: str, keyframes: Sequence[tuple[int, ...]]
    ) -> Iterator[Pictures | str]:
        starts = self.episodes.starts[self.positions].tolist()
        frames = [
            [start + index for index in indices]
            for start, indices in zip(starts, keyframes, strict=True)
        ]
        side = self.flags.max_image_side
        return keyframe_images(self.source, camera, frames, side, as_recorded=self.as_recorded)

    def _motions(self) -> Iterator[EpisodeMotion]:
        """Yield the motion of each chosen episode, holding no more than a block of the dataset."""
        assert self.columns is not None
        keys = [self.columns.state_key, self.columns.action_key]
        bounds = (self.episodes.starts[self.positions], self.episodes.ends[self.positions])
        waiting = deque(zip(*(frames.tolist() for frames in bounds), strict=True))
        kept: list[np.ndarray] = []
        kept_from = 0  # the frame that `kept` begins with
        for block in self.source.columns(keys):
            new = [block[key].reshape(len(block[key]), -1).astype(np.float64) for key in keys]
            kept = [np.concatenate(parts) for parts in zip(kept, new, strict=True)] if kept else new
            while waiting and waiting[0][1] <= kept_from + len(kept[0]):
                start, end = waiting.popleft()
                states, actions = (rows[start - kept_from : end - kept_from] for rows in kept)
                for key, values in zip(keys, (states, actions), strict=True):
                    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
                    if len(bad):
                        raise InvalidInputError(
                            f"column {key} of {self.source.name} is not finite in frame "
                            f"{start + int(bad[0])}; mend the episode, or leave it out with "
                            "--episodes"
                        )
                yield self.columns.motion(self.source, states, actions, start)
            if not waiting:
                return
            num_done = min(max(waiting[0][0] - kept_from, 0), len(kept[0]))
            kept = [rows[num_done:] for rows in kept]
            kept_from += num_done


def plan_tasks(
    source: LeRobotSource, flags: EpisodeFlags, *, needs_images: bool, as_recorded: bool = False
) -> TaskPlan:
    """Choose the episodes and the columns; where no images are needed, the motion is.

    With `as_recorded` the dataset's own image files are handed on where that is possible.

    Raises:
        UserError: a key, a dimension or an episode that does not exist, or no instruction at all.
    """
    # A camera that is named has to exist, even if nobody looks.
    is_named = flags.image_key is not None
    camera = source.camera(flags.image_key) if needs_images or is_named else None
    episodes = read_episodes(source, flags.episode_id_key, flags.task_index_key)
    instructions = Instructions.read(source, episodes, flags)
    columns = None
    if not needs_images or flags.keyframes == "events":
        columns = MotionColumns.of(source, flags)
    positions = choose_episodes(episodes.ids.tolist(), flags.episodes, flags.max_episodes)
    faults = [text_fault(instructions.texts[position]) for position in positions]
    if all(faults):
        raise InvalidInputError(
            f"none of {len(faults)} episodes has an instruction: the first {faults[0]} in "
            f"{instructions.origin}; name the column of the texts with --instruction_key"
        )
    return TaskPlan(
        source=source,
        flags=flags,
        episodes=episodes,
        instructions=instructions,
        positions=np.array(positions, dtype=np.int64),
        image_key=camera if needs_images else None,
        columns=columns,
        as_recorded=as_recorded,
    )


def choose_episodes(ids: Sequence[int], chosen: str | None, max_episodes: int | None) -> list[int]:
    """Return the ascending positions of the episodes that `--episodes` names, the first so many.

    A range's end is not in it, as in `0:100,205`; None names all.

    Raises:
        InvalidInputError: not such a list, or an episode that does not exist.
    """
    if chosen is None:
        return list(range(len(ids)))[:max_episodes]
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
        first, end = bounds if len(bounds) == 2 else (bounds[0], bounds[0] + 1)
        found = [position for position, episode in enumerate(ids) if first <= episode < end]
        if not found:
            raise InvalidInputError(
                f"--episodes {part}: no such episode; the dataset has {len(ids)}, {min(ids)} to "
                f"{max(ids)}"
            )
        positions.update(found)
    return sorted(positions)[:max_episodes]


def _texts_by_task(
    source: LeRobotSource, task_key: str, episodes: Episodes
) -> tuple[tuple[str, ...], str, int]:
    tasks = np.concatenate([block[task_key].reshape(-1) for block in source.columns([task_key])])
    missing = sorted(set(tasks.tolist()) - set(source.tasks))
    if missing:
        raise InvalidInputError(
            f"column {task_key} of {source.name} has values {missing[:5]} that meta/tasks.parquet "
            "does not list; is --task_index_key right?"
        )
    changes = tasks != np.repeat(episodes.tasks, episodes.lengths)
    num_several = len(np.unique(episodes.of_frame[changes]))
    texts = tuple(source.tasks[task] for task in episodes.tasks.tolist())
    return texts, "the dataset's task table (LeRobot's `task`)", num_several


def _texts_of_column(
    source: LeRobotSource, key: str, episodes: Episodes
) -> tuple[tuple[str, ...], str, int]:
    texts: list[str] = []
    several: set[int] = set()
    previous, first_text = None, None
    of_frame = episodes.of_frame.tolist()
    texts_of_frames = (text for block in source.raw_blocks(key) for text in block.to_pylist())
    for text, position in zip(texts_of_frames, of_frame, strict=True):
        if text is not None and not isinstance(text, str):
            raise InvalidInputError(f"column {key} of {source.name} holds no texts: {text!r}")
        if position != previous:
            previous, first_text = position, text
            texts.append(text or "")
        elif text != first_text:
            several.add(position)
    return tuple(texts), f"column {key}", len(several)
