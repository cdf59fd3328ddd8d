"""Why a replay differs from its recording, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float32, UInt8

STATE_TOLERANCE = 1e-4
"""On a state in m or rad: other processors and builds of the simulator round differently, by some
1e-7 in the first frames; a wrong layout, camera or scale moves it by 1e-3 and more."""
EARLY_FRAMES = 5
"""Frames that the tolerance above holds for; contacts amplify rounding after them."""
LATER_SHARE = 0.25
"""Of a state dimension's standard deviation: what contacts may have made of rounding in the end."""
LAYOUT_TOLERANCE = 1e-3
"""On the simulator's own state in the first frame."""
IMAGE_TOLERANCE = 1.0
"""On the mean difference of 8-bit levels. Other drivers draw some edges differently; multisampling
alone makes 1.6 (at 128x128) to 3.4, shadows 7, a moved camera 10, a flip over 30."""
VIDEO_TOLERANCE = 5.0
"""The same for recordings that are stored as lossy video."""

_FLIPS: dict[str, tuple[int, ...]] = {
    "": (),
    "flipped vertically": (1,),
    "flipped horizontally": (2,),
    "turned by 180 degrees": (1, 2),
}
_ACTION_FRAMES = 20
_MOVED = 5e-3


@dataclass(frozen=True)
class ImageDifference:
    """How two sets of images differ, in 8-bit levels.

    Attributes:
        mean: over all pixels and channels.
        share: of the pixels that differ by more than 2 levels in a channel.
        strength: mean difference of the most different channel of these.
    """

    mean: float
    share: float
    strength: float

    @property
    def is_of_objects(self) -> bool:
        """Whether few pixels differ, but these much: something small is elsewhere."""
        return self.share < 0.2 and self.strength > 50

    def __str__(self) -> str:
        return (
            f"mean difference {self.mean:.1f} of 255 levels; {100 * self.share:.1f} % of the "
            f"pixels differ, those by {self.strength:.0f} on average"
        )

    @classmethod
    def of(
        cls, recorded: UInt8[np.ndarray, "k H W 3"], here: UInt8[np.ndarray, "k H W 3"]
    ) -> "ImageDifference":
        """Compare images of one size."""
        levels = np.abs(recorded.astype(np.int16) - here)
        worst = levels.max(axis=-1)
        changed = worst > 2
        strength = float(worst[changed].mean()) if changed.any() else 0.0
        return cls(float(levels.mean()), float(changed.mean()), strength)


def first_difference(
    recorded: Float32[np.ndarray, "n S"], here: Float32[np.ndarray, "n S"], std: np.ndarray
) -> int | None:
    """Return the first frame whose state is outside the tolerances, or None.

    Args:
        recorded: the recorded states.
        here: those of the replay.
        std: of each dimension over the recording.
    """
    limits = np.maximum(STATE_TOLERANCE, LATER_SHARE * np.broadcast_to(std, recorded.shape))
    limits[:EARLY_FRAMES] = STATE_TOLERANCE
    outside = np.flatnonzero((np.abs(recorded - here) > limits).any(axis=1))
    return int(outside[0]) if len(outside) else None


def state_layout(
    recorded: Float32[np.ndarray, "n S"],
    here: Float32[np.ndarray, "n S2"],
    names: Sequence[str],
) -> str | None:
    """Say which dimensions, signs and offsets turn this state into the recorded one, if any do."""
    if recorded.shape[1] != here.shape[1]:
        return (
            f"state layout: the state has {here.shape[1]} dimensions here and "
            f"{recorded.shape[1]} in the recording"
        )
    parts = []
    for dim, values in enumerate(recorded.T):
        if _equal(values, here[:, dim]):
            continue
        source = _source(values, here, dim)
        if source is None:
            return None
        other, sign, offset = source
        shift = f" {'+' if offset > 0 else '-'} {abs(offset):.4g}" if offset else ""
        parts.append(
            f"the recording's {names[dim]} is {'-' if sign < 0 else ''}{names[other]}{shift} here"
        )
    return f"state layout: {', '.join(parts)}" if parts else None


def _source(
    values: Float32[np.ndarray, " n"], here: Float32[np.ndarray, "n S"], dim: int
) -> tuple[int, int, float] | None:
    """Return the dimension, sign and offset that give these values; the simplest, if any."""
    others = [dim, *(i for i in range(here.shape[1]) if i != dim)]
    for with_offset, sign, other in product((False, True), (1, -1), others):
        candidate = sign * here[:, other]
        offset = float(np.median(values - candidate)) if with_offset else 0.0
        if np.ptp(values) < STATE_TOLERANCE and with_offset and other != dim:
            continue  # any constant explains another
        if _equal(values, candidate + np.float32(offset)):
            return other, sign, offset
    return None


