"""Which episodes are labelled, and what of each is handed to the author."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from coc_vla.authors.pictures import Pictures
from coc_vla.events.gripper import GripperChannel, find_gripper_dim
from coc_vla.events.hand_axes import HandAxes, Side
from coc_vla.events.keyframes import (
    DEFAULT_NUM_KEYFRAMES,
    KeyframeChoice,
    event_keyframes,
    uniform_keyframes,
)
from coc_vla.events.motion import EpisodeMotion, find_position_dims
from coc_vla.labels.keyframe_images import keyframe_images
from coc_vla.labels.labelling import EpisodeTask
from coc_vla.labels.recorded_episodes import MotionColumns, RecordedEpisodes, choose_episodes
from world_modality.source.dataset_episodes import EPISODE_KEY
from world_modality.source.lerobot_format import content_sha256
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.source.task_texts import text_fault
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class TaskRequest:
    """The episodes asked for, and what is shown of each; fields are the stage's flags."""

    image_key: str | None = None
    instruction_key: str | None = None
    episode_key: str = "episode_index"
    task_key: str = "task_index"
    keyframes: KeyframeChoice = "uniform"
    num_keyframes: int | None = None
    max_image_side: int = 768
    as_recorded: bool = False
    """Hand on the dataset's own image files instead of pixels where that is possible."""
    state_key: str = "observation.state"
    action_key: str = "action"
    position_dims: tuple[int, int, int] | None = None
    position_axes: tuple[Side, Side] | None = None
    gripper_dim: int | Literal["none"] | None = None
    gripper_commands: tuple[float, float] = (-1.0, 1.0)
    episodes: str | None = None
    max_episodes: int | None = None

    @property
    def resolved_num_keyframes(self) -> int:
        """How many keyframes an episode has, with events at most."""
        return self.num_keyframes or DEFAULT_NUM_KEYFRAMES[self.keyframes]


@dataclass(frozen=True)
class TaskPlan:
    """The episodes to label.

    Attributes:
        recorded: the dataset's episodes.
        request: what is shown of each.
        positions: the chosen ones, ascending positions in `recorded.episodes`.
        image_key: camera, None where no pictures are needed.
        columns: position and gripper, None where no motion is needed.
        needs_motion: whether tasks carry it.
    """

    recorded: RecordedEpisodes
    request: TaskRequest
    positions: Int[np.ndarray, " P"] = field(repr=False)
    image_key: str | None
    columns: MotionColumns | None
    needs_motion: bool

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def instruction_origin(self) -> str:
        """Where the instructions are from, for a reader."""
        several = self.recorded.num_with_several
        note = f" ({several} episodes have several; their first is taken)" if several else ""
        return self.recorded.instruction_origin + note

    @property
    def episode_ids(self) -> list[int]:
        """The chosen episodes' ids."""
        ids: list[int] = self.recorded.episodes.ids[self.positions].tolist()
        return ids

    @property
    def settings(self) -> dict[str, Any]:
        """What labels of these episodes depend on, beside the author."""
        source = self.recorded.source
        columns = self.columns
        return {
            "dataset_sha256": content_sha256(source.root, source.data_files, self.image_key),
            # None as in files that were written before the column was kept.
            "episode_key": None
            if self.request.episode_key == EPISODE_KEY
            else self.request.episode_key,
            "instruction_origin": self.recorded.instruction_origin,
            "image_key": self.image_key,
            "max_image_side": self.request.max_image_side if self.image_key else None,
            "images_as_recorded": self.request.as_recorded if self.image_key else None,
            "keyframes": self.request.keyframes,
            "num_keyframes": self.request.resolved_num_keyframes,
            "state_key": columns and columns.state_key,
            "action_key": columns and columns.action_key,
            "position_dims": columns and list(columns.position_dims),
            "position_axes": columns
            and self.request.position_axes
            and list(self.request.position_axes),
            "gripper_dim": columns and columns.gripper.dim,
            "gripper_commands": columns and list(self.request.gripper_commands),
        }

    def without(self, done: set[int]) -> "TaskPlan":
        """Return the plan for the episodes that are not done."""
        open_ones = [episode not in done for episode in self.episode_ids]
        return replace(self, positions=self.positions[np.array(open_ones, dtype=bool)])

    def tasks(self) -> Iterator[EpisodeTask]:
        """Yield the episodes with all that the author needs, reading the dataset once, in order.

        Raises:
            InvalidInputError: a state or action is not finite.
        """
        keyframes = self._keyframes()
        starts = self.recorded.episodes.starts[self.positions].tolist()
        motions: Iterator[EpisodeMotion | None] = repeat(None)
        if self.needs_motion:
            motions = iter(self._motions())
        images: Iterator[Pictures | str] = repeat(())
        if self.image_key is not None:
            frames = [
                [start + index for index in indices]
                for start, indices in zip(starts, keyframes, strict=True)
            ]
            source = self.recorded.source
            side = self.request.max_image_side
            images = keyframe_images(
                source, self.image_key, frames, side, as_recorded=self.request.as_recorded
            )
        for position, indices in zip(self.positions.tolist(), keyframes, strict=True):
            instruction = self.recorded.instructions[position]
            shown = next(images)
            fault = text_fault(instruction)
            yield EpisodeTask(
                episode_id=int(self.recorded.episodes.ids[position]),
                instruction=instruction,
                keyframe_indices=indices,
                fps=self.recorded.source.fps,
                images=() if isinstance(shown, str) else shown,
                motion=next(motions),
                fault=f"the instruction {fault}" if fault else _damage(shown),
            )

    def _keyframes(self) -> list[tuple[int, ...]]:
        count = self.request.resolved_num_keyframes
        if self.request.keyframes == "uniform":
            lengths = self.recorded.episodes.lengths[self.positions].tolist()
            return [uniform_keyframes(length, count) for length in lengths]
        return [
            event_keyframes(motion.positions, motion.gripper_events, motion.fps, count)
            for motion in self._motions()
        ]

    def _motions(self) -> Iterator[EpisodeMotion]:
        assert self.columns is not None
        return self.recorded.motions(self.columns, self.positions)


