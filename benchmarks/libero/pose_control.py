"""Actions of LIBERO's OSC pose controller, from how far the hand is to move and to be turned."""

import numpy as np
from jaxtyping import Float32, Float64

_STEP_M = 0.05
_STEP_RAD = 0.5
_MAX_SPEED = 0.8
_MAX_TURN = 0.5
_OPEN, _CLOSE = -1.0, 1.0


def action_towards(
    move: Float64[np.ndarray, "3"], turn: Float64[np.ndarray, "3"], *, is_closed: bool
) -> Float32[np.ndarray, "7"]:
    """Return the action in [-1, 1].

    Args:
        move: to the goal, in m; the controller's step is 5 cm.
        turn: rotation vector to the goal, in rad; the controller's step is 0.5 rad.
        is_closed: whether the gripper closes or opens.
    """
    speed = _limited(move / _STEP_M, _MAX_SPEED)
    gripper = _CLOSE if is_closed else _OPEN
    return np.array([*speed, *_limited(turn / _STEP_RAD, _MAX_TURN), gripper], np.float32)


def _limited(vector: Float64[np.ndarray, "3"], longest: float) -> Float64[np.ndarray, "3"]:
    """Return the vector, shortened if need be; its direction stays."""
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-9))
