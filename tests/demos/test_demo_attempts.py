import os

import numpy as np
import pytest

from benchmarks.demos.attempts import AttemptCrashError, TaskAttempts, record_attempts
from benchmarks.demos.destination import DemoStaging
from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.png_images import PngImages
from benchmarks.speed.harness.drawn import draw_dataset
from world_modality.system.errors import InvalidInputError


def test_staged_episode_comes_back_exactly(tmp_path):
    random = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        "observation.image": random.integers(0, 256, (3, 8, 10, 3)).astype(np.uint8),
        "action": random.standard_normal((3, 4)).astype(np.float32),
    }
    signals = {"contact": random.random((3, 1)).astype(np.float32)}
    DemoEpisode("Push", columns, signals).save(tmp_path / "episode.npz")
    loaded = DemoEpisode.load(tmp_path / "episode.npz")
    assert loaded.instruction == "Push"
    for stored, given in ((loaded.columns, columns), (loaded.signals, signals)):
        assert stored.keys() == given.keys()
        for key, column in given.items():
            found = stored[key]
            found = found.decode() if isinstance(found, PngImages) else found
            np.testing.assert_array_equal(found, column)
            assert found.dtype == column.dtype


def test_any_flipped_byte_and_any_cut_of_a_staged_episode_is_noticed(tmp_path):
    path = tmp_path / "episode.npz"
    columns = {"action": np.zeros((3, 4), np.float32), "state": np.ones((3, 2), np.float32)}
    DemoEpisode("Push", columns, {}).save(path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        for damaged in (
            whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :],
            whole[:place],
        ):
            path.write_bytes(damaged)
            with pytest.raises(InvalidInputError, match=r"episode\.npz is damaged"):
                DemoEpisode.load(path)


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, "[]", '{"config": [], "rendering": {}, "software": {}}', "{}"]
)
def test_a_recipe_that_is_none_is_refused_with_the_file_and_the_flags(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    recipe = {"config": {"seed": 0}, "rendering": {}, "software": {}}
    with pytest.raises(InvalidInputError, match=r"recipe\.json .*or --overwrite"):
        DemoStaging(tmp_path).begin(recipe)


def simulate(outcomes: list[bool], num_wanted: int, finish_order: int) -> TaskAttempts:
    """Play a task's attempts with three workers that finish in an order drawn from a seed."""
    random = np.random.default_rng(finish_order)
    task = TaskAttempts("push-v3", num_wanted, len(outcomes), {})
    while True:
        while len(task.running) < 3 and (attempt := task.next_attempt()) is not None:
            task.running.add(attempt)
        if not task.running:
            return task
        done = int(random.choice(sorted(task.running)))
        task.running.remove(done)
        task.outcomes[done] = outcomes[done]


@pytest.mark.parametrize("finish_order", range(20))
def test_kept_episodes_are_the_first_solved_in_attempt_order(finish_order):
    outcomes = [True, False, False, True, True, False, True, True, True]
    task = simulate(outcomes, 4, finish_order)
    assert task.kept == [0, 3, 4, 6]
    assert task.num_discarded == 3
    assert set(task.outcomes) == set(range(7)), "an attempt too many or too few was made"


def test_attempt_lost_by_an_interruption_is_made_before_later_ones_count():
    task = TaskAttempts("push-v3", 1, 5, {1: True})
    assert task.next_attempt() == 0


def test_every_stored_state_is_attempted_once():
    task = TaskAttempts("task", 4, 4, {}, makes_every_attempt=True)
    made = []
    for solved in (False, True, True, False):
        attempt = task.next_attempt()
        assert attempt is not None
        made.append(attempt)
        task.outcomes[attempt] = solved
    assert task.next_attempt() is None
    assert made == [0, 1, 2, 3]
    assert task.kept == [1, 2]
    assert task.num_discarded == 2


def test_task_of_which_no_stored_state_is_solved_is_an_error():
    task = TaskAttempts("task", 2, 2, {0: False, 1: False}, makes_every_attempt=True)
    with pytest.raises(InvalidInputError, match="solved task in 0 of 2 attempts"):
        task.next_attempt()


def solve_nothing(task: str, attempt: int) -> DemoEpisode | None:
    """Raise at attempt 1 of one task and die at attempt 1 of another."""
    if attempt == 1 and task == "raising":
        raise ZeroDivisionError("physics")
    if attempt == 1 and task == "dying":
        os._exit(9)
    return None


def record_stubbornly(task: str, staging: DemoStaging) -> TaskAttempts:
    attempts = TaskAttempts(task, 1, 3, {})
    record_attempts(solve_nothing, staging, [attempts], 1)
    return attempts


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("raising", "recording raising attempt 1 crashed"),
        ("dying", "recorded dying attempt 1 died"),
    ],
)
def test_crash_names_task_and_attempt_and_is_no_failure(task, message, tmp_path):
    staging = DemoStaging(tmp_path)
    with pytest.raises(AttemptCrashError, match=message):
        record_stubbornly(task, staging)
    assert staging.outcomes(task) == {0: False}


def test_expert_that_keeps_failing_is_an_error_with_the_count(tmp_path):
    with pytest.raises(InvalidInputError, match="solved hopeless in 0 of 3 attempts, 1 episodes"):
        record_stubbornly("hopeless", DemoStaging(tmp_path))


def test_encoding_video_leaves_the_scheduling_of_the_process_alone(tmp_path):
    before = os.sched_getscheduler(0)
    draw_dataset(tmp_path / "drawn", 8, 64, "video")
    assert os.sched_getscheduler(0) == before
