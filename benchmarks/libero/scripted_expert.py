"""A script that picks up one object and places it, from the true state of the simulator.

It is a feedback law: at every step the action follows from the present state and the phase. An
object that slips is approached again, so that noise on the actions is made good.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from jaxtyping import Float32, Float64
from scipy.spatial.transform import Rotation

from benchmarks.libero.grasps import (
    TIP_LENGTH_M,
    SceneShapes,
    best_grasp,
    highest_between,
    object_rotation,
)
from benchmarks.libero.pose_control import action_towards
from benchmarks.libero.scene import Scene
from world_modality.system.errors import InvalidInputError

_WAY_RADIUS_M = 0.09
_REACHED_M = 0.008
_REACHED_RAD = 0.1
_PLACED_M = 0.02
_LOST_M = 0.04
_TIPPED_RAD = 0.3
_NUM_CLOSING_STEPS = (3, 14)
_NUM_OPENING_STEPS = 6
_NUM_RELEASE_STEPS = 25
_STILL_M = 0.0008
_MISSED_M = 0.06
_RETREAT_M = 0.1
_FUNNEL_SLOPE = 4.0
_CLOSING_AXIS = 1
"""The column of the hand's rotation that the fingers move along."""


class Phase(Enum):
    """What the script is about to do."""

    APPROACH = "approach"
    CLOSE = "close"
    LIFT = "lift"
    CARRY = "carry"
    RELEASE = "release"


@dataclass(frozen=True)
class _Hold:
    """A grasp in the frame of the object, which may be pushed before it is held."""

    point: Float64[np.ndarray, "3"]
    closing_axis: Float64[np.ndarray, "3"]
    object_rotation: Float64[np.ndarray, "3 3"]


