import dataclasses
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.demos.destination import DemoDestination, DemoStaging
from benchmarks.demos.recorder import DemoRecorder
from benchmarks.demos.recording import EXECUTED_ACTION, OBJECT_HEIGHT, SUCCESS, read_signal
from benchmarks.metaworld.cameras import MetaworldRendering
from benchmarks.metaworld.collect_demos import CollectDemosConfig, run
from benchmarks.metaworld.simulator import (
    ENVIRONMENT_STATE_NAMES,
    MetaworldSimulator,
    MetaworldSuite,
)
from benchmarks.rendering import gl_backend
from tests.demos.conftest import (
    child_processes,
    described,
    frames,
    recording,
    wait_until_ended,
)
from world_modality.system.cli import flag_arguments
from world_modality.system.errors import InvalidInputError

# At this seed the expert needs 49, 60, 41 and 36 steps in its first attempts: with 50 one fails.
CONFIG = CollectDemosConfig(
    dataset_name="local/reach",
    tasks=("reach-v3",),
    episodes_per_task=3,
    seed=3,
    max_steps=50,
    success_hold=2,
    image_size=64,
    num_workers=2,
)
TEXT = "Reach a goal position"
RENDERING = MetaworldRendering(image_size=64, gl_backend=gl_backend())
KEYS = ("observation.image", "observation.state", "observation.environment_state")


def command(config: CollectDemosConfig) -> list[str]:
    """Return the command line of a config."""
    flags = flag_arguments({**dataclasses.asdict(config), "tasks": list(config.tasks)})
    return [sys.executable, "-m", "benchmarks.metaworld.collect_demos", *flags]


def at(root: Path, **changes) -> CollectDemosConfig:
    return dataclasses.replace(CONFIG, dataset_root=root, **changes)


def demo_recorder(**changes) -> DemoRecorder:
    config = dataclasses.replace(CONFIG, **changes)
    return DemoRecorder(MetaworldSuite(RENDERING), config, {"reach-v3": TEXT}, "seeded")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A dataset recorded through the command line with two workers."""
    root = tmp_path_factory.mktemp("recorded") / "reach"
    done = subprocess.run(command(at(root)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


@pytest.fixture(scope="module")
def dataset(recorded):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/reach", root=recorded[0])


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The same recording by one worker, killed after its first staged episode and begun again."""
    root = tmp_path_factory.mktemp("resumed") / "reach"
    config = at(root, num_workers=1)
    staging = DemoDestination(root).staging
    process = subprocess.Popen(command(config), stderr=subprocess.DEVNULL)
    while not any(staging.outcomes("reach-v3").values()):
        assert process.poll() is None, "the command ended before it staged an episode"
        time.sleep(0.02)
    workers = child_processes(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = staged_files(staging)
    # What a command leaves that is killed while it assembles.
    (DemoDestination(root).partial / "data").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DemoStaging, "remove", lambda self: None)
        run(config)
    return root, workers, before, staged_files(staging)


def staged_files(staging: DemoStaging) -> dict[str, tuple[int, int]]:
    finished = [path for path in staging.folder.rglob("attempt_*") if path.suffix != ".partial"]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished}


def test_lerobot_loads_the_recorded_keys_types_and_tasks(dataset):
    assert (dataset.fps, dataset.num_episodes) == (80, 3)
    assert dataset[0]["task"] == TEXT
    assert described(dataset[0]) == {
        "observation.image": ((3, 64, 64), "torch.float32"),
        "observation.state": ((4,), "torch.float32"),
        "observation.environment_state": ((17,), "torch.float32"),
        "action": ((4,), "torch.float32"),
    }
    names = dataset.features["observation.environment_state"]["names"]
    assert tuple(names) == ENVIRONMENT_STATE_NAMES


def test_stored_actions_replay_to_the_stored_observations(recorded, dataset):
    record = recording(recorded[0])
    simulator = MetaworldSimulator("reach-v3", MetaworldRendering.from_record(record["rendering"]))
    columns = dataset.hf_dataset.with_format("numpy")
    for episode in record["episodes"]:
        simulator.reset(episode["initial_state"])
        rows = np.flatnonzero(np.array(columns["episode_index"]) == episode["episode_index"])
        assert len(rows) == episode["num_frames"]
        successes = []
        for row in rows.tolist():
            stored, observation = columns[row], simulator.observe()
            for key in KEYS:
                np.testing.assert_array_equal(np.asarray(stored[key]), observation[key])
            assert np.abs(stored["action"]).max() <= 1
            successes.append(simulator.step(stored["action"]))
        num_frames = successes.index(True) + 1 + CONFIG.success_hold
        assert len(rows) == min(num_frames, CONFIG.max_steps)
    simulator.close()


def test_signals_say_what_was_executed_and_when_the_task_was_solved(recorded):
    root, stored = recorded[0], frames(recorded[0])
    lengths = [episode["num_frames"] for episode in recording(root)["episodes"]]
    ends, num_frames = np.cumsum(lengths) - 1, sum(lengths)
    executed = read_signal(root, EXECUTED_ACTION, num_frames)
    np.testing.assert_array_equal(executed, np.stack(stored["action"]))
    success = read_signal(root, SUCCESS, num_frames)[:, 0]
    assert success[ends].all()
    assert not success[0]
    height = read_signal(root, OBJECT_HEIGHT, num_frames)[:, 0]
    seen = np.stack(stored["observation.environment_state"])
    after = seen[:, ENVIRONMENT_STATE_NAMES.index("object_1_z")][1:]
    inside = np.delete(np.arange(num_frames - 1), ends[:-1])
    np.testing.assert_array_equal(height[:-1][inside], after[inside])


