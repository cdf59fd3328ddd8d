"""The gate before a rollout: recorded demonstrations, replayed here, have to come out the same.

A flipped image or a permuted state costs a policy its success without raising an error. Compared
are the robot's state in every frame, each camera's images and embeddings in some, and success; a
difference is named by its likely cause.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, UInt8

from benchmarks.demos.recording import RecordedEpisode
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.parity.replay import (
    WAIVE,
    Playback,
    RecordedDemonstrations,
    spread_episodes,
)
from benchmarks.rollouts.suite_fit import PolicyInputs, differing_settings
from benchmarks.suite import Suite
from world_modality.acting.frame_encoder import FrameEncoder
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.system.errors import InvalidInputError

EMBEDDING_TOLERANCE = 0.05
"""Root mean square distance of embeddings here to recorded ones, as a share of the embeddings'
spread over training frames. Measured in MetaWorld with pixel-pca: neighbouring frames are 0.11
apart, multisampling makes 0.06, shadows 0.34, a flip 1.5."""
STATE_TOLERANCE = 1e-4
"""On a state in m or rad: other processors and builds of the simulator round differently, by some
1e-7 in the first frames; a wrong layout, camera or scale moves it by 1e-3 and more."""
EARLY_FRAMES = 5
"""Frames that the tolerance above holds for; contacts amplify rounding after them."""
LATER_SHARE = 0.25
"""Share of a state dimension's standard deviation that contacts may make of rounding in the end."""
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
class EpisodeParity:
    """How one replayed episode compares with its recording.

    Attributes:
        episode: which one.
        state_difference: largest difference of the robot's state; None for other dimensions.
        image_difference: mean difference in 8-bit levels, of the camera where it is largest; None
            for other sizes.
        embedding_distance: see EMBEDDING_TOLERANCE; of the camera where it is largest.
        token_agreement: share of the compared frames that have the same world token.
        recorded_success: whether the task was solved in the recording.
        success: whether it is solved here.
        difference: what is wrong, None where nothing is.
    """

    episode: RecordedEpisode
    state_difference: float | None
    image_difference: float | None
    embedding_distance: float
    token_agreement: float
    recorded_success: bool
    success: bool
    difference: str | None


def check_parity(path: Path, suite: Suite, config: RolloutConfig) -> list[EpisodeParity]:
    """Replay demonstrations that a checkpoint was trained on; print and return the comparison.

    On the machine that recorded them all are equal to the last bit.

    Raises:
        InvalidInputError: an episode does not come out as recorded; the message names the
            difference (flip, camera, resolution or rendering, state layout, scale or sign of the
            action, initial layout). Or the recording is another one than the checkpoint's.
        UserError: the recording is not there, or the checkpoint does not fit.
    """
    began = time.monotonic()
    comparison = _Comparison(path, suite, config)
    recorded = comparison.recorded
    episodes: list[EpisodeParity] = []
    for episode in spread_episodes(recorded.recording, config.num_parity_episodes):
        episodes.append(comparison.of(episode))
        if episodes[-1].difference is not None:
            break
    print(
        f"parity: {recorded.source.name} replayed in {suite.name}, "
        f"{time.monotonic() - began:.1f} s\n{parity_table(episodes)}"
    )
    failed = episodes[-1]
    if failed.difference is not None:
        raise InvalidInputError(
            f"episode {failed.episode.episode_index} ({failed.episode.task}) of "
            f"{recorded.source.name} does not come out here as it was recorded. "
            f"{failed.difference}. A policy trained on it would be shown what it does not know; "
            f"mend that, or {WAIVE}"
        )
    return episodes


def parity_table(episodes: Sequence[EpisodeParity]) -> str:
    """Lay the comparison out for the terminal."""
    width = max(len(one.episode.task) for one in episodes)
    lines = [
        f"  {'task':{width}}  episode  frames    state   image  embedding  tokens  solved "
        "(recorded, here)"
    ]
    for one in episodes:
        solved = ", ".join("yes" if s else "no" for s in (one.recorded_success, one.success))
        lines.append(
            f"  {one.episode.task:{width}}  {one.episode.episode_index:7d}  "
            f"{one.episode.num_frames:6d}  "
            f"{_number(one.state_difference):>7}  {_number(one.image_difference):>6}  "
            f"{one.embedding_distance:9.4f}  {100 * one.token_agreement:4.0f} %  {solved}"
        )
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


