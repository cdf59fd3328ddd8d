import http.server
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.demos.recording import write_signals
from coc_vla.events.gripper import GripperChannel
from coc_vla.events.hand_axes import HandAxes
from coc_vla.events.motion import EpisodeMotion
from coc_vla.events.recorded import (
    EVENT_TYPES,
    EventFlags,
    EventKeys,
    episode_events,
    recorded_events,
)
from coc_vla.head.judge import read_verdict
from coc_vla.head.scores import (
    common_subsequence,
    count_events,
    partners_across_tasks,
    partners_within_task,
)
from coc_vla.labels.trace import TraceStep
from coc_vla.score_labels import ScoreConfig, run
from tests.fixtures.coc import label, write_labels
from tests.fixtures.lerobot import TASKS, make_dataset
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError

NUM_FRAMES = 60
RIGHT_FORWARD = ("right", "forward")


def motion(commands):
    """Return a hand that goes down for 20 frames, waits for 20, and goes up for 20."""
    height = np.concatenate([np.linspace(1, 0, 20), np.zeros(20), np.linspace(0, 1, 20)])
    positions = np.stack([np.zeros(60), np.zeros(60), height], axis=1)
    actions = np.zeros((60, 4))
    actions[:, 3] = commands
    return EpisodeMotion(positions, GripperChannel(3).events(actions), 20.0)


def held(start, length, total=NUM_FRAMES):
    signal = np.zeros(total, dtype=np.float32)
    signal[start : start + length] = 1
    return signal


def kinds(events):
    return [event.kind for event in events]


def test_events_of_hand_made_signals_are_found_in_order():
    commands = np.repeat([-1.0, 1.0, -1.0], [24, 30, 6])
    height = np.full(NUM_FRAMES, 0.5)
    height[45:] = 0.53
    levels = {"contact": held(28, 20), "goal": held(52, 8), "lifted": height}
    found = episode_events(motion(commands), levels)
    assert kinds(found) == [
        *("hand_down", "gripper_closes", "contact", "hand_up", "lifted", "goal"),
        "gripper_opens",
    ]
    by_kind = {event.kind: event.frame for event in found}
    assert {k: by_kind[k] for k in ("gripper_closes", "contact", "lifted", "goal")} == {
        "gripper_closes": 24,
        "contact": 28,
        "lifted": 45,
        "goal": 52,
    }


def test_a_motion_across_is_also_one_to_the_sides_that_it_leads_to():
    steps = np.repeat([[0.01, 0.003, 0], [0, 0, 0], [-0.01, 0.001, 0]], 20, axis=0)
    positions = np.cumsum(steps, axis=0)
    seen = EpisodeMotion(positions, (), 20.0, HandAxes(*RIGHT_FORWARD))
    assert kinds(episode_events(seen, {})) == [
        *("hand_across", "hand_right", "hand_forward"),
        *("hand_across", "hand_left"),
    ]
    unknown = EpisodeMotion(positions, (), 20.0)
    assert kinds(episode_events(unknown, {})) == ["hand_across", "hand_across"]


def test_a_touch_of_two_frames_and_a_lift_of_a_centimetre_are_no_events():
    height = np.full(NUM_FRAMES, 0.5)
    height[45:] = 0.51
    levels = {"contact": held(28, 2), "goal": held(58, 2), "lifted": height}
    found = kinds(episode_events(motion(np.full(60, -1.0)), levels))
    # What holds at the episode's end may go on.
    assert [k for k in found if not k.startswith("hand")] == ["goal"]


def test_order_counts_in_a_group_and_the_number_in_a_single_type():
    claimed, recorded = ["lifted", "gripper_closes"], ["gripper_closes", "lifted", "goal"]
    both = count_events([claimed], [recorded], EVENT_TYPES)
    assert (both.right[0], both.claimed[0], both.recorded[0]) == (1, 2, 3)
    assert count_events([claimed], [recorded], ["lifted"]).right[0] == 1


