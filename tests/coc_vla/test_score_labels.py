import json

import numpy as np
import pytest

from benchmarks.demos.recording import write_signals
from coc_vla.events.motion_columns import MotionFlags
from coc_vla.events.recorded import EVENT_TYPES, recorded_events
from coc_vla.labels.trace import TraceStep
from coc_vla.score_labels import ScoreConfig, run
from tests.fixtures.chat_server import ChatServer, Misbehaviour, completion, serving
from tests.fixtures.coc import label, write_labels
from tests.fixtures.lerobot import TASKS, make_dataset
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError

RIGHT_FORWARD = ("right", "forward")


def held(start, length, total):
    signal = np.zeros((total, 1), dtype=np.float32)
    signal[start : start + length] = 1
    return signal


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Return a dataset of 6 episodes: in every second one of a task the robot never touches."""
    root = make_dataset(tmp_path_factory.mktemp("recording") / "d", num_episodes=6, num_frames=30)
    lengths = [30 + episode % 3 for episode in range(6)]
    signals = [
        {"contact": held(5, 9 * (i >= 3), length), "success": held(20, length, length)}
        for i, length in enumerate(lengths)
    ]
    write_signals(root, signals)
    return root


def score(recording, path, **changes):
    flags = {"dataset_name": "local/tiny", "dataset_root": recording, "gripper_dim": 1}
    return run(ScoreConfig(labels_jsonl=path, **flags, **changes))


@pytest.fixture
def true_labels(tmp_path):
    """Label each episode with what happens in it: all reach the goal, three touch."""
    touch = TraceStep("Touch the block", "it has to move")
    done = TraceStep("Finish the task", "it was asked")
    records = [label(i, [touch, done] if i >= 3 else [done], TASKS[i % 3]) for i in range(6)]
    return write_labels(tmp_path / "labels.jsonl", records)


def test_true_labels_score_full_marks_and_shuffled_ones_less(recording, true_labels):
    result = score(recording, true_labels)
    touch = result.groups["contact"]
    assert touch.labels.f1.value == 1
    # Each task has one episode with a touch and one without; the partner is always the other one.
    assert touch.within_task.recall.value == 0
    assert touch.recall_gain_within_task.value == 1
    assert 0 < touch.across_tasks.recall.value < 1
    assert result.groups["goal"].within_task.recall.value == 1
    written = json.loads(
        (true_labels.with_suffix(".scores") / "score_labels.json").read_text("utf-8")
    )
    assert written["groups"]["contact"]["labels"]["num_recorded"] == 3


def test_what_the_recording_does_not_tell_is_not_scored(recording, true_labels):
    result = score(recording, true_labels)
    sides = {"hand_left", "hand_right", "hand_forward", "hand_back"}
    assert set(result.unknown_events) == {"lifted", *sides}
    assert "sides" not in result.groups
    known = score(recording, true_labels, position_axes=RIGHT_FORWARD)
    assert known.unknown_events == ["lifted"]
    assert known.groups["sides"].labels.num_recorded > 0
    (recording / "meta" / "signals").rename(recording / "meta" / "away")
    try:
        source = open_dataset("local/tiny", dataset_root=recording)
        events = recorded_events(source, MotionFlags(gripper_dim=1))
    finally:
        (recording / "meta" / "away").rename(recording / "meta" / "signals")
    assert set(EVENT_TYPES) - set(events.known) == {"contact", "lifted", "goal", *sides}


def test_a_gripper_that_closes_at_another_command_is_read_by_its_own(recording):
    source = open_dataset("local/tiny", dataset_root=recording)

    def gripper_kinds(*commands):
        flags = MotionFlags(gripper_dim=1, gripper_commands=commands)
        recorded = recorded_events(source, flags)
        return [[k for k in recorded.kinds(i) if "gripper" in k] for i in recorded.by_episode]

    # All that was recorded lies near the first of these commands that close.
    assert gripper_kinds(-20.0, 0.0) == [["gripper_closes"]] * 6
    assert gripper_kinds(-1.0, 1.0) == [[]] * 6
    with pytest.raises(InvalidInputError, match="--gripper_commands -20 -10: in dimension 1 of"):
        gripper_kinds(-20.0, -10.0)
    absent = recorded_events(source, MotionFlags(gripper_dim="none"))
    assert not {"gripper_closes", "gripper_opens"} & set(absent.known)


def test_labels_of_another_recording_and_files_of_errors_alone_are_refused(recording, tmp_path):
    other = write_labels(
        tmp_path / "other.jsonl", [label(9, [TraceStep("Lift it", "it was asked")])]
    )
    with pytest.raises(InvalidInputError, match=r"labels episodes \[9\], which local/tiny"):
        score(recording, other)
    errors = write_labels(tmp_path / "errors.jsonl", [label(0, None)])
    with pytest.raises(InvalidInputError, match="no label, nothing but errors"):
        score(recording, errors)
    with pytest.raises(InvalidInputError, match="both --judge_base_url and --judge_model"):
        ScoreConfig(other, "local/tiny", judge_model="m")


def test_a_judge_is_asked_about_each_label_and_its_answers_are_counted(recording, true_labels):
    def reply(body, count):
        correct = "Touch the block" not in json.dumps(body["messages"])
        return f"coverage: True\ncorrectness: {correct}\nminimality: perhaps"

    server = ChatServer(reply)
    with serving(server) as url:
        judge = score(recording, true_labels, judge_base_url=url, judge_model="judge").judge
    assert judge.num_judged == len(server.bodies) == 6
    assert judge.shares["coverage"].value == 1
    assert judge.shares["correctness"].value == 0.5
    assert judge.shares["minimality"].value is None
    assert judge.num_unclear == 6
    asked = [json.dumps(body["messages"]) for body in server.bodies]
    assert any("touches something" in question and TASKS[0] in question for question in asked)


def test_a_judge_that_is_cut_off_while_it_thinks_is_an_error_that_names_the_flag(
    recording, true_labels
):
    cut_off = Misbehaviour(200, completion("<think>coverage: true or", "length"))
    server = ChatServer(cut_off, num_first=1)
    judged = {"judge_model": "judge", "judge_max_tokens": 99}
    with (
        serving(server) as url,
        pytest.raises(InvalidInputError, match=r"1 of 6 .* 99 tokens.*--judge_max_tokens"),
    ):
        score(recording, true_labels, judge_base_url=url, **judged)
    assert {body["max_tokens"] for body in server.bodies} == {99}