class _Comparison:
    """A checkpoint's recording, and what its replay is measured with."""

    def __init__(self, path: Path, suite: Suite, config: RolloutConfig) -> None:
        from world_modality.policy.checkpoint import load_checkpoint
        from world_modality.system.device import resolve_device

        device = resolve_device(config.device)
        checkpoint = load_checkpoint(path, device)
        self.recorded = RecordedDemonstrations.of(checkpoint, suite, config)
        self._suite = suite
        self._inputs = PolicyInputs.of(checkpoint, suite, config)
        self._encoder = FrameEncoder.of(
            checkpoint,
            device,
            group_size=config.group_size(device.type),
            vision_model_name=config.vision_model_name,
            trust_remote_code=config.trust_remote_code,
        )
        # Root mean square distance of training embeddings to their mean, over a frame's vectors.
        variance = checkpoint.model["embedding_norm.std"].square()
        self._spread = float(variance.sum(dim=-1).mean().sqrt())
        self._state_std = checkpoint.model["state_norm.std"].cpu().numpy()
        record, recording = suite.record(), self.recorded.recording
        self._settings = [
            *differing_settings(recording.get("rendering", {}), record["rendering"]).values(),
            *differing_settings(recording.get("software", {}), record["versions"]).values(),
        ]

    def of(self, episode: RecordedEpisode) -> EpisodeParity:
        """Replay and compare one episode."""
        recorded, here = self.recorded.replay(self._suite, episode, self._inputs.state_key)
        cameras = list(zip(self.recorded.image_keys, self._inputs.image_keys, strict=True))
        shown = [(recorded.images[before], here.images[now]) for before, now in cameras]
        images = [
            ImageDifference.of(before, now) if before.shape == now.shape else None
            for before, now in shown
        ]
        known = [one for one in images if one is not None]
        worst = max(known, key=lambda one: one.mean) if len(known) == len(images) else None
        embedded = [self._encoder.embed(list(map(list, side))) for side in zip(*shown, strict=True)]
        distances = self._distances(*map(self._encoder.read, embedded))
        tokens = [self._encoder.tokens(one) for one in embedded]
        state_difference = None
        if recorded.states.shape == here.states.shape:
            state_difference = float(np.abs(recorded.states - here.states).max())
        views = [
            self._view(keys, recorded.images, here.images, image, distance)
            for keys, image, distance in zip(cameras, images, distances, strict=True)
        ]
        return EpisodeParity(
            episode=episode,
            state_difference=state_difference,
            image_difference=None if worst is None else worst.mean,
            embedding_distance=max(distances),
            token_agreement=float((tokens[0] == tokens[1]).mean()),
            recorded_success=recorded.success,
            success=here.success,
            difference=self._motion(recorded, here)
            or next(filter(None, views), None)
            or success_cause(recorded.success, here.success, worst),
        )

    def _distances(
        self, recorded: Float16[np.ndarray, "k *P M"], here: Float16[np.ndarray, "k *P M"]
    ) -> list[float]:
        """Return for each view how far its embeddings are apart, as EMBEDDING_TOLERANCE says."""
        squared = np.square(np.subtract(recorded, here, dtype=np.float32)).sum(axis=-1)
        by_view = squared.reshape(len(squared), len(self._inputs.image_keys), -1)
        return [float(np.sqrt(one.mean())) / self._spread for one in np.moveaxis(by_view, 1, 0)]

    def _motion(self, recorded: Playback, here: Playback) -> str | None:
        """Say what is wrong with states and layout."""
        states, names = recorded.states, self._names(recorded.states.shape[1])
        if states.shape != here.states.shape:
            return state_layout(states, here.states, names)
        frame = first_difference(states, here.states, self._state_std)
        if frame is not None and (layout := state_layout(states, here.states, names)) is not None:
            return layout
        for key, vector in recorded.scene.items():
            moved = np.abs(vector - here.scene[key]).max()
            if moved > LAYOUT_TOLERANCE:
                return f"another initial layout: {key} differs by {moved:.3g} in the first frame"
        if frame == 0:
            return (
                "another initial state, or a state of other content: the robot's state differs by "
                f"{np.abs(states[0] - here.states[0]).max():.3g} in the first frame, and no order, "
                "sign or offset of its dimensions explains it"
            )
        return None if frame is None else action_effect(states, here.states, names, frame)

    def _view(
        self,
        keys: tuple[str, str],
        recorded: Mapping[str, np.ndarray],
        images: Mapping[str, np.ndarray],
        difference: "ImageDifference | None",
        distance: float,
    ) -> str | None:
        """Say what is wrong with the images of a camera: its key in the recording, and here."""
        dtype = self.recorded.source.features[keys[0]]["dtype"]
        limit = IMAGE_TOLERANCE if dtype == "image" else VIDEO_TOLERANCE
        if difference and difference.mean <= limit and distance <= EMBEDDING_TOLERANCE:
            return None
        cause = image_cause(recorded[keys[0]], images, keys[1], self._settings)
        camera = f"{keys[0]}: " if len(self.recorded.image_keys) > 1 else ""
        return f"{camera}{cause}; embeddings are {100 * distance:.0f} % of their spread apart"

    def _names(self, dim: int) -> list[str]:
        key = self.recorded.state_key
        one_column = len(joined_columns(key)) == 1
        found = self.recorded.source.dim_names(key, dim) if one_column else None
        return found or [f"dimension {i}" for i in range(dim)]


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
    """Return the first frame whose state is outside the tolerances, or None; `std` is [S]."""
    limits = np.maximum(STATE_TOLERANCE, LATER_SHARE * np.broadcast_to(std, recorded.shape))
    limits[:EARLY_FRAMES] = STATE_TOLERANCE
    outside = np.flatnonzero((np.abs(recorded - here) > limits).any(axis=1))
    return int(outside[0]) if len(outside) else None