def plan_tasks(
    source: LeRobotSource, request: TaskRequest, *, needs_images: bool, needs_motion: bool
) -> TaskPlan:
    """Choose the episodes and the columns.

    Raises:
        UserError: a key, a dimension or an episode that does not exist, or no instruction at all.
    """
    if request.num_keyframes is not None and request.num_keyframes < 1:
        raise InvalidInputError("--num_keyframes must be at least 1")
    # A camera that is named has to exist, even if nobody looks.
    is_named = request.image_key is not None
    camera = source.camera(request.image_key) if needs_images or is_named else None
    recorded = RecordedEpisodes.read(
        source, request.episode_key, request.task_key, request.instruction_key
    )
    columns = None
    if needs_motion or request.keyframes == "events":
        columns = _motion_columns(source, request)
    positions = choose_episodes(
        recorded.episodes.ids.tolist(), request.episodes, request.max_episodes
    )
    faults = [text_fault(recorded.instructions[position]) for position in positions]
    if all(faults):
        raise InvalidInputError(
            f"none of {len(faults)} episodes has an instruction: the first {faults[0]} in "
            f"{recorded.instruction_origin}; name the column of the texts with --instruction_key"
        )
    return TaskPlan(
        recorded=recorded,
        request=request,
        positions=np.array(positions, dtype=np.int64),
        image_key=camera if needs_images else None,
        columns=columns,
        needs_motion=needs_motion,
    )


def _motion_columns(source: LeRobotSource, request: TaskRequest) -> MotionColumns:
    for key in (request.state_key, request.action_key):
        source.require(key)
    state, action = source.features[request.state_key], source.features[request.action_key]
    gripper = find_gripper_dim(action, request.action_key, request.gripper_dim)
    return MotionColumns(
        state_key=request.state_key,
        action_key=request.action_key,
        position_dims=find_position_dims(state, request.state_key, request.position_dims),
        gripper=GripperChannel(gripper, *request.gripper_commands),
        axes=HandAxes.of(request.position_axes),
    )


def _damage(images: Pictures | str) -> str | None:
    return f"its keyframes cannot be read: {images}" if isinstance(images, str) else None