class PickAndPlaceExpert:
    """Plays one episode of a task whose goal is one object in or on something."""

    def __init__(self, scene: Scene) -> None:
        """Take a simulator that has just been reset.

        Raises:
            InvalidInputError: the task asks for something else, or the object cannot be held.
        """
        goals = scene.goal()
        if len(goals) != 1 or goals[0][0] not in ("in", "on") or len(goals[0]) != 3:
            raise InvalidInputError(
                "the scripted expert puts one object in or on something, opens a drawer or turns a "
                f"stove on; this task asks for {' and '.join(' '.join(goal) for goal in goals)}"
            )
        self.phase = Phase.APPROACH
        self._scene = scene
        self._shapes = SceneShapes(scene)
        self._target, self._place = goals[0][1:]
        names = scene.object_names()
        self._obstacles = [name for name in names if name != self._target]
        # A region such as basket_1_contain_region is named after what it belongs to.
        owners = [name for name in names if self._place.startswith(name)]
        if not owners:
            raise InvalidInputError(
                f"the scripted expert puts objects in or on others, not on {self._place} of the "
                "table"
            )
        self._place_body = max(owners, key=len)
        self._num_steps_in_phase = 0
        self._phase_position = scene.eef_position()
        self._last_opening = scene.gripper_opening()
        self._hold = self._plan()

    def act(self) -> Float32[np.ndarray, "7"]:
        """Return the action for the present state, in [-1, 1]."""
        if self.phase is Phase.APPROACH and self._is_tipped():
            self._hold = self._plan()
        hand = self._scene.eef_position()
        turn = self._turn()
        match self.phase:
            case Phase.APPROACH:
                goal = self._approach(hand, float(np.linalg.norm(turn)))
            case Phase.CLOSE:
                goal = self._close()
            case Phase.LIFT | Phase.CARRY:
                goal = self._transport(hand)
            case Phase.RELEASE:
                goal = self._release()
        self._last_opening = self._scene.gripper_opening()
        self._num_steps_in_phase += 1
        is_closed = self.phase not in (Phase.APPROACH, Phase.RELEASE)
        return action_towards(goal - hand, turn, is_closed=is_closed)

    def _approach(
        self, hand: Float64[np.ndarray, "3"], turn_rad: float
    ) -> Float64[np.ndarray, "3"]:
        """Go over the obstacles to a point above the grasp, and down a funnel."""
        point = self._grasp_point()
        distance = float(np.linalg.norm((point - hand)[:2]))
        top = highest_between(self._obstacle_points(), hand, point, _WAY_RADIUS_M)
        high = max(point[2] + 0.08, top + TIP_LENGTH_M + 0.02)
        is_reached = distance < _REACHED_M and abs(point[2] - hand[2]) < _REACHED_M
        if is_reached and turn_rad < _REACHED_RAD:
            self._enter(Phase.CLOSE)
        return np.array([*point[:2], _funnel(point[2], high, distance - 0.012)])

    def _close(self) -> Float64[np.ndarray, "3"]:
        """Stay until the fingers have stopped."""
        is_still = abs(self._scene.gripper_opening() - self._last_opening) < _STILL_M
        shortest, longest = _NUM_CLOSING_STEPS
        if (is_still and self._num_steps_in_phase >= shortest) or (
            self._num_steps_in_phase >= longest
        ):
            self._enter(Phase.LIFT)
        return self._phase_position

    def _transport(self, hand: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
        """Go up, over the obstacles to the place, and down a funnel, with the object in hand."""
        target = self._shapes.points(self._target)
        place = self._shapes.points(self._place_body)
        position = self._scene.object_position(self._target)
        offset = (self._place_position() - position)[:2]
        distance = float(np.linalg.norm(offset))
        below = hand[2] - target[:, 2].min()
        top = highest_between(
            self._obstacle_points(), position, self._place_position(), _WAY_RADIUS_M
        )
        # The fingers need room to open: they stay out of a basket that the object goes into.
        low = max(self._place_floor(place) + below + 0.01, place[:, 2].max() + 0.01)
        high = max(low, top + below + 0.025)
        if self._is_lost(hand):
            self._restart()
        elif self.phase is Phase.LIFT and hand[2] > high - 0.02:
            self._enter(Phase.CARRY)
        elif self.phase is Phase.CARRY and distance < _PLACED_M and hand[2] < low + 0.012:
            self._enter(Phase.RELEASE)
        if self.phase is Phase.LIFT:
            share = 0.5 * np.clip((hand[2] - high + 0.06) / 0.06, 0, 1)
            return np.array([*(hand[:2] + share * offset), high])
        return np.array([*(hand[:2] + offset), _funnel(low, high, distance - _PLACED_M)])

    def _release(self) -> Float64[np.ndarray, "3"]:
        """Open the fingers, then go up; begin again if the object is not where it should be."""
        if self._num_steps_in_phase < _NUM_OPENING_STEPS:
            return self._phase_position
        offset = self._place_position() - self._scene.object_position(self._target)
        if self._num_steps_in_phase > _NUM_RELEASE_STEPS and np.linalg.norm(offset[:2]) > _MISSED_M:
            self._restart()
        return self._phase_position + np.array([0.0, 0.0, _RETREAT_M])

    def _plan(self) -> _Hold:
        hand = Rotation.from_quat(self._scene.eef_quaternion()).as_matrix()
        grasp = best_grasp(
            self._shapes.points(self._target), self._obstacle_points(), hand[:, _CLOSING_AXIS]
        )
        if grasp is None:
            raise InvalidInputError(
                f"the scripted expert finds no place where two fingers can hold {self._target}"
            )
        rotation = object_rotation(self._scene, self._target)
        return _Hold(
            point=rotation.T @ (grasp.position - self._scene.object_position(self._target)),
            closing_axis=rotation.T @ grasp.closing_axis,
            object_rotation=rotation,
        )

    def _turn(self) -> Float64[np.ndarray, "3"]:
        """Return the rotation vector that points the hand down, its fingers along the grasp."""
        now = Rotation.from_quat(self._scene.eef_quaternion())
        if self.phase is Phase.APPROACH:
            axis = object_rotation(self._scene, self._target) @ self._hold.closing_axis
            self._closing_axis = axis * [1, 1, 0] / np.linalg.norm(axis[:2])
        axis = self._closing_axis
        if axis @ now.as_matrix()[:, _CLOSING_AXIS] < 0:
            axis = -axis
        down = np.array([0.0, 0.0, -1.0])
        wanted = Rotation.from_matrix(np.stack([np.cross(axis, down), axis, down], axis=1))
        return (wanted * now.inv()).as_rotvec()

    def _grasp_point(self) -> Float64[np.ndarray, "3"]:
        rotation = object_rotation(self._scene, self._target)
        return self._scene.object_position(self._target) + rotation @ self._hold.point

    def _obstacle_points(self) -> Float64[np.ndarray, "n 3"]:
        return np.concatenate([self._shapes.points(name) for name in self._obstacles])

    def _place_position(self) -> Float64[np.ndarray, "3"]:
        if self._place in self._scene.region_names():
            return self._scene.region_position(self._place)
        return self._scene.object_position(self._place)

    def _place_floor(self, place: Float64[np.ndarray, "n 3"]) -> float:
        """Return the height of what the object will lie on."""
        near = np.linalg.norm((place - self._place_position())[:, :2], axis=1) < 0.03
        return float(place[near, 2].max())

    def _is_tipped(self) -> bool:
        turned = self._hold.object_rotation.T @ object_rotation(self._scene, self._target)
        return float(Rotation.from_matrix(turned).magnitude()) > _TIPPED_RAD

    def _is_lost(self, hand: Float64[np.ndarray, "3"]) -> bool:
        return float(np.linalg.norm(self._grasp_point() - hand)) > _LOST_M

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._num_steps_in_phase = 0
        self._phase_position = self._scene.eef_position()

    def _restart(self) -> None:
        self._enter(Phase.APPROACH)
        self._hold = self._plan()


def _funnel(low: float, high: float, distance: float) -> float:
    """Return the height to fly at: high far away, low once the distance is zero or less."""
    return low + float(np.clip(_FUNNEL_SLOPE * distance, 0, high - low))
