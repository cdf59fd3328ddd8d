"""What happened in a recorded episode, as an ordered list of events, from what the recorder knows.

gripper_closes, gripper_opens   the command that was executed
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
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool

from benchmarks.demos.recording import (
    CONTACT,
    EXECUTED_ACTION,
    OBJECT_HEIGHT,
    SUCCESS,
    read_signal,
)
from coc_vla.events.motion import EpisodeMotion, Side, motion_phases, movement_leanings
from coc_vla.events.motion_columns import MotionColumns, MotionFlags
from world_modality.precompute.dataset_columns import ENVIRONMENT_STATE_KEY
from world_modality.source.dataset_episodes import EPISODE_KEY, read_episodes
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import MissingFileError

SimulatorEvent = Literal["gripper_closes", "gripper_opens", "contact", "lifted", "goal"]
MotionEvent = Literal["hand_up", "hand_down", "hand_across"]
SideEvent = Literal["hand_left", "hand_right", "hand_forward", "hand_back"]
EventType = SimulatorEvent | MotionEvent | SideEvent
SIMULATOR_EVENTS: tuple[EventType, ...] = get_args(SimulatorEvent)
MOTION_EVENTS: tuple[EventType, ...] = get_args(MotionEvent)
# In the order in which a slanting motion is said to lead to both.
SIDE_EVENTS: tuple[EventType, ...] = get_args(SideEvent)
EVENT_TYPES = SIMULATOR_EVENTS + MOTION_EVENTS + SIDE_EVENTS
_MOVES: dict[str, EventType] = {"up": "hand_up", "down": "hand_down", "across": "hand_across"}
_SIDES: dict[Side, EventType] = {
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
    """One thing that happened, with its frame within the episode."""

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


def recorded_events(
    source: LeRobotSource, flags: MotionFlags, episode_key: str = EPISODE_KEY
) -> RecordedEvents:
    """Find the events of all episodes, numbered by a column as the labels are.

    A dataset without the recorder's signals has no contact and no goal, one without the objects'
    heights no lifting; then these types are not among those known. Of an action that was executed
    otherwise than it was recorded, the executed one is read.

    Raises:
        MissingKeyError, InvalidInputError: the columns of state and action are not there, or do
            not say which dimension is what, or the gripper's commands lie elsewhere.
    """
    hand = MotionColumns.of(source, flags)
    columns = _columns(source, hand)
    episodes = read_episodes(source, episode_key)
    executed = _signal(source, EXECUTED_ACTION)
    actions = columns[hand.action_key] if executed is None else executed
    found = {
        "contact": _first_number(_signal(source, CONTACT)),
        "goal": _first_number(_signal(source, SUCCESS)),
        "lifted": _object_height(source, columns),
    }
    levels = {kind: level for kind, level in found.items() if level is not None}
    by_episode = {}
    for episode, start, end in zip(episodes.ids, episodes.starts, episodes.ends, strict=True):
        chosen = slice(int(start), int(end))
        motion = hand.motion(source, columns[hand.state_key][chosen], actions[chosen], int(start))
        own = {kind: level[chosen] for kind, level in levels.items()}
        by_episode[int(episode)] = episode_events(motion, own)
    unknown = set(found) - set(levels)
    if hand.gripper.dim is None:
        unknown |= {"gripper_closes", "gripper_opens"}
    if hand.axes is None:
        unknown |= set(SIDE_EVENTS)
    return RecordedEvents(by_episode, tuple(k for k in EVENT_TYPES if k not in unknown))


def episode_events(motion: EpisodeMotion, levels: dict[str, np.ndarray]) -> tuple[Event, ...]:
    """Return one episode's events in order of time; at one frame in the order of `EVENT_TYPES`.

    The levels are `contact` and `goal`, above 0.5 where they hold, and `lifted`, the height of the
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
    for phase in motion_phases(replace(motion, gripper_events=())):
        if phase.direction != "still":
            events.append(Event(phase.start, _MOVES[phase.direction]))
        events += [
            Event(phase.start, _SIDES[leaning.side])
            for leaning in movement_leanings(phase.direction, phase.shift)
        ]
    return tuple(sorted(events, key=lambda event: (event.frame, EVENT_TYPES.index(event.kind))))


def _first_held(holds: Bool[np.ndarray, " T"]) -> int | None:
    """Return the first frame from which it holds for three frames, or to the episode's end."""
    frames = np.flatnonzero(holds).tolist()
    return next((frame for frame in frames if holds[frame : frame + MIN_FRAMES].all()), None)


def _columns(source: LeRobotSource, hand: MotionColumns) -> dict[str, np.ndarray]:
    names = [hand.state_key, hand.action_key]
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


def _first_number(signal: np.ndarray | None) -> np.ndarray | None:
    return None if signal is None else signal[:, 0]


def _object_height(source: LeRobotSource, columns: dict[str, np.ndarray]) -> np.ndarray | None:
    signal = _signal(source, OBJECT_HEIGHT)
    values = columns.get(ENVIRONMENT_STATE_KEY)
    if signal is not None or values is None:
        return _first_number(signal)
    names = source.dim_names(ENVIRONMENT_STATE_KEY, values.shape[1]) or []
    heights: np.ndarray | None = (
        values[:, names.index(_HEIGHT_NAME)] if _HEIGHT_NAME in names else None
    )
    return heights
