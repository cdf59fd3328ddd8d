"""What happened in a recorded episode, as an ordered list of events, from what the recorder knows.

gripper_closes, gripper_opens   the command that was executed (`coc_vla.events.gripper`)
contact                         the robot touches something for the first time
lifted                          the first object is 2 cm above where it lay
goal                            the simulator's own predicate of success holds
hand_up, hand_down, hand_across the hand's phases of motion (`coc_vla.events.motion`)
hand_left, hand_right,          where a phase leads, also slightly (11.25 degrees or more); known
hand_forward, hand_back         where `--position_axes` says which way the position's numbers point

The first five are the simulator's; the hand's motion any recording has. Contact, lifting and the
goal are taken when they first happen and last for three frames. The rules that write labels read
gripper commands and motion from the same recording, so for their labels these events test the
wording alone; contact, lifting and the goal they do not see.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool

from benchmarks.demos.recording import (
    CONTACT,
    EXECUTED_ACTION,
    OBJECT_HEIGHT,
    SUCCESS,
    read_signal,
)
from coc_vla.events.gripper import GripperChannel, find_gripper_dim
from coc_vla.events.hand_axes import HandAxes, Side
from coc_vla.events.motion import (
    EpisodeMotion,
    find_position_dims,
    motion_phases,
    movement_leanings,
)
from world_modality.precompute.dataset_columns import ENVIRONMENT_STATE_KEY
from world_modality.source.dataset_episodes import EPISODE_KEY, read_episodes
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import MissingFileError

EventType = Literal[
    "gripper_closes",
    "gripper_opens",
    "contact",
    "lifted",
    "goal",
    "hand_up",
    "hand_down",
    "hand_across",
    "hand_left",
    "hand_right",
    "hand_forward",
    "hand_back",
]
SIMULATOR_EVENTS: tuple[EventType, ...] = (
    "gripper_closes",
    "gripper_opens",
    "contact",
    "lifted",
    "goal",
)
MOTION_EVENTS: tuple[EventType, ...] = ("hand_up", "hand_down", "hand_across")
# In the order in which a slanting motion is said to lead to both.
SIDE_EVENTS: tuple[EventType, ...] = ("hand_left", "hand_right", "hand_forward", "hand_back")
EVENT_TYPES = SIMULATOR_EVENTS + MOTION_EVENTS + SIDE_EVENTS
_SIDE_EVENTS: dict[Side, EventType] = {
    "left": "hand_left",
    "right": "hand_right",
    "forward": "hand_forward",
    "back": "hand_back",
}
# What happens once at most, when it first happens.
ONCE: frozenset[EventType] = frozenset({"contact", "lifted", "goal"})
LIFT_HEIGHT_M = 0.02
MIN_FRAMES = 3
_HEIGHT_NAME = "object_1_z"


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        frame: within the episode.
        kind: what.
    """

    frame: int
    kind: EventType


@dataclass(frozen=True)
class RecordedEvents:
    """The events of a dataset.

    Attributes:
        by_episode: by the episode's id, in order of time.
        known: the types that the recording can tell; the others are never scored.
    """

    by_episode: dict[int, tuple[Event, ...]]
    known: tuple[EventType, ...]

    def kinds(self, episode_id: int) -> list[EventType]:
        """Return what happened in an episode, in order."""
        return [event.kind for event in self.by_episode[episode_id]]


@dataclass(frozen=True)
class EventKeys:
    """Which columns hold what, where a dataset does not say so itself.

    Attributes:
        state: the column with the hand's position.
        action: the column of actions, for datasets without recorded executed actions.
        gripper_dim: of the action, `none` for a robot without a gripper, None to find it by name.
        gripper_commands: the one that opens it and the one that closes it.
        position_dims: of the state, None to find them by name.
        axes: which way the position's numbers point, None where nobody knows.
        episode: the column that numbers the episodes, as the labels do.
    """

    state: str = "observation.state"
    action: str = "action"
    gripper_dim: int | Literal["none"] | None = None
    gripper_commands: tuple[float, float] = (-1.0, 1.0)
    position_dims: tuple[int, int, int] | None = None
    axes: HandAxes | None = None
    episode: str = EPISODE_KEY


