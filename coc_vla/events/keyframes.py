"""Which frames of an episode a model is shown."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from coc_vla.events.gripper import GripperEvent

KeyframeChoice = Literal["uniform", "events"]
DEFAULT_NUM_KEYFRAMES: dict[KeyframeChoice, int] = {"uniform": 3, "events": 6}
# Speeds are averaged over this time before minima are looked for.
SMOOTHING_S = 0.1
# A pause counts where the speed falls by this share of the episode's highest.
MIN_PROMINENCE = 0.2


def uniform_keyframes(num_frames: int, num_keyframes: int) -> tuple[int, ...]:
    """Return evenly spaced frames from the first to the last; 3 are start, middle and end.

    A short episode has fewer frames than asked for, each once.

    Raises:
        ValueError: no frames, or none asked for.
    """
    if num_frames < 1 or num_keyframes < 1:
        raise ValueError(f"{num_keyframes} keyframes of {num_frames} frames")
    positions = np.linspace(0, num_frames - 1, num_keyframes).round().astype(int)
    return tuple(dict.fromkeys(positions.tolist()))


def event_keyframes(
    positions: Float[np.ndarray, "T 3"],
    gripper_events: tuple[GripperEvent, ...],
    fps: float,
    num_keyframes: int,
) -> tuple[int, ...]:
    """Return the frames where something changes: gripper events first, then pauses of the hand.

    The first and the last frame belong to it. Where fewer things happen than frames are asked for,
    the middles of the longest gaps are added. From positions and gripper commands alone: no image
    is decoded.

    Args:
        positions: of the hand, in any unit.
        gripper_events: of the same episode.
        fps: frames per second.
        num_keyframes: at most this many.
    """
    num_frames = len(positions)
    wanted = min(num_keyframes, num_frames)
    ranked = [0, num_frames - 1, *(event.frame for event in gripper_events)]
    ranked += velocity_minima(positions, fps).tolist()
    chosen = list(dict.fromkeys(ranked))[:wanted]
    while len(chosen) < wanted:
        frames = np.sort(chosen)
        gaps = np.diff(frames)
        longest = int(np.argmax(gaps))
        chosen.append(int(frames[longest] + gaps[longest] // 2))
    return tuple(sorted(chosen))


def velocity_minima(positions: Float[np.ndarray, "T 3"], fps: float) -> Int[np.ndarray, " M"]:
    """Return the frames where the hand pauses, the most pronounced first.

    Local minima of the smoothed speed (`scipy.signal.find_peaks` of its negative), by prominence.
    """
    from scipy.signal import find_peaks

    speed = hand_speed(positions, fps)
    if speed.max() == 0:
        return np.array([], dtype=np.int64)
    minima, found = find_peaks(-speed, prominence=MIN_PROMINENCE * float(speed.max()))
    return minima[np.argsort(-found["prominences"], kind="stable")]


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
