"""A script that opens a drawer or turns a stove on, from the true state of the simulator.

As the pick-and-place script it is a feedback law: a handle that slips out of the hand is taken
again. A drawer's handle is approached almost level, so that both fingers find room between it and
the drawer, and pulled; a knob is held from above and turned.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from benchmarks.libero.pose_control import action_towards
from benchmarks.libero.scene import MovingPart, Scene

_DRAWER_TILT_RAD = 1.25
"""Between the hand's direction and straight down."""
_KNOB_DEPTH_M = 0.021
"""From the knob's top down to the fingertips."""
_BEFORE_M = 0.09
_ABOVE_M = 0.06
_OVER_M, _OVER_RAD = 0.02, 0.2
_NEAR_M, _NEAR_RAD = 0.012, 0.12
_OFF_LINE_M = 0.01
_REACHED_M = 0.006
_LOST_M = 0.05
_MAX_ENTER_STEPS = 40
_NUM_CLOSING_STEPS = 10
_PULL_M = 0.04
_TURN_RAD = 0.7
"""How far the goal of the hand is ahead of it."""


class Phase(Enum):
    """What the script is about to do."""

    OVER = "go to a point above"
    NEAR = "go to a point before the handle"
    ENTER = "put the fingers around the handle"
    CLOSE = "close"
    MOVE = "pull or turn"


@dataclass(frozen=True)
class _Grip:
    """Where the hand is to be: between the fingertips; the way it points and the fingers move."""

    point: Float64[np.ndarray, "3"]
    approach: Float64[np.ndarray, "3"]
    closing_axis: Float64[np.ndarray, "3"]


class FixtureExpert:
    """Plays one episode of a task whose goal is an open drawer or a stove that is turned on."""

    def __init__(self, scene: Scene, name: str) -> None:
        """Take a simulator that has just been reset, and the drawer or stove."""
        self.phase = Phase.OVER
        self._scene, self._name = scene, name
        self._travel_height = scene.eef_position()[2]
        self._num_steps_in_phase = 0

    def act(self) -> Float32[np.ndarray, "7"]:
        """Return the action for the present state, in [-1, 1]."""
        part = self._scene.moving_part(self._name)
        grip = self._knob(part) if part.is_hinge else self._drawer(part)
        hand = self._scene.eef_position()
        turn = self._turn(grip)
        goal = self._goal(part, grip, hand, float(np.linalg.norm(turn)))
        self._num_steps_in_phase += 1
        is_closed = self.phase in (Phase.CLOSE, Phase.MOVE)
        return action_towards(goal - hand, turn, is_closed=is_closed)

    def _goal(
        self,
        part: MovingPart,
        grip: _Grip,
        hand: Float64[np.ndarray, "3"],
        turn_rad: float,
    ) -> Float64[np.ndarray, "3"]:
        before = grip.point - _BEFORE_M * grip.approach
        match self.phase:
            case Phase.OVER:
                height = max(before[2] + _ABOVE_M, self._travel_height)
                if np.linalg.norm((before - hand)[:2]) < _OVER_M and turn_rad < _OVER_RAD:
                    self._enter(Phase.NEAR)
                return np.array([*before[:2], height])
            case Phase.NEAR:
                if np.linalg.norm(before - hand) < _NEAR_M and turn_rad < _NEAR_RAD:
                    self._enter(Phase.ENTER)
                return before
            case Phase.ENTER:
                depth = float((hand - grip.point) @ grip.approach)
                is_off = np.linalg.norm(hand - grip.point - depth * grip.approach) > _OFF_LINE_M
                if depth > -_REACHED_M or self._num_steps_in_phase > _MAX_ENTER_STEPS:
                    self._enter(Phase.CLOSE)
                return grip.point + (depth * grip.approach if is_off else 0)
            case Phase.CLOSE:
                if self._num_steps_in_phase >= _NUM_CLOSING_STEPS:
                    self._enter(Phase.MOVE)
                return hand
            case Phase.MOVE:
                if np.linalg.norm(hand - grip.point) > _LOST_M:
                    self._enter(Phase.OVER)
                return grip.point if part.is_hinge else self._pulled(part, grip, hand)

    def _pulled(
        self, part: MovingPart, grip: _Grip, hand: Float64[np.ndarray, "3"]
    ) -> Float64[np.ndarray, "3"]:
        """Return a point ahead of the hand, on the line that the handle moves along."""
        along = ((hand - grip.point) @ part.opening_axis) * part.opening_axis
        return grip.point + along + _PULL_M * part.opening_axis

    def _drawer(self, part: MovingPart) -> _Grip:
        """Return how its handle, the part that stands out most, is held."""
        out, up = part.opening_axis, np.array([0.0, 0.0, 1.0])
        sine, cosine = np.sin(_DRAWER_TILT_RAD), np.cos(_DRAWER_TILT_RAD)
        handle = part.centres[np.argmax(part.centres @ out)]
        return _Grip(handle, -sine * out - cosine * up, cosine * out - sine * up)

    def _knob(self, part: MovingPart) -> _Grip:
        """Return how it is held across its bar, or ahead of that while it is turned."""
        top = (part.centres + part.half_extents)[:, 2].max()
        ahead = _TURN_RAD if self.phase is Phase.MOVE else 0.0
        across = Rotation.from_rotvec(ahead * part.opening_axis).apply(part.across)
        point = np.array([*part.anchor[:2], top - _KNOB_DEPTH_M])
        return _Grip(point, np.array([0.0, 0.0, -1.0]), across)

    def _turn(self, grip: _Grip) -> Float64[np.ndarray, "3"]:
        """Return the rotation vector to the grip; the fingers may change sides."""
        now = Rotation.from_quat(self._scene.eef_quaternion())
        turns = []
        for axis in (grip.closing_axis, -grip.closing_axis):
            columns = [np.cross(axis, grip.approach), axis, grip.approach]
            turns.append((Rotation.from_matrix(np.stack(columns, axis=1)) * now.inv()).as_rotvec())
        return min(turns, key=lambda turn: float(np.linalg.norm(turn)))

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._num_steps_in_phase = 0
