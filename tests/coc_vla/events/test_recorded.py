import numpy as np
import pytest

from coc_vla.events.motion import EpisodeMotion, GripperEvent, HandAxes
from coc_vla.events.recorded import episode_events

NUM_FRAMES = 60


def held(start, length, value=1.0, rest=0.0):
    signal = np.full(NUM_FRAMES, rest)
    signal[start : start + length] = value
    return signal


def events_of(levels, *gripper_events):
    """Return what a hand does that goes down for 20 frames, waits for 20, and goes up for 20."""
    height = np.concatenate([np.linspace(1, 0, 20), np.zeros(20), np.linspace(0, 1, 20)])
    positions = np.stack([np.zeros(60), np.zeros(60), height], axis=1)
    return episode_events(EpisodeMotion(positions, gripper_events, 20.0), levels)


def test_events_of_hand_made_signals_are_found_in_order():
    levels = {"contact": held(28, 20), "goal": held(52, 8), "lifted": held(45, 15, 0.53, 0.5)}
    found = events_of(levels, GripperEvent(24, "close"), GripperEvent(54, "open"))
    assert [event.kind for event in found] == [
        *("hand_down", "gripper_closes", "contact", "hand_up", "lifted", "goal"),
        "gripper_opens",
    ]
    assert [event.frame for event in found if not event.kind.startswith("hand")] == [
        *(24, 28, 45, 52, 54)
    ]


def test_a_touch_of_two_frames_and_a_lift_of_a_centimetre_are_no_events():
    levels = {"contact": held(28, 2), "goal": held(58, 2), "lifted": held(45, 15, 0.51, 0.5)}
    kinds = [event.kind for event in events_of(levels)]
    # What holds at the episode's end may go on.
    assert [kind for kind in kinds if not kind.startswith("hand")] == ["goal"]


@pytest.mark.parametrize(
    ("axes", "sides"),
    [
        (HandAxes("right", "forward"), (["hand_right", "hand_forward"], ["hand_left"])),
        (None, ([], [])),
    ],
)
def test_a_motion_across_is_also_one_to_the_sides_that_it_leads_to(axes, sides):
    steps = np.repeat([[0.01, 0.003, 0], [0, 0, 0], [-0.01, 0.001, 0]], 20, axis=0)
    found = episode_events(EpisodeMotion(np.cumsum(steps, axis=0), (), 20.0, axes), {})
    assert [event.kind for event in found] == ["hand_across", *sides[0], "hand_across", *sides[1]]