def _equal(values: Float32[np.ndarray, " n"], others: Float32[np.ndarray, " n"]) -> bool:
    tolerance = STATE_TOLERANCE + 0.02 * np.ptp(values)
    return bool(
        np.abs(values - others).max() <= tolerance and abs(values[0] - others[0]) <= STATE_TOLERANCE
    )


def action_effect(
    recorded: Float32[np.ndarray, "n S"],
    here: Float32[np.ndarray, "n S"],
    names: Sequence[str],
    frame: int,
) -> str:
    """Say how the robot's motion differs, where both begin alike: scale or sign of the action.

    The displacements of the first frames are regressed on the recorded ones.
    """
    window = slice(1, _ACTION_FRAMES)
    before, now = recorded[window] - recorded[0], here[window] - here[0]
    moved = [dim for dim in range(before.shape[1]) if np.abs(before[:, dim]).max() > _MOVED]
    ratios = {
        names[dim]: float(before[:, dim] @ now[:, dim] / np.square(before[:, dim]).sum())
        for dim in moved
    }
    listed = ", ".join(f"{name} {ratio:+.2f}" for name, ratio in ratios.items())
    told = f"(ratio of the motion here to the recorded one: {listed or 'none recorded'})"
    start = f"the states are equal at first and move apart in frame {frame}"
    backwards = [name for name, ratio in ratios.items() if ratio < -0.3]
    if backwards:
        turned = ", ".join(backwards)
        return f"sign of the action: {start}; the robot goes backwards in {turned} {told}"
    typical = float(np.median(list(ratios.values()))) if ratios else 1.0
    if abs(typical) < 0.05:
        return f"scale of the action: {start}; the robot does not move here {told}"
    if not 0.9 <= typical <= 1.1:
        return (
            f"scale of the action: {start}; the robot moves {typical:.2f} times as far as in the "
            f"recording {told}"
        )
    return f"physics: {start}, though the robot moves alike {told}"


def image_cause(
    recorded: UInt8[np.ndarray, "k H W 3"],
    images: Mapping[str, np.ndarray],
    image_key: str,
    settings: Sequence[str],
) -> str:
    """Say what would turn these images into the recorded ones.

    Args:
        recorded: of the camera that the policy was trained on.
        images: of each camera here.
        image_key: the camera that the policy is shown.
        settings: what is known to differ in rendering and versions.
    """
    shown = images[image_key]
    known = f"; {'; '.join(settings)}" if settings else ""
    if recorded.shape != shown.shape:
        sizes = ["x".join(map(str, array.shape[1:3])) for array in (shown, recorded)]
        return f"resolution: images are {sizes[0]} here and {sizes[1]} in the recording{known}"
    plain = ImageDifference.of(recorded, shown)
    candidates = {
        (key, name): ImageDifference.of(recorded, np.flip(array, axes))
        for key, array in images.items()
        if array.shape == recorded.shape
        for name, axes in _FLIPS.items()
    }
    (key, flip), best = min(candidates.items(), key=lambda item: item[1].mean)
    if best.mean < 0.5 * plain.mean:
        parts = [f"flip: the image here is the recorded one {flip}"] if flip else []
        if key != image_key:
            parts.insert(0, f"camera: the policy is shown {image_key}, but {key} matches")
        return (
            f"{', and '.join(parts)} (mean difference {plain.mean:.1f} levels, {best.mean:.1f} so)"
        )
    if settings:
        return f"rendering: {'; '.join(settings)} ({plain})"
    if plain.is_of_objects:
        return f"another initial layout: objects stand elsewhere ({plain})"
    return (
        "rendering: images are alike but not equal, as under other shadows, reflections, "
        f"multisampling, camera pose or driver; the records name no difference ({plain})"
    )


def success_cause(success: bool, images: ImageDifference) -> str:
    """Say why the outcome differs, where the robot moves alike and images agree on the whole.

    Args:
        success: whether the task is solved here.
        images: how the images differ.
    """
    outcome = "solved here and not" if success else "not solved here, but"
    told = f"the task is {outcome} in the recording, with the same motion of the robot"
    if images.is_of_objects:
        return f"another initial layout: objects stand elsewhere ({images}); {told}"
    return f"success: {told} and the same images; physics or what counts as success differ"