def state_layout(
    recorded: Float32[np.ndarray, "n S"], here: Float32[np.ndarray, "n S2"], names: Sequence[str]
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
    ratios = {
        names[dim]: float(before[:, dim] @ now[:, dim] / np.square(before[:, dim]).sum())
        for dim in range(before.shape[1])
        if np.abs(before[:, dim]).max() > _MOVED
    }
    listed = ", ".join(f"{name} {ratio:+.2f}" for name, ratio in ratios.items())
    found = f"(ratio of the motion here to the recorded one: {listed or 'none recorded'})"
    start = f"the states are equal at first and move apart in frame {frame}"
    backwards = [name for name, ratio in ratios.items() if ratio < -0.3]
    typical = float(np.median(list(ratios.values()))) if ratios else 1.0
    if backwards:
        turned = ", ".join(backwards)
        return f"sign of the action: {start}; the robot goes backwards in {turned} {found}"
    if abs(typical) < 0.05:
        return f"scale of the action: {start}; the robot does not move here {found}"
    if not 0.9 <= typical <= 1.1:
        return (
            f"scale of the action: {start}; the robot moves {typical:.2f} times as far as in the "
            f"recording {found}"
        )
    return f"physics: {start}, though the robot moves alike {found}"


def image_cause(
    recorded: UInt8[np.ndarray, "k H W 3"],
    images: Mapping[str, np.ndarray],
    image_key: str,
    settings: Sequence[str],
) -> str:
    """Say which flip, camera or setting turns the images here into the recorded ones.

    `settings` are what is known to differ in rendering and versions.
    """
    shown = images[image_key]
    known = f"; {'; '.join(settings)}" if settings else ""
    if recorded.shape != shown.shape:
        sizes = ["x".join(map(str, array.shape[1:3])) for array in (shown, recorded)]
        return f"resolution: images are {sizes[0]} here and {sizes[1]} in the recording{known}"
    plain = ImageDifference.of(recorded, shown)
    candidates = {
        (key, name): ImageDifference.of(recorded, np.flip(array, axes)).mean
        for key, array in images.items()
        if array.shape == recorded.shape
        for name, axes in _FLIPS.items()
    }
    (key, flip), best = min(candidates.items(), key=lambda item: item[1])
    if best < 0.5 * plain.mean:
        parts = [f"flip: the image here is the recorded one {flip}"] if flip else []
        if key != image_key:
            parts.insert(0, f"camera: the policy is shown {image_key}, but {key} matches")
        return f"{', and '.join(parts)} (mean difference {plain.mean:.1f} levels, {best:.1f} so)"
    if settings:
        return f"rendering: {'; '.join(settings)} ({plain})"
    if plain.is_of_objects:
        return f"another initial layout: objects stand elsewhere ({plain})"
    return (
        "rendering: images are alike but not equal, as under other shadows, reflections, "
        f"multisampling, camera pose or driver; the records name no difference ({plain})"
    )


def success_cause(recorded: bool, here: bool, images: ImageDifference | None) -> str | None:
    """Say why success differs, if it does, where states and images agree on the whole."""
    if recorded == here:
        return None
    outcome = "solved here and not" if here else "not solved here, but"
    found = f"the task is {outcome} in the recording, with the same motion of the robot"
    if images is not None and images.is_of_objects:
        return f"another initial layout: objects stand elsewhere ({images}); {found}"
    return f"success: {found} and the same images; physics or what counts as success differ"
