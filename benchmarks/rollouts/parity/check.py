"""The gate before a rollout: recorded demonstrations, replayed here, have to come out the same.

A flipped image or a permuted state costs a policy its success without raising an error.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.rollouts.acting.frame_encoder import FrameEncoder
from benchmarks.rollouts.acting.suite_fit import PolicyInputs, differing_settings, joined_vectors
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.parity.findings import (
    IMAGE_TOLERANCE,
    LAYOUT_TOLERANCE,
    VIDEO_TOLERANCE,
    ImageDifference,
    action_effect,
    first_difference,
    image_cause,
    state_layout,
    success_cause,
)
from benchmarks.rollouts.parity.replay import WAIVE, RecordedDemonstrations, Replay
from benchmarks.rollouts.suite import Suite
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.system.errors import InvalidInputError

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