def test_only_solved_attempts_are_kept_and_the_others_counted(recorded):
    root, output = recorded
    record, recorder = recording(root), demo_recorder()
    attempts = [episode["attempt"] for episode in record["episodes"]]
    solved = [recorder.record("reach-v3", number) is not None for number in range(attempts[-1] + 1)]
    assert not all(solved), "choose a seed at which an attempt fails"
    assert attempts == [number for number, success in enumerate(solved) if success]
    task = record["tasks"]["reach-v3"]
    assert (task["num_episodes"], task["num_discarded"]) == (3, solved.count(False))
    assert task["num_frames"] == sum(episode["num_frames"] for episode in record["episodes"])
    assert len(frames(root)["index"]) == task["num_frames"]
    row = next(line.split() for line in output.splitlines() if line.startswith("reach-v3"))
    assert row[1:4] == ["3", str(task["num_frames"]), str(task["num_discarded"])]
    assert str(root) in output


def test_record_says_how_the_frames_were_made(recorded):
    record = recording(recorded[0])
    assert record["rendering"] == {
        "camera": "corner2",
        "camera_position": [0.75, 0.075, 0.7],
        "flip_axes": [0, 1],
        "image_size": 64,
        "offsamples": 0,
        "shadows": False,
        "reflections": False,
        "gl_backend": gl_backend(),
    }
    assert set(record["software"]) == {"metaworld", "mujoco"}
    expected = {"seed": 3, "max_steps": 50, "action_noise": 0.0, "action_label": "executed"}
    assert {name: record["config"][name] for name in expected} == expected
    assert len({episode["initial_state"] for episode in record["episodes"]}) == 3


def test_killed_recording_continues_to_the_same_dataset_without_recording_again(recorded, resumed):
    root, workers, before, after = resumed
    assert before
    assert before == {name: after[name] for name in before}
    assert not DemoDestination(root).partial.exists()
    assert frames(recorded[0]) == frames(root)
    assert recording(recorded[0]) == recording(root)
    wait_until_ended(workers, 10)


def test_nothing_is_left_beside_the_dataset(recorded):
    root = recorded[0]
    assert [path.name for path in root.parent.iterdir()] == ["reach"]
    assert sorted(path.name for path in root.iterdir()) == ["data", "meta"]


def test_finished_dataset_is_left_alone_by_the_same_command(recorded, capsys):
    before = {path: path.stat().st_mtime_ns for path in recorded[0].rglob("*")}
    # A command that is killed right after it gave the dataset its name leaves its staged attempts.
    staging = DemoDestination(recorded[0]).staging
    staging.save("reach-v3", 0, None)
    run(at(recorded[0], num_workers=1))
    assert not staging.folder.exists()
    assert "already recorded" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in recorded[0].rglob("*")}


def test_recordings_of_other_settings_are_refused_by_flag(recorded, tmp_path):
    with pytest.raises(InvalidInputError, match=r"--seed is 4 now and was 3.*--overwrite"):
        run(at(recorded[0], seed=4))
    recipe = {key: recording(recorded[0])[key] for key in ("config", "rendering", "software")}
    unfinished = DemoDestination(tmp_path / "demo").staging
    unfinished.begin(recipe)
    with pytest.raises(InvalidInputError, match=r"--action_noise is 0\.1 now and was 0\.0"):
        unfinished.begin({**recipe, "config": {**recipe["config"], "action_noise": 0.1}})


def test_second_command_into_the_same_folder_is_refused(tmp_path):
    destination = DemoDestination(tmp_path / "demo")
    with (
        destination.staging.lock(),
        pytest.raises(InvalidInputError, match=r"--dataset_root: .*demo\.staging is being written"),
    ):
        run(at(destination.root))


def test_folder_that_is_no_recording_is_neither_used_nor_deleted(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(InvalidInputError, match="not recorded by this project"):
        run(at(tmp_path))
    with pytest.raises(InvalidInputError, match="deletes nothing else"):
        run(at(tmp_path, overwrite=True))
    assert (tmp_path / "notes.txt").read_text("utf-8") == "keep"
    shutil.rmtree(DemoDestination(tmp_path).staging.folder)


def test_overwrite_deletes_the_dataset_and_the_staged_attempts(recorded, tmp_path):
    root = tmp_path / "reach"
    shutil.copytree(recorded[0], root)
    staging = DemoDestination(root).staging
    staging.save("reach-v3", 0, None)
    with pytest.raises(InvalidInputError, match="0 of 3 attempts"):
        run(at(root, overwrite=True, max_steps=5, max_attempts_per_episode=1))
    assert not root.exists()
    assert staging.outcomes("reach-v3") == {0: False, 1: False, 2: False}


@pytest.mark.parametrize(
    ("name", "value"), [("max_steps", 501), ("episodes_per_task", 0), ("action_noise", -1.0)]
)
def test_flag_out_of_range_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"--{name} must be within"):
        run(dataclasses.replace(CONFIG, **{name: value}))


def test_label_is_the_executed_or_the_experts_action():
    executed, expert = (
        demo_recorder(max_steps=150, action_noise=0.3, action_label=label)
        .record("reach-v3", 0)
        .columns
        for label in ("executed", "expert")
    )
    for key in KEYS:
        np.testing.assert_array_equal(executed[key], expert[key])
    assert np.abs(executed["action"]).max() <= 1
    assert np.abs(expert["action"]).max() <= 1
    # The gripper's command is constant in this task, so all that varies in it is noise.
    assert np.ptp(expert["action"][:, 3]) == 0
    assert 0.2 < executed["action"][:, 3].std() < 0.4
