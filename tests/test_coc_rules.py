import numpy as np
import pytest

from coc_vla.gripper import GripperChannel
from coc_vla.motion import EpisodeMotion
from coc_vla.rules import Rules
from coc_vla.trace import parse_trace, trace_faults
from coc_vla.vlm import VlmRequest

FPS = 20.0
WAYS = {"across": (1, 0, 0), "up": (0, 0, 1), "down": (0, 0, -1), "still": (0, 0, 0)}
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


def recorded(*moves):
    """Record moves of 20 frames each; `close` and `open` stand between them."""
    velocity, commands, command = [], [], -1.0
    for move in moves:
        if move in ("close", "open"):
            command = 1.0 if move == "close" else -1.0
            continue
        velocity += [WAYS[move]] * 20
        commands += [command] * 20
    events = GripperChannel(0).events(np.array(commands)[:, None])
    return EpisodeMotion(np.cumsum(velocity, axis=0).astype(float), events, FPS)


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
        assert 4 <= len(steps_of(instruction, recorded(*moves))) <= 7


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_the_shortest_episodes_are_told_too(num_frames):
    motion = EpisodeMotion(np.zeros((num_frames, 3)), (), FPS)
    assert len(steps_of("Open a drawer", motion)) == 4
