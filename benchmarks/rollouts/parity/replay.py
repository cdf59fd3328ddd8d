"""Recorded demonstrations, played again in a suite's simulator."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from benchmarks.demos.recording import EXECUTED_ACTION, SUCCESS, RecordedEpisode, read_signal
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.suite import Simulator, Suite
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.source.dataset_episodes import read_episodes
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_format import content_sha256
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingFileError

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

WAIVE = "waive the check with --no_check_parity"
_NUM_IMAGES = 8


@runtime_checkable
class SampledResets(Protocol):
    """A simulator whose demonstrations start in drawn states, not in the suite's stored ones.

    Its recordings say so: `layouts.reset` is `sampled`, and an episode's `initial_state` is a seed.
    """

    def reset_sampled(self, seed: int) -> None:
        """Start an episode in the state that the seed draws."""


@dataclass(frozen=True)
class Replay:
    """One episode as it was recorded and as it goes here.

    Attributes:
        episode: which one.
        image_frames: the k frames whose images are compared, frame 0 first.
        recorded_vectors: by dataset column, float32 [n, dim] of every frame.
        vectors: the same by observation key, as they are here.
        recorded_images: uint8 [k, H, W, 3] of the camera that the policy was trained on.
        images: uint8 [k, H, W, 3] of each camera here.
        recorded_success: whether the task was solved.
        success: whether it is solved here.
    """

    episode: RecordedEpisode
    image_frames: list[int]
    recorded_vectors: dict[str, np.ndarray] = field(repr=False)
    vectors: dict[str, np.ndarray] = field(repr=False)
    recorded_images: np.ndarray = field(repr=False)
    images: dict[str, np.ndarray] = field(repr=False)
    recorded_success: bool
    success: bool


@dataclass(frozen=True)
class RecordedDemonstrations:
    """The dataset that a checkpoint was trained on, with what a replay needs.

    Attributes:
        source: the dataset.
        recording: `meta/recording.json`.
        image_key: the camera that was trained on.
        state_key: the column of the robot's state that was trained on.
        executed_actions: float32 [N, A].
        successes: float32 [N, 1].
    """

    source: LeRobotSource
    recording: dict[str, Any] = field(repr=False)
    image_key: str
    state_key: str
    executed_actions: np.ndarray = field(repr=False)
    successes: np.ndarray = field(repr=False)

    @classmethod
    def of(
        cls, checkpoint: "Checkpoint", suite: Suite, config: RolloutConfig
    ) -> "RecordedDemonstrations":
        """Find the recording that a checkpoint was trained on.

        Raises:
            MissingFileError: it is not there, or it is none of this project.
            InvalidInputError: it is of another suite, another dataset, or without signals.
        """
        dataset = checkpoint.manifest["dataset"]
        name = dataset["name"]
        _require_recording(dataset.get("recording"), name, suite)
        try:
            source = open_dataset(
                name,
                dataset_root=config.dataset_root,
                image_key=dataset["image_key"],
                needs_images=True,
            )
            signals = [
                read_signal(source.root, signal, source.num_frames)
                for signal in (EXECUTED_ACTION, SUCCESS)
            ]
        except MissingFileError as error:
            raise MissingFileError(
                f"the parity check replays {name}, which the checkpoint was trained on: {error}. "
                f"Say where the recording lies with --dataset_root, or {WAIVE}"
            ) from error
        found = content_sha256(source.root, source.data_files, dataset["image_key"])
        if found != dataset["content_sha256"]:
            raise InvalidInputError(
                f"{source.root} is not the recording that the checkpoint was trained on (its "
                "content's SHA-256 differs): recorded anew since? Give that one's folder with "
                f"--dataset_root, or {WAIVE}"
            )
        _require_recording(source.recording, name, suite)
        assert source.recording is not None
        return cls(source, source.recording, dataset["image_key"], dataset["state_key"], *signals)

    def select(self, count: int) -> list[RecordedEpisode]:
        """Choose episodes spread over the tasks: one of each, or of evenly spaced ones.

        Raises:
            InvalidInputError: fewer than one is asked for.
        """
        if count < 1:
            raise InvalidInputError(
                f"--num_parity_episodes must be at least 1, not {count}; or {WAIVE}"
            )
        by_task: dict[str, list[RecordedEpisode]] = {}
        for entry in self.recording["episodes"]:
            by_task.setdefault(entry["task"], []).append(RecordedEpisode(**entry))
        tasks = list(by_task.values())
        if count < len(tasks):
            return [tasks[i * len(tasks) // count][0] for i in range(count)]
        ranked = [pair for episodes in tasks for pair in enumerate(episodes)]
        in_turn = sorted(ranked, key=lambda pair: pair[0])
        return [episode for _, episode in in_turn[:count]]

    def replay(self, suite: Suite, episode: RecordedEpisode, state_key: str) -> Replay:
        """Execute an episode's recorded actions and keep what is seen meanwhile.

        Args:
            suite: whose simulator plays it.
            episode: one of the recording's.
            state_key: what the policy is shown as the robot's state.
        """
        rows = self._rows_of(episode)
        frames = np.unique(np.linspace(0, episode.num_frames - 1, _NUM_IMAGES).round())
        image_frames = [int(frame) for frame in frames]
        shared = [key for key in suite.state_keys if key in self.source.features]
        vectors = list(dict.fromkeys([*joined_columns(state_key), *shared]))
        seen, solved = self._play(suite, episode, self.executed_actions[rows], image_frames)
        return Replay(
            episode=episode,
            image_frames=image_frames,
            recorded_vectors=self._columns([*joined_columns(self.state_key), *shared], rows),
            vectors={key: np.stack([frame[key] for frame in seen]) for key in vectors},
            recorded_images=frames_at(
                self.source, self.image_key, rows.start + np.array(image_frames)
            ),
            images={
                key: np.stack([seen[i][key] for i in image_frames]) for key in suite.image_keys
            },
            recorded_success=bool(self.successes[rows].any()),
            success=solved,
        )

    def _rows_of(self, episode: RecordedEpisode) -> slice:
        episodes = read_episodes(self.source)
        found = episodes.positions_of([episode.episode_index]).tolist()
        lengths = episodes.lengths[found].tolist()
        if lengths != [episode.num_frames]:
            raise InvalidInputError(
                f"meta/recording.json in {self.source.root} says that episode "
                f"{episode.episode_index} has {episode.num_frames} frames, but the data have "
                f"{lengths[0] if lengths else 'none'}; record the dataset again, or {WAIVE}"
            )
        return slice(int(episodes.starts[found[0]]), int(episodes.ends[found[0]]))

    def _play(
        self,
        suite: Suite,
        episode: RecordedEpisode,
        actions: np.ndarray,
        image_frames: Sequence[int],
    ) -> tuple[list[dict[str, np.ndarray]], bool]:
        simulator = suite.open(episode.task)
        solved = False
        seen: list[dict[str, np.ndarray]] = []
        try:
            self._reset(simulator, episode.initial_state)
            for frame, action in enumerate(actions):
                observation = simulator.observe()
                kept = suite.state_keys if frame not in image_frames else observation.keys()
                seen.append({key: np.array(observation[key]) for key in kept})
                solved |= simulator.step(action)
        finally:
            simulator.close()
        return seen, solved

    def _reset(self, simulator: Simulator, initial_state: int) -> None:
        if self.recording["layouts"].get("reset") != "sampled":
            simulator.reset(initial_state)
            return
        assert isinstance(simulator, SampledResets), "only LIBERO's recordings say sampled"
        simulator.reset_sampled(initial_state)

    def _columns(self, keys: list[str], rows: slice) -> dict[str, np.ndarray]:
        blocks = list(self.source.columns(list(dict.fromkeys(keys))))
        return {
            key: np.concatenate([block[key] for block in blocks])[rows].astype(np.float32)
            for key in blocks[0]
        }


def _require_recording(recording: dict[str, Any] | None, name: str, suite: Suite) -> None:
    if recording is None or not {"suite", "layouts", "tasks"} <= set(recording):
        raise MissingFileError(
            f"the parity check replays {name}, which the checkpoint was trained on, but no "
            f"collect_demos of this project recorded it, so that it cannot be replayed; {WAIVE}"
        )
    recorded = recording["suite"]["name"]
    if recorded != suite.name:
        raise InvalidInputError(
            f"the parity check replays {name}, but it was recorded in {recorded}, not in "
            f"{suite.name}; {WAIVE}"
        )
