import numpy as np
import pytest

from coc_vla.gripper import GripperChannel, GripperEvent, find_gripper_dim
from coc_vla.keyframes import event_keyframes, uniform_keyframes, velocity_minima
from coc_vla.motion import EpisodeMotion, find_position_dims, motion_phases
from world_modality.errors import InvalidInputError


def path_with_stops(lengths, fps=20):
    """Straight moves, each beginning and ending at rest, along x, z and y in turn."""
    position, parts = np.zeros(3), []
    for number, length in enumerate(lengths):
        ease = (1 - np.cos(np.linspace(0, np.pi, length))) / 2
        direction = np.eye(3)[[0, 2, 1][number % 3]]
        parts.append(position + ease[:, None] * direction)
        position = position + direction
    return np.concatenate(parts)


def test_three_uniform_keyframes_are_start_middle_and_end():
    assert uniform_keyframes(101, 3) == (0, 50, 100)


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 17])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_uniform_keyframes_are_distinct_ascending_and_inside(num_frames, count):
    frames = uniform_keyframes(num_frames, count)
    assert list(frames) == sorted(set(frames))
    assert len(frames) == min(num_frames, count)
    assert frames[0] == 0
    assert frames[-1] < num_frames


def test_pauses_of_the_hand_are_found_where_they_are():
    positions = path_with_stops([40, 30, 50])
    assert sorted(velocity_minima(positions, 20.0)) == pytest.approx([40, 70], abs=2)


def test_event_keyframes_hold_ends_gripper_events_and_pauses():
    positions = path_with_stops([40, 30, 50])
    events = (GripperEvent(55, "close"),)
    frames = event_keyframes(positions, events, 20.0, 5)
    assert frames == pytest.approx((0, 40, 55, 70, 119), abs=2)
    assert event_keyframes(positions, events, 20.0, 3) == (0, 55, 119)


def test_event_keyframes_of_a_hand_that_never_stops_fill_the_gaps():
    positions = np.linspace(0, 1, 81)[:, None] * np.ones(3)
    assert event_keyframes(positions, (), 20.0, 5) == (0, 20, 40, 60, 80)
    assert event_keyframes(positions[:2], (), 20.0, 5) == (0, 1)
    assert event_keyframes(positions[:1], (), 20.0, 5) == (0,)


def test_the_gripper_is_open_first_and_half_commands_change_nothing():
    commands = np.array([[0.0]] * 5 + [[0.6]] * 10 + [[0.0]] * 5 + [[-1.0]] * 5)
    assert GripperChannel(0).events(commands) == (
        GripperEvent(5, "close"),
        GripperEvent(20, "open"),
    )


def test_a_flicker_of_the_command_is_no_event():
    commands = np.array([[-1.0]] * 5 + [[1.0]] * 2 + [[-1.0]] * 5)
    assert GripperChannel(0).events(commands) == ()


def test_commands_may_run_the_other_way():
    commands = np.array([[1.0]] * 5 + [[0.0]] * 5)
    assert GripperChannel(0, 1.0, 0.0).events(commands) == (GripperEvent(5, "close"),)
    with pytest.raises(InvalidInputError, match="--gripper_commands"):
        GripperChannel(0, 1.0, 1.0)


def test_the_gripper_is_found_by_its_name_or_asked_for():
    named = {"shape": [3], "names": {"motors": ["x", "y", "Gripper"]}}
    assert find_gripper_dim(named, "action", None) == 2
    assert find_gripper_dim(named, "action", 1) == 1
    assert find_gripper_dim(named, "action", "none") is None
    with pytest.raises(InvalidInputError, match="--gripper_dim 3"):
        find_gripper_dim(named, "action", 3)
    with pytest.raises(InvalidInputError, match=r"found 0 among .*--gripper_dim"):
        find_gripper_dim({"shape": [3], "names": ["x", "y", "z"]}, "action", None)


def test_the_position_is_found_by_names_that_end_in_x_y_z():
    state = {"shape": [5], "names": ["gripper", "speed", "hand_x", "hand_y", "hand_z"]}
    assert find_position_dims(state, "state", None) == (2, 3, 4)
    assert find_position_dims({"shape": [8], "names": None}, "state", None) == (0, 1, 2)
    with pytest.raises(InvalidInputError, match="--position_dims"):
        find_position_dims(state, "state", (0, 1, 9))
    with pytest.raises(InvalidInputError, match="--state_key"):
        find_position_dims({"shape": [2], "names": None}, "state", None)


def test_phases_cover_the_episode_and_name_its_directions():
    positions = path_with_stops([40, 30, 50])
    motion = EpisodeMotion(positions, (GripperEvent(85, "close"),), 20.0)
    phases = motion_phases(motion)
    assert [phase.direction for phase in phases if phase.direction != "still"] == [
        "across",
        "up",
        "across",
        "across",
    ]
    assert [phase.start for phase in phases[1:]] == [phase.end for phase in phases[:-1]]
    assert (phases[0].start, phases[-1].end) == (0, 120)
    assert any(phase.start == 85 for phase in phases)
