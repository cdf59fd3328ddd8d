"""Where Panda's two fingers take hold of an object from above.

What is narrow enough is held across its middle, just below its top (a box, a can, a bottle by its
neck); what is too wide for that, a bowl, at a point of its rim.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from benchmarks.libero.scene import Scene

# The gripper's collision geometry, as distances in m from the point between the fingertips.
TIP_LENGTH_M = 0.013
_PALM_HEIGHT_M = 0.026
_MAX_OPENING_M = 0.077
_FINGER_OUTSIDE_M = 0.07
_FINGER_HALF_WIDTH_M = 0.012
_PALM_HALF_LENGTH_M = 0.105
_PALM_HALF_WIDTH_M = 0.034

_DEPTHS_M = (0.021, 0.012)
"""From the object's top down to the fingertips, the better first: the palm stays above."""
_LOWEST_M = 0.014
"""From the object's bottom up to the fingertips: they stay above what it lies on."""
_SLACK_M = 0.008
_RIM_INSET_M = 0.004
_CLEARANCE_M = 0.006
_TURNS_RAD = np.radians(np.arange(-90, 90, 7.5))
_RIM_SHIFTS_M = (0.0, 0.012, 0.024)


@dataclass(frozen=True)
class Grasp:
    """A grasp from above.

    Attributes:
        position: of the point between the fingertips, in m in the world's frame.
        closing_axis: horizontal unit vector that the fingers move along; its sign is free.
        cost: lower is better; 10 and more where the fingers or the palm hit something.
    """

    position: Float64[np.ndarray, "3"]
    closing_axis: Float64[np.ndarray, "3"]
    cost: float


def best_grasp(
    target: Float64[np.ndarray, "n 3"],
    obstacles: Float64[np.ndarray, "m 3"],
    closing_axis: Float64[np.ndarray, "3"],
) -> Grasp | None:
    """Return the grasp that hits nothing and turns the hand least, or None where nothing fits.

    Args:
        target: points of the object's collision geometry, world frame.
        obstacles: points of everything else.
        closing_axis: the one that the hand has now.
    """
    grasps = _candidates(target, obstacles, closing_axis)
    return min(grasps, key=lambda grasp: grasp.cost, default=None)


def _candidates(
    target: Float64[np.ndarray, "n 3"],
    obstacles: Float64[np.ndarray, "m 3"],
    closing_axis: Float64[np.ndarray, "3"],
) -> Iterator[Grasp]:
    for is_shallow, depth in enumerate(_DEPTHS_M):
        height = max(target[:, 2].max() - depth, target[:, 2].min() + _LOWEST_M)
        between_tips = target[np.abs(target[:, 2] - height) < TIP_LENGTH_M]
        centre = (between_tips.max(axis=0) + between_tips.min(axis=0)) / 2
        centre[2] = height
        for turn in _TURNS_RAD:
            yaw = np.arctan2(closing_axis[1], closing_axis[0]) + turn
            along = np.array([np.cos(yaw), np.sin(yaw), 0.0])
            frame = np.stack([along, [-along[1], along[0], 0.0], [0.0, 0.0, 1.0]], axis=1)
            own, others = (target - centre) @ frame, (obstacles - centre) @ frame
            for shift, width, off_centre in _shifts(own):
                moved = np.array([shift, 0.0, 0.0])
                if _num_hits(own - moved, 0.0):
                    continue
                hits = _num_hits(others - moved, _CLEARANCE_M)
                cost = abs(turn) + 4 * width + 20 * off_centre + 0.5 * is_shallow
                if hits:
                    cost += 10 + 0.05 * min(hits, 100)
                yield Grasp(centre + shift * along, along, float(cost))


