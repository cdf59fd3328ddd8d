"""MetaWorld from two cameras: recorded, checked against the recording, and rolled out."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.metaworld.cameras import MetaworldRendering
from benchmarks.metaworld.eval_metaworld_success import EvalMetaworldConfig, run
from benchmarks.metaworld.simulator import MetaworldSimulator, MetaworldSuite
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.parity.check import EpisodeParity, check_parity
from benchmarks.suite import Observation, Suite
from tests.demos.conftest import described, frames, recording
from tests.fixtures.metaworld import DATASET_NAME, TASKS, VIEW_KEYS, record_two_views
from world_modality.system.errors import InvalidInputError, MissingKeyError

TOPVIEW = VIEW_KEYS[1]


@dataclasses.dataclass(frozen=True)
class RecordedViews:
    """Where the recording lies, how its images were made, and a policy trained on it."""

    root: Path
    rendering: MetaworldRendering
    checkpoint: Path

    def check(self, suite: Suite, root: Path | None = None, **flags) -> list[EpisodeParity]:
        root = root or self.root
        settings: dict[str, Any] = {"dataset_root": root, "num_parity_episodes": 1, **flags}
        config = RolloutConfig(checkpoint=(self.checkpoint,), device="cpu", **settings)
        return check_parity(self.checkpoint, suite, config)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> RecordedViews:
    folder = tmp_path_factory.mktemp("views")
    made = record_two_views(folder)
    rendering = MetaworldRendering.from_record(recording(made.dataset_root)["rendering"])
    checkpoint = made.train(folder / "logs", "C", use_language=False)
    return RecordedViews(made.dataset_root, rendering, checkpoint)


@dataclasses.dataclass(frozen=True)
class TurnedSuite(MetaworldSuite):
    """Shows the second camera upside down, or each camera what the other sees."""

    swaps: bool = False

    def open(self, task: str) -> MetaworldSimulator:
        return _TurnedSimulator(task, self)


class _TurnedSimulator(MetaworldSimulator):
    def __init__(self, task: str, suite: TurnedSuite) -> None:
        super().__init__(task, suite.rendering)
        self._swaps = suite.swaps

    def observe(self) -> Observation:
        seen = super().observe()
        first, second = (seen[key] for key in VIEW_KEYS)
        if self._swaps:
            return {**seen, VIEW_KEYS[0]: second, TOPVIEW: first}
        return {**seen, TOPVIEW: np.ascontiguousarray(second[::-1])}


def test_each_camera_is_a_feature_of_the_dataset(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(DATASET_NAME, root=recorded.root)
    shapes = described(dataset[0])
    assert [key for key in shapes if "image" in key] == list(VIEW_KEYS)
    assert {shapes[key] for key in VIEW_KEYS} == {((3, 48, 48), "torch.float32")}
    (episode, _) = recording(recorded.root)["episodes"]
    simulator = MetaworldSuite(recorded.rendering).open(TASKS[0])
    simulator.reset(episode["initial_state"])
    seen = simulator.observe()
    simulator.close()
    for key in VIEW_KEYS:
        stored = (dataset[0][key].permute(1, 2, 0).numpy() * 255).round()
        np.testing.assert_array_equal(stored, seen[key])
    assert not np.array_equal(*(seen[key] for key in VIEW_KEYS))
    record = recording(recorded.root)
    assert record["rendering"]["further_cameras"] == {
        "topview": {"position": None, "flip_axes": []}
    }
    assert not {"camera", "camera_position", "rendering"} & set(record["config"])
    assert len(frames(recorded.root)["index"]) == sum(e["num_frames"] for e in record["episodes"])


def test_the_recording_replays_exactly_and_a_turned_camera_is_named(recorded):
    (same,) = recorded.check(MetaworldSuite(recorded.rendering))
    assert (same.state_difference, same.image_difference, same.embedding_distance) == (0, 0, 0)
    assert (same.token_agreement, same.difference) == (1, None)
    with pytest.raises(InvalidInputError, match=rf"{TOPVIEW}: flip: .* flipped vertically"):
        recorded.check(TurnedSuite(recorded.rendering))
    message = f"{VIEW_KEYS[0]}: camera: the policy is shown {VIEW_KEYS[0]}, but {TOPVIEW} matches"
    with pytest.raises(InvalidInputError, match=message):
        recorded.check(TurnedSuite(recorded.rendering, swaps=True))


def test_a_recording_of_fewer_cameras_than_the_policy_has_views_is_refused(recorded, tmp_path):
    root = shutil.copytree(recorded.root, tmp_path / "one_camera")
    path = root / "meta" / "info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    del info["features"][TOPVIEW]
    path.write_text(json.dumps(info), encoding="utf-8")
    message = rf"trained on \({', '.join(VIEW_KEYS)}\), but .*no camera '{TOPVIEW}'.*--dataset_root"
    with pytest.raises(MissingKeyError, match=message):
        recorded.check(MetaworldSuite(recorded.rendering), root)


def test_a_suite_of_fewer_cameras_than_the_policy_has_views_is_refused(recorded):
    suite = MetaworldSuite(MetaworldRendering(image_size=48))
    with pytest.raises(MissingKeyError, match=f"but suite metaworld has no {TOPVIEW}; there are"):
        recorded.check(suite)


def test_the_evaluation_opens_the_checkpoints_cameras_and_films_them(recorded, tmp_path):
    config = EvalMetaworldConfig(
        checkpoint=(recorded.checkpoint,),
        out_dir=tmp_path / "rollouts",
        n_trials=1,
        env_num=1,
        max_steps=10,
        dataset_root=recorded.root,
        num_parity_episodes=1,
        save_videos=True,
        corrupt_world="uniform",
        corrupt_slot=1,
        device="cpu",
    )
    run(config)
    (line,) = (tmp_path / "rollouts" / "results.jsonl").read_text("utf-8").splitlines()
    result = json.loads(line)
    assert result["error"] is None
    assert result["policy"]["image_keys"] == list(VIEW_KEYS)
    assert result["world_corruption"] == "uniform@1"
    assert "topview" in result["rendering"]["further_cameras"]
    (video,) = (tmp_path / "rollouts").rglob("*.mp4")
    with av.open(str(video)) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == (96, 48)
