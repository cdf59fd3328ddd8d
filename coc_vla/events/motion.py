"""What a recording says about the hand's motion: phases of one direction, and gripper events."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from coc_vla.events.gripper import GripperEvent, described_names
from coc_vla.events.hand_axes import NO_SHIFT, HandAxes, Leaning, Shift, leanings_of
from coc_vla.events.keyframes import hand_speed, smooth
from world_modality.source.lerobot_format import dimension_names
from world_modality.system.errors import InvalidInputError

Direction = Literal["still", "up", "down", "across"]
# Slower than this share of the episode's brisk speed (95th percentile) is standing still.
STILL_SHARE = 0.15
# Steeper than 45 degrees is up or down.
STEEP = float(np.sqrt(0.5))
# A phase shorter than this share of the episode belongs to its neighbours.
MIN_PHASE_SHARE = 0.08
# What x, y and z are of where they are no position; the beginnings of words.
_NO_POSITION = re.compile(
    r"rot|orient|ang|axis|quat|euler|vel|speed|dot|acc|joint|force|torque|wrench|delta|imu|gyro"
)


@dataclass(frozen=True)
class EpisodeMotion:
    """The hand's path in one episode.

    Attributes:
        positions: of the hand; the third number is its height.
        gripper_events: when the gripper closes and opens.
        fps: frames per second.
        axes: which way the first two numbers point, None where nobody knows.
    """

    positions: Float[np.ndarray, "_T 3"] = field(repr=False)
    gripper_events: tuple[GripperEvent, ...]
    fps: float
    axes: HandAxes | None = None

    @property
    def speed(self) -> Float[np.ndarray, " _T"]:
        """Smoothed speed at each frame, in the positions' unit per second."""
        return hand_speed(self.positions, self.fps)

    @property
    def brisk_speed(self) -> float:
        """The speed that the hand exceeds in 5 % of the frames."""
        return float(np.percentile(self.speed, 95))

    def shift(self, start: int, end: int) -> Shift:
        """Return how far the hand gets in frames `[start, end)`; nothing without known axes."""
        if self.axes is None:
            return NO_SHIFT
        last = min(end, len(self.positions) - 1)
        return self.axes.shift(self.positions[last] - self.positions[start])


@dataclass(frozen=True)
class MotionPhase:
    """A stretch of frames `[start, end)` in which the hand moves one way.

    Attributes:
        direction: that way.
        start: its first frame.
        end: one past its last frame.
        shift: as `EpisodeMotion.shift` returns it.
    """

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
    """Return the sides that a movement leads to; what a level one rises or sinks does not count."""
    right, forward, up = shift
    if direction == "still":
        return ()
    return leanings_of((right, forward, 0.0 if direction == "across" else up))


def find_position_dims(
    feature: Mapping[str, Any], key: str, requested: Sequence[int] | None
) -> tuple[int, int, int]:
    """Find the hand's position in a state by the dimensions' names, or check those asked for.

    `x`, `hand_y` and `ee.z` name positions; joint angles, rotations and velocities are none, and
    what has no names may be anything.

    Args:
        feature: the column's entry in `meta/info.json`, with `shape` and `names`.
        key: the column.
        requested: `--position_dims`, the third of which is the height.

    Raises:
        InvalidInputError: those asked for do not exist; or none are, and the names do not tell
            exactly one position.
    """
    num_dims = math.prod(feature["shape"])
    if requested is not None:
        if len(set(requested)) != 3 or not all(0 <= dim < num_dims for dim in requested):
            raise InvalidInputError(
                f"--position_dims {' '.join(map(str, requested))}: expected three different "
                f"dimensions of column {key}, 0 to {num_dims - 1}"
            )
        return (requested[0], requested[1], requested[2])
    found = _named_positions(dimension_names(feature.get("names"), num_dims) or [])
    if len(found) != 1:
        raise InvalidInputError(
            f"which dimensions of column {key} are the hand's position? Expected one x, y and z "
            f"among their names, found {len(found)} in {described_names(feature)}; name them with "
            "--position_dims, height last, as in --position_dims 0 1 2 (joint angles are no "
            "position), or another column with --state_key"
        )
    return found[0]


def _named_positions(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return the dimensions of each x, y and z whose names are alike otherwise."""
    groups: dict[tuple[str, ...], list[tuple[str, int]]] = defaultdict(list)
    for dim, name in enumerate(names):
        words = re.findall(r"[^\W_]+", name.lower())
        axes = [word for word in words if word in ("x", "y", "z", "w")]
        others = tuple(word for word in words if word not in axes)
        if len(axes) == 1 and not any(map(_NO_POSITION.match, others)):
            groups[others].append((axes[0], dim))
    found = []
    for group in groups.values():
        dims = dict(group)
        # With a w it is a quaternion; twice the same name is not clear.
        if sorted(axis for axis, _ in group) == ["x", "y", "z"]:
            found.append((dims["x"], dims["y"], dims["z"]))
    return found


def _directions(motion: EpisodeMotion) -> list[Direction]:
    num_frames = len(motion.positions)
    if num_frames < 2:
        return ["still"] * num_frames
    velocity = np.gradient(motion.positions.astype(np.float64), axis=0) * motion.fps
    smoothed = np.stack([smooth(velocity[:, dim], motion.fps) for dim in range(3)], axis=1)
    speed = np.linalg.norm(smoothed, axis=1)
    limit = STILL_SHARE * motion.brisk_speed
    found: list[Direction] = []
    for rising, fast in zip(smoothed[:, 2].tolist(), speed.tolist(), strict=True):
        if fast <= limit:
            found.append("still")
        elif abs(rising) < STEEP * fast:
            found.append("across")
        else:
            found.append("up" if rising > 0 else "down")
    return found


def _runs(frames: list[Direction], offset: int, shortest: int) -> list[MotionPhase]:
    """Return the stretches of one direction; the shortest join a neighbour until all are long."""
    runs: list[tuple[Direction, int]] = []
    for direction in frames:
        if runs and runs[-1][0] == direction:
            runs[-1] = (direction, runs[-1][1] + 1)
        else:
            runs.append((direction, 1))
    while len(runs) > 1 and min(length for _, length in runs) < shortest:
        position = min(range(len(runs)), key=lambda i: runs[i][1])
        neighbours = [i for i in (position - 1, position + 1) if 0 <= i < len(runs)]
        longer = max(neighbours, key=lambda i: runs[i][1])
        runs[longer] = (runs[longer][0], runs[longer][1] + runs[position][1])
        del runs[position]
        runs = _joined(runs)
    phases, start = [], offset
    for direction, length in runs:
        phases.append(MotionPhase(direction, start, start + length))
        start += length
    return phases


def _joined(runs: list[tuple[Direction, int]]) -> list[tuple[Direction, int]]:
    joined: list[tuple[Direction, int]] = []
    for direction, length in runs:
        if joined and joined[-1][0] == direction:
            joined[-1] = (direction, joined[-1][1] + length)
        else:
            joined.append((direction, length))
    return joined