def _shifts(own: Float64[np.ndarray, "n 3"]) -> Iterator[tuple[float, float, float]]:
    """Yield where along the closing axis to grasp, how wide it is there, and how far off centre."""
    widest = _MAX_OPENING_M - _SLACK_M
    middle = own[np.abs(own[:, 2]) < TIP_LENGTH_M]
    low, high = middle[:, 0].min(), middle[:, 0].max()
    starts = (
        [(low + high) / 2] if high - low <= widest else [low + _RIM_INSET_M, high - _RIM_INSET_M]
    )
    for start in starts:
        near = np.abs(middle - [start, 0, 0]) < [_MAX_OPENING_M / 2, _FINGER_HALF_WIDTH_M, np.inf]
        held = middle[near.all(axis=1), 0]
        if not len(held) or np.ptp(held) > widest:
            continue
        shift, room = (held.min() + held.max()) / 2, (widest - np.ptp(held)) / 2
        inwards = -np.sign(start) if len(starts) > 1 else 0.0
        for extra in _RIM_SHIFTS_M if inwards else (0.0,):
            if extra <= room:
                yield shift + inwards * extra, float(np.ptp(held)), extra


def _num_hits(points: Float64[np.ndarray, "n 3"], clearance: float) -> int:
    """Count the points that fingers or palm go through on their way down; axes as the hand's."""
    along, across, up = np.abs(points[:, 0]), np.abs(points[:, 1]), points[:, 2]
    fingers = (
        (along > _MAX_OPENING_M / 2)
        & (along < _FINGER_OUTSIDE_M + clearance)
        & (across < _FINGER_HALF_WIDTH_M + clearance)
        & (up > -TIP_LENGTH_M)
    )
    palm = (
        (along < _PALM_HALF_LENGTH_M + clearance)
        & (across < _PALM_HALF_WIDTH_M + clearance)
        & (up > _PALM_HEIGHT_M)
    )
    return int((fingers | palm).sum())


_SPACING_M = 0.008


class SceneShapes:
    """Points on a grid through every collision box, which move with their objects."""

    def __init__(self, scene: Scene) -> None:
        """Take a scene; after a reset make another of these."""
        self._scene = scene
        self._in_object_frame: dict[str, Float64[np.ndarray, "n 3"]] = {}

    def points(self, name: str) -> Float64[np.ndarray, "n 3"]:
        """Return an object's or fixture's points where it is now, in m in the world's frame.

        They are at most 8 mm apart, and each box's corners are among them.
        """
        if name not in self._in_object_frame:
            boxes = zip(*self._scene.collision_boxes(name), strict=True)
            self._in_object_frame[name] = np.concatenate([_box_points(*box) for box in boxes])
        rotation = object_rotation(self._scene, name)
        return self._scene.object_position(name) + self._in_object_frame[name] @ rotation.T


def object_rotation(scene: Scene, name: str) -> Float64[np.ndarray, "3 3"]:
    """Return how an object is turned; the columns are its axes in the world's frame."""
    return Rotation.from_quat(scene.object_quaternion(name)).as_matrix()


def highest_between(
    points: Float64[np.ndarray, "n 3"],
    start: Float64[np.ndarray, "3"],
    end: Float64[np.ndarray, "3"],
    radius: float,
) -> float:
    """Return the height of the highest point near the way from start to end, seen from above.

    Args:
        points: of the obstacles.
        start: where the way begins; heights do not count.
        end: where it ends.
        radius: up to which distance from the way an obstacle counts, in m.

    Returns:
        Height in m, or minus infinity where nothing is near.
    """
    way = end[:2] - start[:2]
    offset = points[:, :2] - start[:2]
    share = np.clip(offset @ way / max(way @ way, 1e-9), 0, 1)
    near = np.linalg.norm(offset - share[:, None] * way, axis=1) < radius
    return float(points[near, 2].max(initial=-np.inf))


def _box_points(
    centre: Float64[np.ndarray, "3"],
    axes: Float64[np.ndarray, "3 3"],
    half_extents: Float64[np.ndarray, "3"],
) -> Float64[np.ndarray, "n 3"]:
    ranges = [np.linspace(-h, h, int(2 * h / _SPACING_M) + 2) for h in half_extents]
    grid = np.stack(np.meshgrid(*ranges, indexing="ij"), axis=-1).reshape(-1, 3)
    return centre + grid @ axes.T
