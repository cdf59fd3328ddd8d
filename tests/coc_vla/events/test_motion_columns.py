import numpy as np
import pytest

from coc_vla.events.motion import GripperEvent
from coc_vla.events.motion_columns import GripperChannel, find_gripper_dim, find_position_dims
from world_modality.system.errors import InvalidInputError

CLOSED_AT_5 = (GripperEvent(5, "close"),)


def commanded(*runs):
    """Return the actions of commands that are held for some frames each."""
    return np.concatenate([np.full((length, 1), command) for command, length in runs])


@pytest.mark.parametrize(
    ("ends", "runs", "events"),
    [
        # It is open first, and half commands change nothing.
        (
            (-1.0, 1.0),
            [(0.0, 5), (0.6, 10), (0.0, 5), (-1.0, 5)],
            (*CLOSED_AT_5, GripperEvent(20, "open")),
        ),
        # A flicker of two frames is no event.
        ((-1.0, 1.0), [(-1.0, 5), (1.0, 2), (-1.0, 5)], ()),
        # Commands may run the other way, and on any scale.
        ((1.0, 0.0), [(1.0, 5), (0.0, 5)], CLOSED_AT_5),
        ((100.0, 0.0), [(97.5, 5), (2.0, 5)], CLOSED_AT_5),
        # A command may overshoot a little.
        ((-1.0, 1.0), [(-1.09, 5), (1.09, 5)], CLOSED_AT_5),
    ],
)
def test_a_gripper_closes_and_opens_where_its_command_stays(ends, runs, events):
    assert GripperChannel(0, *ends).events(commanded(*runs)) == events


@pytest.mark.parametrize(
    ("ends", "found"), [((-1.0, 1.0), r"-1\.11 to 2"), ((1.0, 0.0), r"-1\.11 to 2")]
)
def test_commands_on_another_scale_are_refused_with_what_was_found(ends, found):
    with pytest.raises(InvalidInputError, match=f"--gripper_commands .* run from {found}"):
        GripperChannel(0, *ends).events(commanded((-1.11, 5), (2.0, 5)))
    with pytest.raises(InvalidInputError, match="--gripper_commands needs two different"):
        GripperChannel(0, 1.0, 1.0)


def test_the_gripper_is_found_by_its_name_or_asked_for():
    named = {"shape": [3], "names": {"motors": ["x", "y", "Gripper"]}}
    for requested, found in ((None, 2), (1, 1), ("none", None)):
        assert find_gripper_dim(named, "action", requested) == found
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


@pytest.mark.parametrize("dims", [(0, 1, 9), (0, 1, 1), (-1, 0, 1)])
def test_dimensions_that_are_asked_for_have_to_be_there(dims):
    with pytest.raises(InvalidInputError, match=r"--position_dims .*0 to 4"):
        find_position_dims({"shape": [5], "names": None}, "state", dims)
