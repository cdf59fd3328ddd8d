import numpy as np
import pytest

from coc_vla.authors.rules import Rules
from coc_vla.authors.vlm import VlmRequest
from coc_vla.events.motion import EpisodeMotion, HandAxes
from coc_vla.events.motion_columns import GripperChannel
from coc_vla.labels.trace import parse_trace, trace_faults

FPS = 20.0
WAYS = {
    "across": (1, 0, 0),
    "slanting": (1, 1, 0),
    "rising": (1, 0, 2),
    "up": (0, 0, 1),
    "down": (0, 0, -1),
    "still": (0, 0, 0),
}
INSTRUCTIONS = [
    "Push the puck to a goal",
    "pick up the black bowl between the plate and the ramekin and place it on the plate",
    "put both the alphabet soup and the tomato sauce in the basket",
    "turn on the stove and put the moka pot on it",
    "Bypass a wall and press a button",
    "Insert the gripper into a hole",
    "Open a door with a revolving joint",
    "Reach a goal position",
    "do it",
]


def recorded(*moves, axes=None):
    """Record moves of 20 frames each; `close` and `open` stand between them."""
    velocity, commands, command = [], [], -1.0
    for move in moves:
        if move in ("close", "open"):
            command = 1.0 if move == "close" else -1.0
            continue
        velocity += [WAYS[move]] * 20
        commands += [command] * 20
    events = GripperChannel(0).events(np.array(commands)[:, None])
    return EpisodeMotion(np.cumsum(velocity, axis=0).astype(float), events, FPS, axes)


def steps_of(instruction, motion):
    (answer,) = Rules().answer([VlmRequest(0, instruction, (), "", 0, motion)])
    trace = parse_trace(answer.text)
    assert trace_faults(trace, instruction) == []
    return [step.what for step in trace.steps]


def test_a_pick_and_place_is_told_in_its_order():
    motion = recorded("across", "down", "close", "up", "across", "down")
    assert steps_of("pick up the soup and place it in the basket", motion) == [
        "Move the open gripper across towards the soup",
        "Lower the open gripper to the soup",
        "Close the gripper around the soup",
        "Lift the soup with the closed gripper",
        "Carry the soup across towards the basket",
        "Lower the soup towards the basket",
    ]


@pytest.mark.parametrize(
    ("axes", "straight", "slanting"),
    [
        (("right", "forward"), "straight to the right", "to the right and forward"),
        (("left", "back"), "straight to the left", "to the left and back"),
        (("forward", "left"), "straight forward", "to the left and forward"),
    ],
)
def test_where_a_motion_leads_is_told_where_the_axes_are_known(axes, straight, slanting):
    moves = ("across", "down", "close", "up", "slanting", "open", "across")
    told = steps_of("put the soup in the basket", recorded(*moves, axes=HandAxes(*axes)))
    assert told[0] == f"Move the open gripper {straight} towards the soup"
    assert told[4] == f"Carry the soup {slanting} towards the basket"
    assert told[-1] == f"Take the empty hand away {straight.removeprefix('straight ')}"
    rising = ("rising", "down", "close", "up")
    slightly = f"slightly {straight.removeprefix('straight ')}"
    assert steps_of("take the soup", recorded(*rising, axes=HandAxes(*axes)))[0] == (
        f"Raise the open gripper {slightly} on the way to the soup"
    )
    act = steps_of("Lift a lever", recorded("down", "rising", axes=HandAxes(*axes)))
    assert f"Move the hand upwards and {slightly} to lift a lever" in act
    act = steps_of("Press a button", recorded("down", "slanting", axes=HandAxes(*axes)))
    assert f"Move the hand on a level {slanting} to press a button" in act


SIXTEEN_WAYS = (
    *("straight to the right", "to the right and slightly forward"),
    *("to the right and forward", "forward and slightly to the right"),
    *("straight forward", "forward and slightly to the left"),
    *("to the left and forward", "to the left and slightly forward"),
    *("straight to the left", "to the left and slightly back"),
    *("to the left and back", "back and slightly to the left"),
    *("straight back", "back and slightly to the right"),
    *("to the right and back", "to the right and slightly back"),
)


@pytest.mark.parametrize("off_the_middle", [-10, 0, 10])
@pytest.mark.parametrize("rising", [0.0, 0.9])
def test_a_level_motion_is_told_as_one_of_sixteen_ways(off_the_middle, rising):
    told = []
    for sixteenth in range(16):
        angle = np.deg2rad(22.5 * sixteenth + off_the_middle)
        path = np.zeros((80, 3))
        path[:40] = np.outer(np.arange(40), [np.cos(angle), np.sin(angle), rising])
        path[40:, :2], path[40:, 2] = path[39, :2], path[39, 2] - np.arange(40)
        motion = EpisodeMotion(path, (), FPS, HandAxes("right", "forward"))
        told.append(steps_of("Press a button", motion)[1])
    assert told == [f"Move the open gripper {way} towards the button" for way in SIXTEEN_WAYS]


def test_a_motion_that_a_pause_interrupts_leads_where_both_parts_do():
    axes = HandAxes("right", "forward")
    turned = ("slanting", "still", "slanting", "down", "close", "up")
    assert steps_of("take the soup", recorded(*turned, axes=axes))[0] == (
        "Move the open gripper to the right and forward towards the soup"
    )


def test_the_recorded_motion_decides_not_the_instruction():
    pressed = steps_of("Press a button", recorded("across", "down"))
    level = steps_of("Press a button", recorded("down", "across"))
    assert "Move the hand downwards to press a button" in pressed
    assert "Move the hand on a level to press a button" in level


def test_closing_on_the_way_is_a_fist_and_closing_later_a_grasp():
    fist = steps_of("Press a button", recorded("close", "across", "down"))
    grasp = steps_of("Push the puck to a goal", recorded("across", "down", "close", "across"))
    assert fist[0] == "Close the empty fingers"
    assert "Close the gripper around the puck" in grasp


def test_two_things_of_one_instruction_are_told_apart():
    moves = ("across", "close", "across", "open", "across", "close", "across", "open")
    told = " ".join(steps_of("put both the soup and the sauce in the basket", recorded(*moves)))
    assert "around the soup" in told
    assert "around the sauce" in told


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_whatever_is_recorded_the_narrative_passes_the_checks(instruction):
    rng = np.random.default_rng(0)
    for _ in range(40):
        moves = rng.choice([*WAYS, "close", "open"], int(rng.integers(1, 12)))
        if set(moves) <= {"close", "open"}:
            continue
        for axes in (None, HandAxes("forward", "left")):
            assert 4 <= len(steps_of(instruction, recorded(*moves, axes=axes))) <= 7


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_the_shortest_episodes_are_told_too(num_frames):
    motion = EpisodeMotion(np.zeros((num_frames, 3)), (), FPS)
    assert len(steps_of("Open a drawer", motion)) == 4
