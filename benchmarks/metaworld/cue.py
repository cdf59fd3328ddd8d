"""The cue: which goal is wanted is shown in an episode's first frames only.

It makes reach-v3 (bring the hand within 5 cm of a goal) a task of memory. Nothing that a policy
reads later tells the goal: neither image, nor robot state, nor instruction. The demonstrator goes
to a turning point that is common to all goals, and is on the way there for longer than the cue
lasts and two action chunks reach, so that its pose is no memory of the goal either.

From the turning point it moves sideways rather than ahead. A policy without memory learns the mean
of both sides there: to stay in the middle. But the demonstrations lie side by side without a gap,
those on the left all going left, so that the least deviation grows: it falls to one side, and
succeeds half of the time.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from benchmarks.metaworld.scene_change import SceneChange
from benchmarks.rendering import Marker
from benchmarks.suite import Expert

Goals = Literal["side", "anywhere"]

DEFAULT_CUE_FRAMES = 8
CHUNK_FRAMES = 8
"""Actions of a chunk that the common way is longer than, twice."""

SIDE_GOAL_M = (0.15, 0.80, 0.16)
"""The goal on the right (x > 0); the one on the left is its mirror image."""
SIDE_JITTER_M = (0.01, 0.01, 0.01)
"""Largest displacement of a goal on each axis: far less than the 5 cm of success."""
ANYWHERE_LOW_M = (-0.1, 0.8, 0.05)
ANYWHERE_HIGH_M = (0.1, 0.9, 0.3)
"""Where reach-v3 has its goals."""

TURNING_POINT_M = (0.0, 0.75, 0.2)
_START_Y_M = 0.6
_M_PER_ACTION = 0.01

_SIDE_MARKER_M = (0.25, 0.92, 0.12)
_MARKER_RADIUS_M = 0.12
_MARKER_COLOUR = (0.0, 0.9, 0.1, 1.0)
_STEADINESS = 10.0
_STEPS_TO_GOAL = 20
_HAND_OVER_FINGERS_M = (0.0, 0.0, 0.045)
"""reach-v3 measures from the fingers' middle, which lies below what it calls the hand."""


@dataclass(frozen=True)
class Cue(SceneChange):
    """A sphere of 24 cm, seen in the first frames only, tells which goal is wanted.

    Attributes:
        goals: `side` has one goal on the left and one on the right, and the sphere is on the side
            of the wanted one; `anywhere` draws a goal from reach-v3's range, and the sphere is
            there.
        frames: in how many frames it is seen.
    """

    name: ClassVar[str] = "cue"
    tasks: ClassVar[tuple[str, ...]] = ("reach-v3",)
    hidden_sites: ClassVar[tuple[str, ...]] = ("goal",)

    goals: Goals
    frames: int = DEFAULT_CUE_FRAMES

    @property
    def common_frames(self) -> int:
        """Frames before any demonstration turns to its goal."""
        return self.frames + 2 * CHUNK_FRAMES

    @property
    def min_steps(self) -> int:
        """Steps to the turning point, and a few to the goal."""
        return self.common_frames + _STEPS_TO_GOAL

    def goal(self, layout_seed: int) -> np.ndarray:
        """Return the wanted goal's position [3] in m, drawn with the layout's seed."""
        rng = np.random.default_rng([layout_seed, zlib.crc32(b"cue")])
        if self.goals == "anywhere":
            return rng.uniform(ANYWHERE_LOW_M, ANYWHERE_HIGH_M)
        side = rng.choice((-1, 1))
        return np.array(SIDE_GOAL_M) * (side, 1, 1) + rng.uniform(-1, 1, 3) * SIDE_JITTER_M

    def label(self, layout_seed: int) -> int:
        """Number the side (0 left, 1 right), or the octant of the range that the goal is in."""
        goal = self.goal(layout_seed)
        if self.goals == "side":
            return int(goal[0] > 0)
        middle = np.mean((ANYWHERE_LOW_M, ANYWHERE_HIGH_M), axis=0)
        return int((goal > middle) @ (1, 2, 4))

    def markers(self, frame: int, layout_seed: int) -> Sequence[Marker]:
        """Return the sphere in the first frames, and nothing after them."""
        if frame >= self.frames:
            return ()
        goal = self.goal(layout_seed)
        place = goal
        if self.goals == "side":
            place = np.array(_SIDE_MARKER_M) * (np.sign(goal[0]), 1, 1)
        x, y, z = place.tolist()
        return (Marker("sphere", (x, y, z), (_MARKER_RADIUS_M,) * 3, _MARKER_COLOUR),)

    def expert(self, observe: Callable[[], np.ndarray], layout_seed: int) -> Expert:
        """Return a demonstrator that goes to the turning point first."""
        return CueExpert(self, self.goal(layout_seed), observe)

    def evaluated_layout(self, layout_seed: int, episode: int) -> int:
        """Return the next layout with the episode's side, of which each gets every other episode.

        A policy without memory falls to one side always: by chance, one side would have more.
        """
        if self.goals == "anywhere":
            return layout_seed
        while self.label(layout_seed) != episode % 2:
            layout_seed = (layout_seed + 1) % 2**63
        return layout_seed

    def note(self) -> str:
        """Say what a policy without memory reaches."""
        first = f"the goal is shown in the first {self.frames} frames only (cue {self.goals})"
        if self.goals == "side":
            return f"{first}; a policy that does not remember it has a chance of 50 %"
        return f"{first}; a policy that does not remember it reaches about a quarter of the goals"


class CueExpert:
    """Goes straight ahead to the turning point, slowly enough, and from there to the goal."""

    def __init__(self, cue: Cue, goal: np.ndarray, observe: Callable[[], np.ndarray]) -> None:
        self._cue, self._target, self._observe = cue, goal + _HAND_OVER_FINGERS_M, observe
        self._frame = 0
        self._has_turned = False
        # The hand lags by some frames, which are the margin.
        way = TURNING_POINT_M[1] - _START_Y_M
        self._speed = min(1.0, way / cue.common_frames / _M_PER_ACTION)

    def __call__(self) -> np.ndarray:
        """Return the action for the present state."""
        hand = self._observe()[:3]
        self._has_turned |= self._frame >= self._cue.common_frames and hand[1] >= TURNING_POINT_M[1]
        self._frame += 1
        if self._has_turned:
            move = _STEADINESS * (self._target - hand)
            move /= max(1.0, float(np.linalg.norm(move)))
        else:
            move = _STEADINESS * (TURNING_POINT_M - hand)
            move[1] = self._speed  # it does not slow down at the turning point
        return np.append(move, 0.0)
