import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.demos.recording import RecordedEpisode
from benchmarks.metaworld.cameras import IMAGE_KEY, MetaworldRendering
from benchmarks.metaworld.simulator import (
    ENVIRONMENT_STATE_KEY,
    STATE_KEY,
    MetaworldSimulator,
    MetaworldSuite,
)
from benchmarks.rendering import gl_backend
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.parity.check import (
    EpisodeParity,
    action_effect,
    check_parity,
    first_difference,
    image_cause,
    parity_table,
    state_layout,
)
from benchmarks.rollouts.parity.replay import spread_episodes
from benchmarks.suite import Observation, Suite
from tests.fixtures.metaworld import TASKS, RecordedRun, record_two_tasks
from world_modality.policy.checkpoint import load_checkpoint, save_checkpoint
from world_modality.system.errors import InvalidInputError, MissingFileError

CPU = torch.device("cpu")
SIDE_KEY = "observation.side"
RENDERING = MetaworldRendering(image_size=48, gl_backend=gl_backend())
NAMES = ["x", "y", "z", "gripper"]


@dataclasses.dataclass(frozen=True)
class Fault:
    """What is wrong with a simulator that is otherwise MetaWorld's own."""

    rendering: MetaworldRendering = RENDERING
    see: Callable[[Observation], Observation] = dict
    act: Callable[[np.ndarray], np.ndarray] = np.array
    shift_layout: int = 0
    never_succeeds: bool = False
    image_keys: Sequence[str] = (IMAGE_KEY,)
    state_keys: Sequence[str] = (STATE_KEY, ENVIRONMENT_STATE_KEY)
    only_sampled_resets: bool = False


class FaultySimulator(MetaworldSimulator):
    """The real simulator behind a fault."""

    def __init__(self, task: str, fault: Fault) -> None:
        super().__init__(task, fault.rendering)
        self._fault = fault

    def reset(self, initial_state: int) -> None:
        assert not self._fault.only_sampled_resets
        super().reset(initial_state + self._fault.shift_layout)

    def reset_sampled(self, seed: int) -> None:
        super().reset(seed)

    def observe(self) -> Observation:
        return self._fault.see(super().observe())

    def step(self, action: np.ndarray) -> bool:
        solved = super().step(self._fault.act(action).astype(np.float32))
        return solved and not self._fault.never_succeeds


@dataclasses.dataclass(frozen=True)
class FaultySuite(MetaworldSuite):
    """Says that it is MetaWorld in the recorded rendering, whatever it does."""

    fault: Fault = Fault()

    def open(self, task: str) -> FaultySimulator:
        return FaultySimulator(task, self.fault)


def faulty(fault: Fault, **changes) -> FaultySuite:
    image_keys, state_keys = fault.image_keys, fault.state_keys
    return FaultySuite(
        RENDERING, image_keys=image_keys, state_keys=state_keys, fault=fault, **changes
    )


def seeing(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Observation], Any]:
    return lambda seen: {**seen, key: np.ascontiguousarray(change(seen[key]))}


def beside_another_camera(seen: Observation) -> Observation:
    return {**seen, IMAGE_KEY: np.roll(seen[IMAGE_KEY], 20, axis=1), SIDE_KEY: seen[IMAGE_KEY]}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[RecordedRun, Path]:
    folder = tmp_path_factory.mktemp("recorded")
    run = record_two_tasks(folder)
    return run, run.train(folder / "logs", "C", use_language=False)


def check(
    recorded, suite: Suite | None = None, path: Path | None = None, **flags
) -> list[EpisodeParity]:
    run, checkpoint = recorded
    path = path or checkpoint
    settings = {"dataset_root": run.dataset_root, "num_parity_episodes": 1, **flags}
    config = RolloutConfig(checkpoint=(path,), device="cpu", **settings)
    return check_parity(path, suite or MetaworldSuite(RENDERING), config)


def with_dataset(recorded, folder: Path, **entries) -> Path:
    """Write a copy of the checkpoint whose manifest says something else of its dataset."""
    stored = load_checkpoint(recorded[1], CPU)
    dataset = {**stored.manifest["dataset"], **entries}
    manifest = {**stored.manifest, "dataset": dataset}
    save_checkpoint(folder / "copy.pt", dataclasses.replace(stored, manifest=manifest))
    return folder / "copy.pt"


