"""How a hand moves in an episode: its speed, phases of one direction, the sides they lead to."""

from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
from jaxtyping import Float

from world_modality.system.errors import InvalidInputError

Direction = Literal["still", "up", "down", "across"]
# Slower than this share of the episode's brisk speed (95th percentile) is standing still.
STILL_SHARE = 0.15
# Steeper than 45 degrees is up or down.
STEEP = float(np.sqrt(0.5))
# A phase shorter than this share of the episode belongs to its neighbours.
MIN_PHASE_SHARE = 0.08
# Speeds are averaged over this time.
SMOOTHING_S = 0.1
Side = Literal["left", "right", "forward", "back"]
# To the right, forward and up.
Shift = tuple[float, float, float]
NO_SHIFT: Shift = (0.0, 0.0, 0.0)
# (to the right, forward) of one unit towards each side.
_WAYS: dict[Side, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "forward": (0.0, 1.0),
    "back": (0.0, -1.0),
}
# Where a negative and a positive distance lead, to the right and forward.
_OPPOSITES: tuple[tuple[Side, Side], ...] = (("left", "right"), ("back", "forward"))
# A level motion has one of the compass's sixteen ways, each 22.5 degrees wide: one side, one side
# and slightly another, or two sides alike.
SIDE_SHARE = float(np.sin(np.pi / 16))
SLIGHT_SHARE = float(np.sin(3 * np.pi / 16))


@dataclass(frozen=True)
class Leaning:
    """A side that a movement leads to, slightly where more of the movement goes elsewhere."""

    side: Side
    is_slight: bool


@dataclass(frozen=True)
class HandAxes:
    """Towards which side the first and the second number of the hand's position grow.

    The sides are those that the robot sees.
    """

    first: Side
    second: Side

    def __post_init__(self) -> None:
        (a, b), (c, d) = _WAYS[self.first], _WAYS[self.second]
        if a * c + b * d != 0:
            raise InvalidInputError(
                f"--position_axes {self.first} {self.second}: one of them has to be left or right, "
                "the other forward or back, as the robot sees it; right forward in MetaWorld, "
                "forward left in LIBERO"
            )

    def shift(self, moved: Float[np.ndarray, "3"]) -> Shift:
        """Return how far to the right, forward and up a difference of positions leads."""
        first, second = _WAYS[self.first], _WAYS[self.second]
        x, y, up = (float(part) for part in moved)
        return (x * first[0] + y * second[0], x * first[1] + y * second[1], up)


@dataclass(frozen=True)
class GripperEvent:
    """The frame at which the gripper is told to close or to open."""

    frame: int
    kind: Literal["close", "open"]


@dataclass(frozen=True)
class EpisodeMotion:
    """The hand's path in one episode; the third number of a position is its height.

    The axes are None where nobody knows which way the first two numbers point.
    """

    positions: Float[np.ndarray, "_T 3"] = field(repr=False)
    gripper_events: tuple[GripperEvent, ...]
    fps: float
    axes: HandAxes | None = None

    @property
    def brisk_speed(self) -> float:
        """The speed that the hand exceeds in 5 % of the frames."""
        return float(np.percentile(hand_speed(self.positions, self.fps), 95))

    def shift(self, start: int, end: int) -> Shift:
        """Return how far the hand gets in frames `[start, end)`; nothing without known axes."""
        if self.axes is None:
            return NO_SHIFT
        last = min(end, len(self.positions) - 1)
        return self.axes.shift(self.positions[last] - self.positions[start])


@dataclass(frozen=True)
class MotionPhase:
    """A stretch of frames `[start, end)` in which the hand moves one way."""

    direction: Direction
    start: int
    end: int
    shift: Shift = NO_SHIFT

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.end - self.start