def recorded_events(source: LeRobotSource, keys: EventKeys) -> RecordedEvents:
    """Find the events of all episodes.

    A dataset without the recorder's signals has no contact and no goal, one without the objects'
    heights no lifting; then these types are not among those known.

    Raises:
        MissingKeyError, InvalidInputError: the columns of state and action are not there, or do
            not say which dimension is what, or the gripper's commands lie elsewhere.
    """
    for key in (keys.state, keys.action):
        source.require(key)
    columns = _columns(source, keys)
    episodes = read_episodes(source, keys.episode)
    actions = _signal(source, EXECUTED_ACTION)
    gripper = GripperChannel(
        find_gripper_dim(source.features[keys.action], keys.action, keys.gripper_dim),
        *keys.gripper_commands,
    )
    dims = find_position_dims(source.features[keys.state], keys.state, keys.position_dims)
    levels = {
        "contact": _level(_signal(source, CONTACT)),
        "goal": _level(_signal(source, SUCCESS)),
        "lifted": _object_height(source, columns),
    }
    by_episode = {}
    for episode, start, end in zip(episodes.ids, episodes.starts, episodes.ends, strict=True):
        chosen = slice(int(start), int(end))
        motion = EpisodeMotion(
            positions=columns[keys.state][chosen][:, list(dims)],
            gripper_events=gripper.events(
                (columns[keys.action] if actions is None else actions)[chosen],
                f"column {keys.action} of {source.name}, frames {start}:{end},",
            ),
            fps=source.fps,
            axes=keys.axes,
        )
        own = {name: level[chosen] for name, level in levels.items() if level is not None}
        by_episode[int(episode)] = episode_events(motion, own)
    unknown = {name for name, level in levels.items() if level is None}
    if gripper.dim is None:
        unknown |= {"gripper_closes", "gripper_opens"}
    if keys.axes is None:
        unknown |= set(SIDE_EVENTS)
    return RecordedEvents(by_episode, tuple(k for k in EVENT_TYPES if k not in unknown))


def episode_events(motion: EpisodeMotion, levels: dict[str, np.ndarray]) -> tuple[Event, ...]:
    """Return one episode's events in order of time; at one frame in the order of `EVENT_TYPES`.

    Args:
        motion: of the hand and the gripper.
        levels: `contact` and `goal`, above 0.5 where they hold, and `lifted`, the height of the
            first object in metres; each [T] and each may be missing.
    """
    events = [
        Event(event.frame, "gripper_closes" if event.kind == "close" else "gripper_opens")
        for event in motion.gripper_events
    ]
    for kind in sorted(ONCE & set(levels)):
        limit = float(levels[kind][0]) + LIFT_HEIGHT_M if kind == "lifted" else 0.5
        frame = _first_held(levels[kind] > limit)
        if frame is not None:
            events.append(Event(frame, kind))
    # A movement that goes on while the fingers close is one movement.
    without_gripper = replace(motion, gripper_events=())
    moves: dict[str, EventType] = {"up": "hand_up", "down": "hand_down", "across": "hand_across"}
    for phase in motion_phases(without_gripper):
        if phase.direction in moves:
            events.append(Event(phase.start, moves[phase.direction]))
            events += [
                Event(phase.start, _SIDE_EVENTS[leaning.side])
                for leaning in movement_leanings(phase.direction, phase.shift)
            ]
    return tuple(sorted(events, key=lambda event: (event.frame, EVENT_TYPES.index(event.kind))))


def _first_held(holds: Bool[np.ndarray, " T"]) -> int | None:
    """Return the first frame from which it holds for three frames, or to the episode's end."""
    for frame in np.flatnonzero(holds).tolist():
        if holds[frame : frame + MIN_FRAMES].all():
            return int(frame)
    return None


def _columns(source: LeRobotSource, keys: EventKeys) -> dict[str, np.ndarray]:
    names = [keys.state, keys.action]
    if ENVIRONMENT_STATE_KEY in source.features:
        names.append(ENVIRONMENT_STATE_KEY)
    blocks = list(source.columns(names))
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in names}
    return {name: values.reshape(len(values), -1) for name, values in whole.items()}


def _signal(source: LeRobotSource, name: str) -> np.ndarray | None:
    try:
        return read_signal(source.root, name, source.num_frames)
    except MissingFileError:
        return None


def _level(signal: np.ndarray | None) -> np.ndarray | None:
    return None if signal is None else signal[:, 0]


def _object_height(source: LeRobotSource, columns: dict[str, np.ndarray]) -> np.ndarray | None:
    signal = _signal(source, OBJECT_HEIGHT)
    if signal is not None:
        return signal[:, 0]
    values = columns.get(ENVIRONMENT_STATE_KEY)
    if values is None:
        return None
    names = source.dim_names(ENVIRONMENT_STATE_KEY, values.shape[1]) or []
    if _HEIGHT_NAME not in names:
        return None
    heights: np.ndarray = values[:, names.index(_HEIGHT_NAME)]
    return heights


@dataclass(frozen=True, kw_only=True)
class EventFlags:
    """Where a recording's hand and gripper stand; give what coc_generation was given."""

    state_key: str = "observation.state"
    """Column with the hand's position."""
    action_key: str = "action"
    """Column of actions."""
    gripper_dim: int | Literal["none"] | None = None
    """Dimension of the action that commands the gripper; found by its name where it has one. none
    for a robot without a gripper."""
    gripper_commands: tuple[float, float] = (-1.0, 1.0)
    """The command that opens the gripper and the one that closes it."""
    position_dims: tuple[int, int, int] | None = None
    """Dimensions of the state that are the hand's position; found by their names."""
    position_axes: tuple[Side, Side] | None = None
    """Which way the first two of them grow, as the robot sees it, as for coc_generation; without
    it left, right, forward and back are not scored."""

    @property
    def event_keys(self) -> EventKeys:
        """Which columns hold what."""
        return EventKeys(
            state=self.state_key,
            action=self.action_key,
            gripper_dim=self.gripper_dim,
            gripper_commands=self.gripper_commands,
            position_dims=self.position_dims,
            axes=HandAxes.of(self.position_axes),
        )