def test_common_subsequence_equals_brute_force():
    rng = np.random.default_rng(0)

    def brute(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + brute(a[1:], b[1:])
        return max(brute(a[1:], b), brute(a, b[1:]))

    for _ in range(50):
        a, b = (rng.integers(0, 3, rng.integers(0, 7)).tolist() for _ in range(2))
        assert common_subsequence(a, b) == brute(a, b)


def test_partners_are_of_the_same_task_or_of_another_and_never_oneself():
    tasks = np.array([0, 1, 0, 2, 1, 0, 2, 1, 0, 2])
    for seed in range(5):
        within = partners_within_task(tasks, np.random.default_rng(seed))
        across = partners_across_tasks(tasks, np.random.default_rng(seed))
        assert (tasks[within] == tasks).all()
        assert (within != np.arange(10)).all()
        assert (tasks[across] != tasks).all()
        assert sorted(across.tolist()) == sorted(within.tolist()) == list(range(10))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Return a dataset of 6 episodes: in every second one of a task the robot never touches."""
    root = make_dataset(tmp_path_factory.mktemp("recording") / "d", num_episodes=6, num_frames=30)
    lengths = [30 + episode % 3 for episode in range(6)]
    write_signals(
        root,
        [
            {
                "contact": held(5, 9 * (episode >= 3), length)[:, None],
                "success": held(20, length, length)[:, None],
            }
            for episode, length in enumerate(lengths)
        ],
    )
    return root


def score(recording, path, **changes):
    return run(
        ScoreConfig(
            labels_jsonl=path,
            dataset_name="local/tiny",
            dataset_root=recording,
            gripper_dim=1,
            **changes,
        )
    )


def true_labels(path):
    """Label each episode with what happens in it: all reach the goal, three touch."""
    touch = TraceStep("Touch the block", "it has to move")
    done = TraceStep("Finish the task", "it was asked")
    records = [
        label(episode, [touch, done] if episode >= 3 else [done], TASKS[episode % 3])
        for episode in range(6)
    ]
    return write_labels(path, records)


def test_true_labels_score_full_marks_and_shuffled_ones_less(recording, tmp_path):
    result = score(recording, true_labels(tmp_path / "labels.jsonl"))
    touch = result.groups["contact"]
    assert touch.labels.f1.value == 1
    # Each task has one episode with a touch and one without; the partner is always the other one.
    assert touch.within_task.recall.value == 0
    assert touch.recall_gain_within_task.value == 1
    assert 0 < touch.across_tasks.recall.value < 1
    assert result.groups["goal"].within_task.recall.value == 1
    written = json.loads((tmp_path / "labels.scores" / "score_labels.json").read_text())
    assert written["groups"]["contact"]["labels"]["num_recorded"] == 3


def test_what_the_recording_does_not_tell_is_not_scored(recording, tmp_path):
    result = score(recording, true_labels(tmp_path / "labels.jsonl"))
    sides = {"hand_left", "hand_right", "hand_forward", "hand_back"}
    assert set(result.unknown_events) == {"lifted", *sides}
    assert "sides" not in result.groups
    known = score(recording, true_labels(tmp_path / "labels.jsonl"), position_axes=RIGHT_FORWARD)
    assert known.unknown_events == ["lifted"]
    assert known.groups["sides"].labels.num_recorded > 0
    (recording / "meta" / "signals").rename(recording / "meta" / "away")
    try:
        events = recorded_events(
            open_dataset("local/tiny", dataset_root=recording), EventKeys(gripper_dim=1)
        )
    finally:
        (recording / "meta" / "away").rename(recording / "meta" / "signals")
    assert set(EVENT_TYPES) - set(events.known) == {"contact", "lifted", "goal", *sides}


def test_a_gripper_that_closes_at_another_command_is_read_by_its_own(recording):
    source = open_dataset("local/tiny", dataset_root=recording)
    # All that was recorded lies near this command that closes.
    told = EventFlags(gripper_dim=1, gripper_commands=(-20.0, 0.0)).event_keys
    assert gripper_kinds(recorded_events(source, told)) == [["gripper_closes"]] * 6
    assert gripper_kinds(recorded_events(source, EventKeys(gripper_dim=1))) == [[]] * 6
    elsewhere = EventFlags(gripper_dim=1, gripper_commands=(-20.0, -10.0)).event_keys
    with pytest.raises(InvalidInputError, match="--gripper_commands -20 -10: in dimension 1 of"):
        recorded_events(source, elsewhere)
    absent = recorded_events(source, EventFlags(gripper_dim="none").event_keys)
    assert not {"gripper_closes", "gripper_opens"} & set(absent.known)


def gripper_kinds(recorded):
    return [[k for k in recorded.kinds(i) if "gripper" in k] for i in recorded.by_episode]


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


@contextmanager
def judging_server(asked):
    """Serve a judge that finds everything covered, and correct what does not touch."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self._send({"object": "list", "data": [{"id": "judge", "object": "model"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = json.dumps(body["messages"])
            asked.append(question)
            correct = "Touch the block" not in question
            text = f"coverage: True\ncorrectness: {correct}\nminimality: perhaps"
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._send({"id": "1", "choices": [choice], "usage": {"completion_tokens": 9}})

        def _send(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_a_judge_is_asked_about_each_label_and_its_answers_are_counted(recording, tmp_path):
    asked: list[str] = []
    with judging_server(asked) as url:
        path = true_labels(tmp_path / "labels.jsonl")
        judge = score(recording, path, judge_base_url=url, judge_model="judge").judge
    assert judge.num_judged == len(asked) == 6
    assert judge.shares["coverage"].value == 1
    assert judge.shares["correctness"].value == 0.5
    assert judge.shares["minimality"].value is None
    assert judge.num_unclear == 6
    assert any("touches something" in question and TASKS[0] in question for question in asked)


def test_verdicts_are_read_and_what_is_unclear_stays_unclear():
    text = "<think>coverage: false</think>**Coverage**: TRUE\ncorrectness - False."
    assert read_verdict(text) == {"coverage": True, "correctness": False, "minimality": None}
    assert read_verdict("coverage: True\ncoverage: False")["coverage"] is None