def test_a_recording_replays_exactly_where_it_was_made(recorded, capsys):
    episodes = check(recorded, num_parity_episodes=3)
    assert [one.episode.task for one in episodes] == [TASKS[0], TASKS[1], TASKS[0]]
    for one in episodes:
        assert (one.state_difference, one.image_difference, one.embedding_distance) == (0, 0, 0)
        assert (one.token_agreement, one.success, one.recorded_success) == (1, True, True)
        assert one.difference is None
    assert parity_table(episodes) in capsys.readouterr().out


DRAWN_OTHERWISE = dataclasses.replace(RENDERING, shadows=True)
DIFFERENCES = [
    (Fault(see=seeing(IMAGE_KEY, lambda i: i[::-1])), "flip: .*one flipped vertically"),
    (Fault(see=seeing(STATE_KEY, lambda s: s[[2, 1, 0, 3]])), "state layout: .*hand_x is hand_z"),
    (Fault(act=lambda a: a * 0.5), r"scale of the action: .*robot moves 0\.[3-7]\d times as far"),
    (Fault(rendering=DRAWN_OTHERWISE), "rendering: images are alike"),
    (Fault(shift_layout=1), "another initial layout: observation.environment_state"),
]
FURTHER_DIFFERENCES = [
    (Fault(see=seeing(IMAGE_KEY, lambda i: i[:, ::-1])), "flip: .*flipped horizontally"),
    (Fault(see=seeing(IMAGE_KEY, lambda i: i[::-1, ::-1])), "flip: .*turned by 180 degrees"),
    (Fault(see=seeing(STATE_KEY, lambda s: -s)), "state layout: .*hand_x is -hand_x"),
    (Fault(see=seeing(STATE_KEY, lambda s: s + 0.1)), r"hand_y is hand_y - 0\.1 here"),
    (Fault(see=seeing(STATE_KEY, lambda s: s[:3])), "state has 3 dimensions here and 4"),
    (Fault(act=lambda a: a * [-1, 1, 1, 1]), "sign of the action: .*backwards in hand_x"),
    (Fault(act=np.zeros_like), "scale of the action: .*does not move here"),
    (
        Fault(see=beside_another_camera, image_keys=(IMAGE_KEY, SIDE_KEY)),
        "camera: the policy is shown observation.image, but observation.side matches",
    ),
    (
        Fault(rendering=dataclasses.replace(RENDERING, image_size=64)),
        "resolution: images are 64x64 here and 48x48",
    ),
    (
        Fault(rendering=dataclasses.replace(RENDERING, offsamples=4)),
        "rendering: images are alike but not equal",
    ),
    (Fault(never_succeeds=True), "success: the task is not solved here, but in the recording"),
]


@pytest.mark.parametrize(
    ("fault", "message"),
    [*DIFFERENCES, *(pytest.param(*one, marks=pytest.mark.slow) for one in FURTHER_DIFFERENCES)],
)
def test_the_difference_is_named(recorded, fault, message):
    with pytest.raises(InvalidInputError, match=message) as refused:
        check(recorded, faulty(fault))
    assert "--no_check_parity" in str(refused.value)


@pytest.mark.slow
def test_another_layout_shows_in_images_where_only_the_robots_state_is_known(recorded):
    def without_object_state(seen: Observation) -> Observation:
        return {key: value for key, value in seen.items() if key != ENVIRONMENT_STATE_KEY}

    fault = Fault(shift_layout=1, see=without_object_state, state_keys=(STATE_KEY,))
    with pytest.raises(InvalidInputError, match="another initial layout: objects stand elsewhere"):
        check(recorded, faulty(fault), num_parity_episodes=2)


@pytest.mark.slow
def test_a_setting_that_the_records_show_to_differ_is_named(recorded):
    suite = MetaworldSuite(DRAWN_OTHERWISE)
    with pytest.raises(InvalidInputError, match="shadows was false in the recording and is true"):
        check(recorded, suite)


def test_a_recording_of_drawn_states_is_reset_to_them(recorded, tmp_path):
    run, checkpoint = recorded
    root = tmp_path / "dataset"
    shutil.copytree(run.dataset_root, root)
    path = root / "meta" / "recording.json"
    recording = json.loads(path.read_text("utf-8"))
    recording["layouts"]["reset"] = "sampled"
    path.write_text(json.dumps(recording))
    (episode,) = check(
        (RecordedRun(root, run.cache_dir), checkpoint), faulty(Fault(only_sampled_resets=True))
    )
    assert episode.state_difference == 0


