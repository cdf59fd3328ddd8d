"""Changes of the scene: the table of their kinds, and the flags of recorder and evaluator."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from benchmarks.metaworld.cue import DEFAULT_CUE_FRAMES, Cue
from benchmarks.metaworld.occlusion import DEFAULT_POSITION, DEFAULT_SIZE, Occlusion
from benchmarks.metaworld.scene_change import Position, SceneChange
from world_modality.system.errors import InvalidInputError, require_at_least

SCENE_CHANGES: dict[str, type[SceneChange]] = {change.name: change for change in (Cue, Occlusion)}
"""The kinds, by their name in the record of a rendering."""


@dataclass(frozen=True, kw_only=True)
class SceneFlags:
    """Flags of what is drawn besides the scene of the task."""

    cue: Literal["none", "side", "anywhere"] | None = None
    """Show which goal of reach-v3 is wanted in the first frames only: side has one goal on the left
    and one on the right, anywhere draws it from the task's range. Default: none when recording, and
    what the recording has when evaluating."""
    cue_frames: int | None = None
    """Frames in which the cue is seen. Default: 8, and what the recording has when evaluating."""
    occlusion_from: int | None = None
    """Put up an opaque screen in this frame, counted from 0, which hides part of the table from the
    cameras; nothing collides with it. Default: none, and what the recording has when evaluating."""
    occlusion_position: Position | None = None
    """Centre of the screen, x y z in m. Default: 0.2 0.5 0.15, between corner2 and the table."""
    occlusion_size: Position | None = None
    """Extent of the screen along x, y and z in m. Default: 0.3 0.02 0.3."""

    def scene(self, recorded: Sequence[SceneChange] = ()) -> tuple[SceneChange, ...]:
        """Return the changes that are asked for; what no flag says is that of the recording.

        Raises:
            InvalidInputError: a flag is out of range, or has no effect.
        """
        before = {change.name: change for change in recorded}
        changes = (self._cue(before.get(Cue.name)), self._occlusion(before.get(Occlusion.name)))
        return tuple(change for change in changes if change is not None)

    def _cue(self, recorded: SceneChange | None) -> Cue | None:
        assert recorded is None or isinstance(recorded, Cue)
        goals = self.cue or (recorded.goals if recorded else "none")
        if goals == "none":
            if self.cue_frames is not None:
                raise InvalidInputError(
                    f"--cue_frames {self.cue_frames} shows nothing without a cue; add --cue side"
                )
            return None
        frames = self.cue_frames
        if frames is None:
            frames = recorded.frames if recorded else DEFAULT_CUE_FRAMES
        require_at_least("cue_frames", frames, 1)
        return Cue(goals, frames)

    def _occlusion(self, recorded: SceneChange | None) -> Occlusion | None:
        assert recorded is None or isinstance(recorded, Occlusion)
        start = self.occlusion_from
        if start is None:
            start = recorded.from_frame if recorded else None
        if start is None:
            for name in ("occlusion_position", "occlusion_size"):
                if getattr(self, name) is not None:
                    raise InvalidInputError(
                        f"--{name} places no screen; say with --occlusion_from from which frame on "
                        "there is one"
                    )
            return None
        require_at_least("occlusion_from", start, 0)
        position = self.occlusion_position or (recorded.position if recorded else DEFAULT_POSITION)
        size = self.occlusion_size or (recorded.size if recorded else DEFAULT_SIZE)
        if not np.isfinite(position).all() or not np.isfinite(size).all() or min(size) <= 0:
            raise InvalidInputError(
                f"the screen at {position} m has the extents {size} m; --occlusion_position takes "
                "three numbers, --occlusion_size three above 0"
            )
        return Occlusion(start, position, size)


SCENE_FLAGS = tuple(SceneFlags.__dataclass_fields__)


def scene_record(scene: Sequence[SceneChange]) -> dict[str, Any]:
    """Return the settings of each change by its name, as JSON holds them."""
    return {change.name: change.record() for change in scene}


def scene_of_record(record: Mapping[str, Any]) -> tuple[SceneChange, ...]:
    """Rebuild the changes of a record, which may hold other things.

    Raises:
        InvalidInputError: a setting is missing or unknown.
    """
    return tuple(
        kind.from_record(record[name]) for name, kind in SCENE_CHANGES.items() if name in record
    )


def require_tasks_of_scene(scene: Sequence[SceneChange], tasks: Iterable[str]) -> None:
    """Check that the changes are for all of these tasks.

    Raises:
        InvalidInputError: one is for other tasks; the message names them.
    """
    for change in scene:
        others = [task for task in tasks if change.tasks and task not in change.tasks]
        if others:
            raise InvalidInputError(
                f"--{change.name} is there for {' '.join(change.tasks)} alone, not for "
                f"{' '.join(others)}; give --tasks {' '.join(change.tasks)}"
            )


def require_steps_for_scene(scene: Sequence[SceneChange], max_steps: int) -> None:
    """Check that the episodes of a recording are long enough for the changes.

    Raises:
        InvalidInputError: one is for longer episodes.
    """
    for change in scene:
        if change.min_steps > max_steps:
            raise InvalidInputError(
                f"{change.name} {json.dumps(change.record())} needs episodes of at least "
                f"{change.min_steps} steps, and they end after {max_steps}; show it earlier or "
                "more briefly, or raise --max_steps where that is lower than the suite's limit"
            )


def require_scene_of_recording(
    recorded: Sequence[SceneChange], wanted: Sequence[SceneChange], checkpoint: object
) -> None:
    """Check that a policy is evaluated in the scene that its recording has.

    Raises:
        InvalidInputError: a change is there in one of them only, or with other settings.
    """
    before, now = scene_record(recorded), scene_record(wanted)
    for name in SCENE_CHANGES:
        if before.get(name) != now.get(name):
            raise InvalidInputError(
                f"{checkpoint} was trained on a recording with {_shown(name, before)}, and "
                f"{_shown(name, now)} is asked for here; leave out the flags that begin with "
                f"--{name}, which gives what the recording has, or record, precompute and train "
                "again with them"
            )


def _shown(name: str, record: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(record[name])}" if name in record else f"no {name}"
