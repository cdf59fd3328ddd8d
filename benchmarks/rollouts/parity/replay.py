"""Recorded demonstrations, played again in a suite's simulator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.demos.recorder import reset_demonstration
from benchmarks.demos.recording import EXECUTED_ACTION, SUCCESS, RecordedEpisode, read_signal
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.suite_fit import joined_vectors
from benchmarks.suite import Suite
from world_modality.cache.contract import image_keys_of
from world_modality.precompute.dataset_columns import joined_columns
from world_modality.source.dataset_episodes import read_episodes
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_format import content_sha256
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingFileError, MissingKeyError

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

WAIVE = "waive the check with --no_check_parity"
_NUM_IMAGES = 8


@dataclass(frozen=True)
class Playback:
    """One episode, as it was recorded or as it goes here.

    Attributes:
        states: float32 [n, S], the robot's state in every frame.
        scene: by key, the other vectors of the first frame that recording and suite both have.
        images: by camera, uint8 [k, H, W, 3] of the compared frames, frame 0 first.
        success: whether the task was solved.
    """

    states: np.ndarray
    scene: dict[str, np.ndarray]
    images: dict[str, np.ndarray]
    success: bool


@dataclass(frozen=True)
class RecordedDemonstrations:
    """The dataset that a checkpoint was trained on, with what a replay needs.

    Attributes:
        source: the dataset.
        recording: `meta/recording.json`.
        image_keys: the cameras that were trained on.
        state_key: the column of the robot's state that was trained on.
        executed_actions: float32 [N, A].
        successes: float32 [N, 1].
    """

    source: LeRobotSource
    recording: dict[str, Any] = field(repr=False)
    image_keys: tuple[str, ...]
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
            MissingKeyError: it has fewer cameras than the checkpoint has views.
            InvalidInputError: it is of another suite, another dataset, or without signals.
        """
        dataset = checkpoint.manifest["dataset"]
        name, image_keys = dataset["name"], tuple(image_keys_of(dataset))
        _require_recording(dataset.get("recording"), name, suite)
        try:
            source = open_dataset(
                name,
                dataset_root=config.dataset_root,
                image_keys=image_keys,
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
        except MissingKeyError as error:
            raise MissingKeyError(
                f"the parity check replays {name} before the cameras that the checkpoint was "
                f"trained on ({', '.join(image_keys)}), but {error}. Say where the recording with "
                f"all of them lies with --dataset_root, or {WAIVE}"
            ) from error
        found = content_sha256(source.root, source.data_files, image_keys)
        if found != dataset["content_sha256"]:
            raise InvalidInputError(
                f"{source.root} is not the recording that the checkpoint was trained on (its "
                "content's SHA-256 differs): recorded again since? Give that one's folder with "
                f"--dataset_root, or {WAIVE}"
            )
        _require_recording(source.recording, name, suite)
        assert source.recording is not None
        return cls(source, source.recording, image_keys, dataset["state_key"], *signals)

    def replay(
        self, suite: Suite, episode: RecordedEpisode, state_key: str
    ) -> tuple[Playback, Playback]:
        """Return an episode as it was recorded, and as its recorded actions go here.

        `state_key` is what the policy is shown as the robot's state.
        """
        rows = self._rows_of(episode)
        frames = np.unique(np.linspace(0, len(rows) - 1, _NUM_IMAGES).round().astype(np.int64))
        state_keys = joined_columns(state_key)
        scene_keys = [
            key for key in suite.state_keys if key in self.source.features and key not in state_keys
        ]
        columns = self._columns([*joined_columns(self.state_key), *scene_keys], rows)
        recorded = Playback(
            states=joined_vectors(columns, self.state_key),
            scene={key: columns[key][0] for key in scene_keys},
            images={k: frames_at(self.source, k, rows[frames]) for k in self.image_keys},
            success=bool(self.successes[rows].any()),
        )
        states: list[np.ndarray] = []
        scene: dict[str, np.ndarray] = {}
        images: dict[str, list[np.ndarray]] = {key: [] for key in suite.image_keys}
        solved = False
        simulator = suite.open(episode.task)
        try:
            reset_demonstration(simulator, self.recording["layouts"], episode.initial_state)
            for frame, action in enumerate(self.executed_actions[rows]):
                seen = simulator.observe()
                states.append(joined_vectors(seen, state_key))
                if frame == 0:
                    scene = {key: np.array(seen[key]) for key in scene_keys}
                for key in suite.image_keys if frame in frames else ():
                    images[key].append(np.array(seen[key]))
                solved |= simulator.step(action)
        finally:
            simulator.close()
        stacked = {key: np.stack(array) for key, array in images.items()}
        return recorded, Playback(np.stack(states), scene, stacked, solved)

    def _rows_of(self, episode: RecordedEpisode) -> np.ndarray:
        episodes = read_episodes(self.source)
        found = episodes.positions_of([episode.episode_index]).tolist()
        lengths = episodes.lengths[found].tolist()
        if lengths != [episode.num_frames]:
            raise InvalidInputError(
                f"meta/recording.json in {self.source.root} says that episode "
                f"{episode.episode_index} has {episode.num_frames} frames, but the data have "
                f"{lengths[0] if lengths else 'none'}; record the dataset again, or {WAIVE}"
            )
        return np.arange(episodes.starts[found[0]], episodes.ends[found[0]])

    def _columns(self, keys: list[str], rows: np.ndarray) -> dict[str, np.ndarray]:
        blocks = list(self.source.columns(list(dict.fromkeys(keys))))
        return {
            key: np.concatenate([block[key] for block in blocks])[rows].astype(np.float32)
            for key in blocks[0]
        }


def spread_episodes(recording: Mapping[str, Any], count: int) -> list[RecordedEpisode]:
    """Choose episodes spread over the tasks: one of each, or of evenly spaced ones.

    Raises:
        InvalidInputError: fewer than one is asked for.
    """
    if count < 1:
        raise InvalidInputError(
            f"--num_parity_episodes must be at least 1, not {count}; or {WAIVE}"
        )
    by_task: dict[str, list[RecordedEpisode]] = {}
    for entry in recording["episodes"]:
        by_task.setdefault(entry["task"], []).append(RecordedEpisode(**entry))
    tasks = list(by_task.values())
    if count < len(tasks):
        return [tasks[i * len(tasks) // count][0] for i in range(count)]
    in_turn = [episode for turn in zip_longest(*tasks) for episode in turn if episode]
    return in_turn[:count]


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
