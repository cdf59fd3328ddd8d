"""The gate before a rollout: recorded demonstrations, replayed here, have to come out the same.

A flipped image or a permuted state costs a policy its success without raising an error.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

from benchmarks.rollouts.acting.frame_encoder import FrameEncoder
from benchmarks.rollouts.acting.suite_fit import PolicyInputs, differing_settings, joined_vectors
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.parity.replay import WAIVE, RecordedDemonstrations, Replay
from benchmarks.suite import Suite
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.system.errors import InvalidInputError

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


if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

EMBEDDING_TOLERANCE = 0.05
"""Root mean square distance of embeddings here to recorded ones, as a share of the embeddings'
spread over training frames. Measured in MetaWorld with pixel-pca: neighbouring frames are 0.11
apart, multisampling makes 0.06, shadows 0.34, a flip 1.5."""


@dataclass(frozen=True)
class EpisodeParity:
    """How one replayed episode compares with its recording.

    Attributes:
        episode_index: in the dataset.
        task: the suite's name of the task.
        num_frames: of the episode.
        state_difference: largest difference of the robot's state over all frames.
        image_difference: mean difference of the compared images in 8-bit levels.
        embedding_distance: see EMBEDDING_TOLERANCE.
        token_agreement: share of the compared frames that have the same world token.
        recorded_success: whether the task was solved in the recording.
        success: whether it is solved here.
        difference: what is wrong, None where nothing is.
    """

    episode_index: int
    task: str
    num_frames: int
    state_difference: float | None
    image_difference: float | None
    embedding_distance: float
    token_agreement: float
    recorded_success: bool
    success: bool
    difference: str | None


@dataclass(frozen=True)
class ParityReport:
    """The replayed episodes of one recording, and how long that took."""

    dataset: str
    suite: str
    episodes: tuple[EpisodeParity, ...]
    seconds: float

    def table(self) -> str:
        """Lay the comparison out for the terminal."""
        width = max(len(episode.task) for episode in self.episodes)
        lines = [
            f"parity: {self.dataset} replayed in {self.suite}, {self.seconds:.1f} s",
            f"  {'task':{width}}  episode  frames    state   image  embedding  tokens  solved "
            "(recorded, here)",
        ]
        for one in self.episodes:
            solved = ", ".join("yes" if s else "no" for s in (one.recorded_success, one.success))
            lines.append(
                f"  {one.task:{width}}  {one.episode_index:7d}  {one.num_frames:6d}  "
                f"{_number(one.state_difference):>7}  {_number(one.image_difference):>6}  "
                f"{one.embedding_distance:9.4f}  {100 * one.token_agreement:4.0f} %  {solved}"
            )
        return "\n".join(lines)


def check_parity(path: Path, suite: Suite, config: RolloutConfig) -> ParityReport:
    """Replay demonstrations that a checkpoint was trained on; print and return the comparison.

    Compared are the robot's state in every frame, images and embeddings in some, and success. On
    the machine that recorded them all are equal to the last bit.

    Raises:
        InvalidInputError: an episode does not come out as recorded; the message names the
            difference (flip, camera, resolution or rendering, state layout, scale or sign of the
            action, initial layout). Or the recording is another one than the checkpoint's.
        UserError: the recording is not there, or the checkpoint does not fit.
    """
    from world_modality.policy.checkpoint import load_checkpoint
    from world_modality.system.device import resolve_device

    began = time.monotonic()
    device = resolve_device(config.device)
    checkpoint = load_checkpoint(path, device)
    recorded = RecordedDemonstrations.of(checkpoint, suite, config)
    comparison = _Comparison(
        recorded=recorded,
        inputs=PolicyInputs.of(checkpoint, suite, config),
        encoder=FrameEncoder.of(checkpoint, config, device),
        spread=_spread(checkpoint),
        state_std=checkpoint.model["state_norm.std"].cpu().numpy(),
        settings=_known_differences(recorded, suite),
    )
    episodes = []
    for episode in recorded.select(config.num_parity_episodes):
        replay = recorded.replay(suite, episode, comparison.inputs.state_key)
        episodes.append(comparison.of(replay))
        if episodes[-1].difference is not None:
            break
    report = ParityReport(
        recorded.source.name, suite.name, tuple(episodes), time.monotonic() - began
    )
    print(report.table())
    failed = episodes[-1]
    if failed.difference is not None:
        raise InvalidInputError(
            f"episode {failed.episode_index} ({failed.task}) of {report.dataset} does not come out "
            f"here as it was recorded. {failed.difference}. A policy trained on it would be shown "
            f"what it does not know; mend that, or {WAIVE}"
        )
    return report


@dataclass(frozen=True)
class _Comparison:
    recorded: RecordedDemonstrations
    inputs: PolicyInputs
    encoder: FrameEncoder
    spread: float
    state_std: np.ndarray
    settings: list[str]

    def of(self, replay: Replay) -> EpisodeParity:
        """Compare one episode."""
        states, here = self._states(replay)
        shown = replay.images[self.inputs.image_key]
        before = self.encoder.embed(list(replay.recorded_images))
        now = self.encoder.embed(list(shown))
        squared = np.square(before.astype(np.float32) - now.astype(np.float32)).sum(axis=1)
        distance = float(np.sqrt(squared.mean())) / self.spread
        same_size = shown.shape == replay.recorded_images.shape
        return EpisodeParity(
            episode_index=replay.episode.episode_index,
            task=replay.episode.task,
            num_frames=replay.episode.num_frames,
            state_difference=float(np.abs(states - here).max())
            if states.shape == here.shape
            else None,
            image_difference=ImageDifference.of(replay.recorded_images, shown).mean
            if same_size
            else None,
            embedding_distance=distance,
            token_agreement=float((self.encoder.tokens(before) == self.encoder.tokens(now)).mean()),
            recorded_success=replay.recorded_success,
            success=replay.success,
            difference=self._motion(replay)
            or self._view(replay, distance)
            or self._success(replay),
        )

    def _motion(self, replay: Replay) -> str | None:
        """Say what is wrong with states and layout."""
        states, here = self._states(replay)
        names = self._names(states.shape[1])
        if states.shape != here.shape:
            return state_layout(states, here, names)
        frame = first_difference(states, here, self.state_std)
        if frame is not None and (layout := state_layout(states, here, names)) is not None:
            return layout
        for key in set(replay.vectors) - set(joined_columns(self.inputs.state_key)):
            moved = np.abs(replay.recorded_vectors[key][0] - replay.vectors[key][0]).max()
            if moved > LAYOUT_TOLERANCE:
                return f"another initial layout: {key} differs by {moved:.3g} in the first frame"
        if frame == 0:
            return (
                "another initial state, or a state of other content: the robot's state differs by "
                f"{np.abs(states[0] - here[0]).max():.3g} in the first frame, and no order, sign "
                "or offset of its dimensions explains it"
            )
        return None if frame is None else action_effect(states, here, names, frame)

    def _view(self, replay: Replay, distance: float) -> str | None:
        """Say what is wrong with the images."""
        shown = replay.images[self.inputs.image_key]
        dtype = self.recorded.source.features[self.recorded.image_key]["dtype"]
        limit = IMAGE_TOLERANCE if dtype == "image" else VIDEO_TOLERANCE
        if (
            shown.shape == replay.recorded_images.shape
            and ImageDifference.of(replay.recorded_images, shown).mean <= limit
            and distance <= EMBEDDING_TOLERANCE
        ):
            return None
        cause = image_cause(
            replay.recorded_images, replay.images, self.inputs.image_key, self.settings
        )
        return f"{cause}; embeddings are {100 * distance:.0f} % of their spread apart"

    def _success(self, replay: Replay) -> str | None:
        """Say what is wrong with the outcome, where states and images agree."""
        if replay.success == replay.recorded_success:
            return None
        shown = replay.images[self.inputs.image_key]
        return success_cause(replay.success, ImageDifference.of(replay.recorded_images, shown))

    def _states(self, replay: Replay) -> tuple[np.ndarray, np.ndarray]:
        return (
            joined_vectors(replay.recorded_vectors, self.recorded.state_key),
            joined_vectors(replay.vectors, self.inputs.state_key),
        )

    def _names(self, dim: int) -> list[str]:
        key = self.recorded.state_key
        one_column = len(joined_columns(key)) == 1
        found = self.recorded.source.dim_names(key, dim) if one_column else None
        return found or [f"dimension {i}" for i in range(dim)]


def _spread(checkpoint: "Checkpoint") -> float:
    """Return the root mean square distance of training embeddings to their mean."""
    return float(checkpoint.model["embedding_norm.std"].square().sum().sqrt())


def _known_differences(recorded: RecordedDemonstrations, suite: Suite) -> list[str]:
    record = suite.record()
    pairs = [
        (recorded.recording.get("rendering", {}), record["rendering"]),
        (recorded.recording.get("software", {}), record["versions"]),
    ]
    return [text for before, now in pairs for text in differing_settings(before, now).values()]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
