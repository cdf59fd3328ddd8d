import numpy as np
import pytest

from coc_vla.events.motion import GripperEvent
from coc_vla.events.motion_columns import (
    GripperChannel,
    find_gripper_dim,
    find_position_dims,
)
from world_modality.system.errors import InvalidInputError


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


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (1.0, 0.0)])
def test_commands_on_another_scale_are_refused_with_what_was_found(ends):
    commands = np.array([[2.0]] * 5 + [[97.5]] * 5)
    with pytest.raises(InvalidInputError, match=r"--gripper_commands .* run from 2 to 97\.5"):
        GripperChannel(0, *ends).events(commands)
    assert GripperChannel(0, 100.0, 0.0).events(commands[::-1]) == (GripperEvent(5, "close"),)


def test_a_command_may_overshoot_a_little():
    commands = np.array([[-1.09]] * 5 + [[1.09]] * 5)
    assert GripperChannel(0).events(commands) == (GripperEvent(5, "close"),)
    with pytest.raises(InvalidInputError, match=r"from -1\.11 to"):
        GripperChannel(0).events(commands - 0.02)


def test_the_gripper_is_found_by_its_name_or_asked_for():
    named = {"shape": [3], "names": {"motors": ["x", "y", "Gripper"]}}
    assert find_gripper_dim(named, "action", None) == 2
    assert find_gripper_dim(named, "action", 1) == 1
    assert find_gripper_dim(named, "action", "none") is None
    with pytest.raises(InvalidInputError, match="--gripper_dim 3"):
        find_gripper_dim(named, "action", 3)
    with pytest.raises(InvalidInputError, match=r"found 0 among .*--gripper_dim"):
        find_gripper_dim({"shape": [3], "names": ["x", "y", "z"]}, "action", None)


FORMS_OF_NAMES = [
    ["hand_x", "hand_y", "hand_z", "gripper"],
    [["hand_x", "hand_y", "hand_z", "gripper"]],
    {"motors": ["hand_x", "hand_y", "hand_z", "gripper"]},
    {"motors": [["hand_x", "hand_y", "hand_z", "gripper"]]},
    {"arm": ["hand_x", "hand_y", "hand_z"], "hand": ["gripper"]},
    {"gripper": 3, "hand_x": 0, "hand_z": 2, "hand_y": 1},
    {"motors": {"hand_x": 0, "hand_y": 1, "hand_z": 2, "gripper": 3}},
]


@pytest.mark.parametrize("names", FORMS_OF_NAMES)
def test_every_form_in_which_lerobot_writes_names_tells_the_same_dimensions(names):
    feature = {"shape": [4], "names": names}
    assert find_gripper_dim(feature, "action", None) == 3
    assert find_position_dims(feature, "state", None) == (0, 1, 2)
    assert find_gripper_dim({**feature, "shape": [1, 4]}, "action", None) == 3


@pytest.mark.parametrize(
    "names",
    [
        None,
        ["actions"],
        ["arm", "gripper"],
        {"axes": ["x", "y", "z", "gripper"]},
        {"x": 0, "y": 1, "z": 2, "gripper": 6},
    ],
)
def test_names_that_are_not_one_for_each_dimension_name_none(names):
    feature = {"shape": [7], "names": names}
    with pytest.raises(InvalidInputError, match=r"its 7 dimensions; name it with --gripper_dim"):
        find_gripper_dim(feature, "action", None)
    with pytest.raises(InvalidInputError, match=r"its 7 dimensions; name them with --position_dim"):
        find_position_dims(feature, "state", None)
    assert find_gripper_dim(feature, "action", 6) == 6
    assert find_position_dims(feature, "state", (4, 2, 0)) == (4, 2, 0)


@pytest.mark.parametrize(
    ("names", "dims"),
    [
        (["gripper", "speed", "hand_x", "hand_y", "hand_z"], (2, 3, 4)),
        (["ee.wx", "ee.wy", "ee.wz", "ee.z", "ee.y", "ee.x"], (5, 4, 3)),
        (["quat_x", "quat_y", "quat_z", "quat_w", "x_pos", "y_pos", "z_pos"], (4, 5, 6)),
        (["x", "y", "z", "roll", "pitch", "yaw", "gripper", "gripper"], (0, 1, 2)),
        (["vel_x", "vel_y", "vel_z", "tcp_x", "tcp_y", "tcp_z"], (3, 4, 5)),
    ],
)
def test_the_position_is_found_among_what_else_has_x_y_and_z(names, dims):
    assert find_position_dims({"shape": [len(names)], "names": names}, "state", None) == dims


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([f"joint_{number}" for number in range(1, 8)], 0),
        (["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "gripper.pos"], 0),
        (["main_shoulder_pan", "main_elbow_flex", "main_wrist_roll", "main_gripper"], 0),
        (["joint_x", "joint_y", "joint_z"], 0),
        (["rot_x", "rot_y", "rot_z"], 0),
        (["x", "y", "z", "w"], 0),
        (["qx", "qy", "qz", "qw"], 0),
        (["left.x", "left.y", "left.z", "right.x", "right.y", "right.z"], 2),
    ],
)
def test_what_is_no_position_or_not_the_only_one_is_refused_with_the_names(names, found):
    feature = {"shape": [len(names)], "names": names}
    with pytest.raises(InvalidInputError, match=f"found {found} in .*{names[0]}.*--position_dims"):
        find_position_dims(feature, "state", None)


def test_dimensions_that_are_asked_for_have_to_be_there():
    state = {"shape": [5], "names": None}
    for dims in ((0, 1, 9), (0, 1, 1), (-1, 0, 1)):
        with pytest.raises(InvalidInputError, match=r"--position_dims .*0 to 4"):
            find_position_dims(state, "state", dims)
