import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.demos.destination import DemoDestination, DemoStaging
from benchmarks.demos.recorder import DemoRecorder
from benchmarks.demos.recording import EXECUTED_ACTION, OBJECT_HEIGHT, SUCCESS, read_signal
from benchmarks.metaworld.collect_demos import CollectDemosConfig, run
from benchmarks.metaworld.simulator import (
    ENVIRONMENT_STATE_NAMES,
    MetaworldRendering,
    MetaworldSimulator,
    MetaworldSuite,
)
from benchmarks.rendering import gl_backend
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


def command(config: CollectDemosConfig) -> list[str]:
    """Return the command line of a config."""
    flags = []
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, bool):
            flags += [f"--{name}" if value else f"--no_{name}"]
        elif isinstance(value, tuple):
            flags += [f"--{name}", *value]
        else:
            flags += [f"--{name}", str(value)]
    return [sys.executable, "-m", "benchmarks.metaworld.collect_demos", *flags]


def run_command(config: CollectDemosConfig) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(config), capture_output=True, text=True, check=False)


def at(root: Path, **changes) -> CollectDemosConfig:
    return dataclasses.replace(CONFIG, dataset_root=root, **changes)


def frames(root: Path) -> dict[str, list]:
    """Read a dataset's frames as stored: PNG bytes and numbers."""
    return pq.read_table(sorted((root / "data").rglob("*.parquet"))).to_pydict()


