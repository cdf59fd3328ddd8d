"""The true state of a LIBERO scene, which scripted experts read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

_HINGE = 3
"""MuJoCo's number of the joints that turn, `mjJNT_HINGE`."""
_ACROSS_THE_BAR = 0
"""The axis of a stove's knob that is across the bar which it is turned by."""


@dataclass(frozen=True)
class MovingPart:
    """What of a fixture moves, as it is now, in the world's frame.

    Attributes:
        is_hinge: whether it turns (a stove's knob) or slides (a drawer).
        position: of the joint, in rad or m; 0 is closed or off.
        opening_axis: unit vector that it slides along, or turns about, to be opened or turned on.
        anchor: a point on that axis.
        across: horizontal unit vector across the bar of a knob, as it is turned now.
        centres: of the boxes around its colliding geoms.
        half_extents: of these boxes, along the world's axes.
    """

    is_hinge: bool
    position: float
    opening_axis: Float64[np.ndarray, "3"]
    anchor: Float64[np.ndarray, "3"]
    across: Float64[np.ndarray, "3"]
    centres: Float64[np.ndarray, "n 3"]
    half_extents: Float64[np.ndarray, "n 3"]


class Scene:
    """What is where, in metres in the world's frame; quaternions are unit, (x, y, z, w)."""

    def __init__(self, env: Any) -> None:
        """Take robosuite's environment."""
        self._env = env

    def objects_of_interest(self) -> tuple[str, ...]:
        """Return the objects that the task's instruction is about, such as `alphabet_soup_1`."""
        return tuple(self._env.obj_of_interest)

    def goal(self) -> tuple[tuple[str, ...], ...]:
        """Return the predicates that all have to hold, such as `("in", object, region)`."""
        return tuple(tuple(predicate) for predicate in self._env.parsed_problem["goal_state"])

    def object_names(self) -> tuple[str, ...]:
        """Return the movable objects and the fixtures (cabinets, stoves) there are."""
        return tuple(self._env.obj_body_id)

    def region_names(self) -> tuple[str, ...]:
        """Return the regions there are, such as `basket_1_contain_region`."""
        return tuple(self._env.object_sites_dict)

    def object_height(self) -> float:
        """Return the height of the first object of interest in m, or of a drawer's region."""
        name = self.objects_of_interest()[0]
        is_region = name in self.region_names()
        return float((self.region_position if is_region else self.object_position)(name)[2])

    def object_position(self, name: str) -> Float64[np.ndarray, "3"]:
        """Return where the origin of an object's or fixture's body is."""
        return self._env.sim.data.body_xpos[self._env.obj_body_id[name]].copy()

    def object_quaternion(self, name: str) -> Float64[np.ndarray, "4"]:
        """Return how an object or fixture is turned."""
        return np.roll(self._env.sim.data.body_xquat[self._env.obj_body_id[name]], -1)

    def collision_boxes(
        self, name: str
    ) -> tuple[
        Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3 3"], Float64[np.ndarray, "n 3"]
    ]:
        """Return centres, axes (as columns) and half extents of the boxes around colliding geoms.

        They are in the frame of the object or fixture, which `object_position` and
        `object_quaternion` place in the world.
        """
        model, data = self._env.sim.model._model, self._env.sim.data._data
        body = self._env.obj_body_id[name]
        owned = model.body_rootid[model.geom_bodyid] == model.body_rootid[body]
        geoms = np.flatnonzero(owned & ((model.geom_contype > 0) | (model.geom_conaffinity > 0)))
        to_object = data.xmat[body].reshape(3, 3).T
        frames = data.geom_xmat[geoms].reshape(-1, 3, 3)
        offsets = np.einsum("nij,nj->ni", frames, model.geom_aabb[geoms, :3])
        centres = (data.geom_xpos[geoms] + offsets - data.xpos[body]) @ to_object.T
        return centres, to_object @ frames, model.geom_aabb[geoms, 3:]

    def moving_part(self, name: str) -> MovingPart:
        """Return the drawer of a region (`wooden_cabinet_1_top_region`), or a stove's knob."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        owner = self._env.object_sites_dict.get(name) or self._env.get_object(name)
        joint = model.joint(owner.joints[0])
        body = joint.bodyid[0]
        low, high = joint.range
        sign = 1.0 if abs(high) > abs(low) else -1.0
        colliding = (model.geom_contype > 0) | (model.geom_conaffinity > 0)
        geoms = np.flatnonzero((model.geom_bodyid == body) & colliding)
        frames = data.geom_xmat[geoms].reshape(-1, 3, 3)
        offsets = np.einsum("nij,nj->ni", frames, model.geom_aabb[geoms, :3])
        return MovingPart(
            is_hinge=bool(joint.type[0] == _HINGE),
            position=float(data.qpos[joint.qposadr[0]]),
            opening_axis=sign * data.xaxis[joint.id],
            anchor=data.xanchor[joint.id].copy(),
            across=data.xmat[body].reshape(3, 3)[:, _ACROSS_THE_BAR].copy(),
            centres=data.geom_xpos[geoms] + offsets,
            half_extents=np.einsum("nij,nj->ni", np.abs(frames), model.geom_aabb[geoms, 3:]),
        )

    def region_position(self, name: str) -> Float64[np.ndarray, "3"]:
        """Return the centre of a region."""
        return np.array(self._env.sim.data.get_site_xpos(name))

    def eef_position(self) -> Float64[np.ndarray, "3"]:
        """Return the point between the fingertips."""
        return self._env.sim.data.site_xpos[self._env.robots[0].eef_site_id].copy()

    def eef_quaternion(self) -> Float64[np.ndarray, "4"]:
        """Return how the hand is turned; its z axis points to the fingertips."""
        hand = self._env.robots[0].robot_model.eef_name
        return np.roll(self._env.sim.data.get_body_xquat(hand), -1)

    def gripper_opening(self) -> float:
        """Return the distance between the fingers, from 0 to about 0.08 m."""
        fingers = self._env.robots[0]._ref_gripper_joint_pos_indexes
        left, right = self._env.sim.data.qpos[fingers]
        return float(left - right)

    def in_contact(self) -> bool:
        """Tell whether the robot touches an object or a fixture (tables and floors are none)."""
        model, data = self._env.sim.model._model, self._env.sim.data._data
        roots = model.body_rootid[model.geom_bodyid[data.contact.geom]]
        hand = model.body(self._env.robots[0].robot_model.eef_name).id
        objects = model.body_rootid[list(self._env.obj_body_id.values())]
        robot = roots == model.body_rootid[hand]
        return bool((robot.any(axis=1) & np.isin(roots, objects).any(axis=1)).any())

    def simulator_state(self) -> Float64[np.ndarray, " state"]:
        """Return time, joint positions and joint velocities, as LIBERO stores initial states."""
        return self._env.sim.get_state().flatten()


def axis_angle(quaternion: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "3"]:
    """Turn a unit quaternion (x, y, z, w) into axis times angle, the angle in [0, 2π].

    As robosuite's `quat2axisangle`, which made the states of LeRobot's public data: q and -q, the
    same rotation, give different vectors.
    """
    w = np.clip(quaternion[3], -1, 1)
    sine = np.sqrt(1 - w * w)
    if np.isclose(sine, 0, rtol=0, atol=1e-9):
        return np.zeros(3)
    return quaternion[:3] * 2 * np.arccos(w) / sine