def motion_phases(motion: EpisodeMotion) -> list[MotionPhase]:
    """Split an episode where the hand changes its way and where the gripper acts.

    Each frame is `still`, `up`, `down` or `across` by its smoothed velocity; short stretches join
    the neighbour that they resemble in time; none spans a gripper event.
    """
    frames = _directions(motion)
    cuts = sorted({0, *(event.frame for event in motion.gripper_events), len(frames)})
    shortest = max(round(MIN_PHASE_SHARE * len(frames)), 3)
    phases: list[MotionPhase] = []
    for start, end in pairwise(cuts):
        phases += _runs(frames[start:end], start, shortest)
    return [replace(phase, shift=motion.shift(phase.start, phase.end)) for phase in phases]


def movement_leanings(direction: Direction, shift: Shift) -> tuple[Leaning, ...]:
    """Return the sides that a movement leads to: none where it is upright, two where it slants.

    What a level movement rises or sinks does not count.
    """
    right, forward, up = shift
    length = float(np.linalg.norm((right, forward, 0.0 if direction == "across" else up)))
    if direction == "still" or length == 0:
        return ()
    return tuple(
        Leaning(sides[distance > 0], abs(distance) < SLIGHT_SHARE * length)
        for distance, sides in zip((right, forward), _OPPOSITES, strict=True)
        if abs(distance) >= SIDE_SHARE * length
    )


def hand_speed(positions: Float[np.ndarray, "T 3"], fps: float) -> Float[np.ndarray, " T"]:
    """Return the smoothed speed at each frame, in the positions' unit per second."""
    if len(positions) < 2:
        return np.zeros(len(positions))
    velocity = np.gradient(positions.astype(np.float64), axis=0) * fps
    speed: np.ndarray = smooth(np.linalg.norm(velocity, axis=1), fps)
    return speed


def smooth(values: Float[np.ndarray, " T"], fps: float) -> Float[np.ndarray, " T"]:
    """Average over a centred window of `SMOOTHING_S`, shorter at the ends."""
    window = max(2 * round(SMOOTHING_S * fps / 2) + 1, 1)
    kernel = np.ones(min(window, len(values)))
    averaged: np.ndarray = np.convolve(values, kernel, "same") / np.convolve(
        np.ones(len(values)), kernel, "same"
    )
    return averaged


def _directions(motion: EpisodeMotion) -> list[Direction]:
    num_frames = len(motion.positions)
    if num_frames < 2:
        return ["still"] * num_frames
    velocity = np.gradient(motion.positions.astype(np.float64), axis=0) * motion.fps
    smoothed = np.stack([smooth(velocity[:, dim], motion.fps) for dim in range(3)], axis=1)
    speed = np.linalg.norm(smoothed, axis=1)
    limit = STILL_SHARE * motion.brisk_speed

    def direction(rising: float, fast: float) -> Direction:
        if fast <= limit:
            return "still"
        if abs(rising) < STEEP * fast:
            return "across"
        return "up" if rising > 0 else "down"

    return [
        direction(*frame) for frame in zip(smoothed[:, 2].tolist(), speed.tolist(), strict=True)
    ]


def _runs(frames: list[Direction], offset: int, shortest: int) -> list[MotionPhase]:
    """Return the stretches of one direction; the shortest join a neighbour until all are long."""
    runs = _joined([(direction, 1) for direction in frames])
    while len(runs) > 1 and min(length for _, length in runs) < shortest:
        position = min(range(len(runs)), key=lambda i: runs[i][1])
        neighbours = [i for i in (position - 1, position + 1) if 0 <= i < len(runs)]
        longer = max(neighbours, key=lambda i: runs[i][1])
        runs[longer] = (runs[longer][0], runs[longer][1] + runs[position][1])
        del runs[position]
        runs = _joined(runs)
    ends = offset + np.cumsum([length for _, length in runs])
    return [
        MotionPhase(direction, int(end) - length, int(end))
        for (direction, length), end in zip(runs, ends, strict=True)
    ]


def _joined(runs: list[tuple[Direction, int]]) -> list[tuple[Direction, int]]:
    return [
        (direction, sum(length for _, length in same))
        for direction, same in groupby(runs, key=lambda run: run[0])
    ]