def recording(root: Path) -> dict:
    return json.loads((root / "meta" / "recording.json").read_text())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A dataset recorded through the command line with two workers."""
    root = tmp_path_factory.mktemp("recorded") / "reach"
    done = run_command(at(root))
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


def child_processes(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def staged_files(staging: DemoStaging) -> dict[str, tuple[int, int]]:
    finished = [path for path in staging.folder.rglob("attempt_*") if path.suffix != ".partial"]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished}


def test_lerobot_loads_the_recorded_keys_types_and_tasks(dataset):
    assert dataset.fps == 80
    assert dataset.num_episodes == 3
    frame = dataset[0]
    assert frame["task"] == TEXT
    described = {
        key: (tuple(frame[key].shape), str(frame[key].dtype))
        for key in frame
        if key.startswith(("observation", "action"))
    }
    assert described == {
        "observation.image": ((3, 64, 64), "torch.float32"),
        "observation.state": ((4,), "torch.float32"),
        "observation.environment_state": ((17,), "torch.float32"),
        "action": ((4,), "torch.float32"),
    }
    names = dataset.features["observation.environment_state"]["names"]
    assert tuple(names) == ENVIRONMENT_STATE_NAMES


def test_stored_actions_replay_to_the_stored_observations(recorded, dataset):
    rendering = MetaworldRendering.from_record(recording(recorded[0])["rendering"])
    simulator = MetaworldSimulator("reach-v3", rendering)
    columns = dataset.hf_dataset.with_format("numpy")
    for episode in recording(recorded[0])["episodes"]:
        simulator.reset(episode["initial_state"])
        rows = [
            index
            for index, number in enumerate(columns["episode_index"])
            if number == episode["episode_index"]
        ]
        assert len(rows) == episode["num_frames"]
        successes = []
        for row in rows:
            stored, observation = columns[row], simulator.observe()
            for key in ("observation.state", "observation.environment_state"):
                np.testing.assert_array_equal(stored[key], observation[key])
            image = np.asarray(stored["observation.image"])
            np.testing.assert_array_equal(image, observation["observation.image"])
            assert np.abs(stored["action"]).max() <= 1
            successes.append(simulator.step(stored["action"]))
        num_held = CONFIG.success_hold
        assert len(rows) == min(successes.index(True) + 1 + num_held, CONFIG.max_steps)
    simulator.close()


def test_signals_say_what_was_executed_and_when_the_task_was_solved(recorded):
    root = recorded[0]
    episodes = recording(root)["episodes"]
    num_frames = sum(episode["num_frames"] for episode in episodes)
    stored = frames(root)["action"]
    executed = read_signal(root, EXECUTED_ACTION, num_frames)
    np.testing.assert_array_equal(executed, np.stack(list(stored)))
    success = read_signal(root, SUCCESS, num_frames)[:, 0]
    ends = np.cumsum([episode["num_frames"] for episode in episodes]) - 1
    assert success[ends].all()
    assert not success[0]
    height = read_signal(root, OBJECT_HEIGHT, num_frames)[:, 0]
    seen = np.stack(frames(root)["observation.environment_state"])
    after = seen[:, ENVIRONMENT_STATE_NAMES.index("object_1_z")][1:]
    inside = np.delete(np.arange(num_frames - 1), ends[:-1])
    np.testing.assert_array_equal(height[:-1][inside], after[inside])


def test_lerobot_gives_the_pixels_that_the_simulator_rendered(recorded, dataset):
    record = recording(recorded[0])
    simulator = MetaworldSimulator("reach-v3", MetaworldRendering.from_record(record["rendering"]))
    simulator.reset(record["episodes"][0]["initial_state"])
    rendered = simulator.render()
    simulator.close()
    loaded = dataset[0]["observation.image"].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(loaded, rendered / 255, atol=1e-6)


def test_episodes_have_different_layouts(recorded):
    goals = {
        tuple(state[-3:])
        for state, first in zip(
            frames(recorded[0])["observation.environment_state"],
            frames(recorded[0])["frame_index"],
            strict=True,
        )
        if first == 0
    }
    assert len(goals) == 3


def test_only_solved_attempts_are_kept_and_the_others_counted(recorded):
    root, output = recorded
    record = recording(root)
    recorder = demo_recorder()
    attempts = [episode["attempt"] for episode in record["episodes"]]
    solved = [recorder.record("reach-v3", number) is not None for number in range(attempts[-1] + 1)]
    assert not all(solved), "choose a seed at which an attempt fails"
    assert attempts == [number for number, success in enumerate(solved) if success]
    task = record["tasks"]["reach-v3"]
    assert task["num_episodes"] == 3
    assert task["num_discarded"] == solved.count(False)
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
    assert record["config"]["seed"] == 3
    assert record["config"]["max_steps"] == 50
    assert record["config"]["action_noise"] == 0.0
    assert record["config"]["action_label"] == "executed"


def test_killed_recording_goes_on_without_recording_again(resumed):
    root, _, before, after = resumed
    assert before
    assert before == {name: after[name] for name in before}
    assert not DemoDestination(root).partial.exists()


def test_outcome_depends_neither_on_interruption_nor_on_the_number_of_workers(recorded, resumed):
    one, other = frames(recorded[0]), frames(resumed[0])
    assert one == other
    assert recording(recorded[0]) == recording(resumed[0])


def test_workers_end_with_a_killed_command(resumed):
    deadline = time.monotonic() + 10
    for worker in resumed[1]:
        while running(worker):
            assert time.monotonic() < deadline, f"process {worker} outlives its parent"
            time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


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


def test_finished_dataset_of_other_settings_is_refused_by_flag(recorded):
    done = run_command(at(recorded[0], seed=4))
    assert done.returncode == 1
    assert "--seed is 4 now and was 3" in done.stderr
    assert "--overwrite" in done.stderr


def test_unfinished_recording_of_other_settings_is_refused_by_flag(recorded, tmp_path):
    destination = DemoDestination(tmp_path / "demo")
    destination.staging.folder.mkdir()
    record = recording(recorded[0])
    destination.staging.begin({key: record[key] for key in ("config", "rendering", "software")})
    with pytest.raises(InvalidInputError, match=r"--action_noise is 0\.1 now and was 0\.0"):
        destination.staging.begin(
            {
                **{key: record[key] for key in ("rendering", "software")},
                "config": {**record["config"], "action_noise": 0.1},
            }
        )


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
    assert (tmp_path / "notes.txt").read_text() == "keep"
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


def test_unknown_task_names_the_nearest_first():
    done = run_command(dataclasses.replace(CONFIG, tasks=("push-v3", "pick-plase-v3")))
    assert done.returncode == 1
    assert "no task 'pick-plase-v3' in MetaWorld; there are: pick-place-v3," in done.stderr


@pytest.mark.parametrize(
    ("name", "value"), [("max_steps", 501), ("episodes_per_task", 0), ("action_noise", -1.0)]
)
def test_flag_out_of_range_is_refused(name, value):
    with pytest.raises(InvalidInputError, match=f"--{name} must be within"):
        run(dataclasses.replace(CONFIG, **{name: value}))


def demo_recorder(**changes) -> DemoRecorder:
    suite = MetaworldSuite(MetaworldRendering(image_size=64, gl_backend=gl_backend()))
    config = dataclasses.replace(CONFIG, **changes)
    return DemoRecorder(suite, config, {"reach-v3": TEXT}, "seeded")


def test_label_is_the_executed_or_the_experts_action():
    def record(**changes) -> dict[str, np.ndarray]:
        recorder = demo_recorder(max_steps=150, action_noise=0.3, **changes)
        episode = recorder.record("reach-v3", 0)
        assert episode is not None
        return episode.columns

    executed, expert = record(action_label="executed"), record(action_label="expert")
    for key in ("observation.image", "observation.state", "observation.environment_state"):
        np.testing.assert_array_equal(executed[key], expert[key])
    assert np.abs(executed["action"]).max() <= 1
    assert np.abs(expert["action"]).max() <= 1
    # The gripper's command is constant in this task, so all that varies in it is noise.
    assert np.ptp(expert["action"][:, 3]) == 0
    assert 0.2 < executed["action"][:, 3].std() < 0.4