def test_a_recording_that_is_not_there_says_how_to_name_it_and_how_to_do_without(
    recorded, tmp_path
):
    with pytest.raises(MissingFileError, match=r"--dataset_root, or waive .*--no_check_parity"):
        check(recorded, dataset_root=tmp_path)


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"content_sha256": "0" * 64}, InvalidInputError, "is not the recording that the checkpoi"),
        ({"recording": None}, MissingFileError, r"no collect_demos .* --no_check_parity"),
    ],
)
def test_another_recording_and_a_dataset_that_is_none_are_refused(
    recorded, tmp_path, entries, error, message
):
    with pytest.raises(error, match=message):
        check(recorded, path=with_dataset(recorded, tmp_path, **entries))


def test_a_recording_of_another_suite_cannot_be_replayed(recorded):
    with pytest.raises(InvalidInputError, match="recorded in metaworld, not in libero_object"):
        check(recorded, faulty(Fault(), name="libero_object"))


def test_a_recording_without_executed_actions_cannot_be_replayed(recorded, tmp_path):
    run, checkpoint = recorded
    root = tmp_path / "dataset"
    shutil.copytree(run.dataset_root, root, ignore=shutil.ignore_patterns("executed_action*"))
    with pytest.raises(MissingFileError, match=r"executed_action.*--no_check_parity"):
        check((RecordedRun(root, run.cache_dir), checkpoint))


def test_episodes_are_spread_over_the_tasks():
    entries = [RecordedEpisode(i, f"task-{i // 2}", 0, 0, 1) for i in range(8)]
    recording = {"episodes": [dataclasses.asdict(entry) for entry in entries]}
    for count, expected in (
        (1, [0]),
        (2, [0, 4]),
        (4, [0, 2, 4, 6]),
        (6, [0, 2, 4, 6, 1, 3]),
        (99, [0, 2, 4, 6, 1, 3, 5, 7]),
    ):
        chosen = spread_episodes(recording, count)
        assert [episode.episode_index for episode in chosen] == expected
    with pytest.raises(InvalidInputError, match="--num_parity_episodes must be at least 1"):
        spread_episodes(recording, 0)


def motion(num_frames: int = 40) -> np.ndarray:
    """Return states that move in three dimensions and leave the fourth as it is."""
    rng = np.random.default_rng(0)
    moving = np.cumsum(rng.uniform(0.002, 0.01, (num_frames, 3)) * [1, -1, 0.5], axis=0)
    return np.column_stack([moving, np.full(num_frames, 0.7)]).astype(np.float32)


def test_rounding_of_another_machine_passes_and_a_millimetre_does_not():
    states = motion()
    std = states.std(axis=0)
    noise = np.random.default_rng(1).normal(0, 1e-6, states.shape).astype(np.float32)
    drift = noise + 1e-3 * np.linspace(0, 1, len(states))[:, None] ** 3 * [1, 1, 1, 0]
    assert first_difference(states, (states + drift).astype(np.float32), std) is None
    assert first_difference(states, states + np.float32(1e-3), std) == 0
    late = states.copy()
    late[30:, 0] += 0.5
    assert first_difference(states, late, std) == 30


def test_a_state_that_no_reordering_explains_has_no_layout_to_name():
    other = np.random.default_rng(2).normal(size=(40, 4)).astype(np.float32)
    assert state_layout(motion(), other, NAMES) is None


def test_a_layout_with_sign_and_offset_is_named_whole():
    states = motion()
    here = np.column_stack([states[:, 1], -states[:, 0], states[:, 2] + 0.25, states[:, 3]])
    named = state_layout(states, here.astype(np.float32), NAMES)
    assert named == (
        "state layout: the recording's x is -y here, the recording's y is x here, the recording's "
        "z is z - 0.25 here"
    )


def test_motion_that_only_drifts_is_no_matter_of_scale():
    states = motion()
    drifting = states.copy()
    drifting[25:, 0] += 0.5
    assert action_effect(states, drifting, NAMES, 25).startswith("physics: ")


def test_images_without_any_likeness_are_not_called_a_flip():
    rng = np.random.default_rng(3)
    recorded_images, here = rng.integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    assert "flip" not in image_cause(recorded_images, {"camera": here}, "camera", [])
