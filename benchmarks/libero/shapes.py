"""What the collision geometry of a LIBERO scene fills, as points."""

import numpy as np
from jaxtyping import Float64
from scipy.spatial.transform import Rotation

from benchmarks.libero.scene import Scene

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
