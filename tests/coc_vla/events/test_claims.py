import pytest

from coc_vla.events.claims import claimed_events
from coc_vla.labels.trace import TraceStep

DOWN_AND_ACROSS = ["hand_down", "hand_across", "hand_right"]
RIGHT_WITH_CONTACT = ["contact", "hand_across", "hand_right"]


@pytest.mark.parametrize(
    ("what", "claims"),
    [
        ("Close the gripper around the puck", ["gripper_closes", "contact"]),
        ("The robot grasps the bowl", ["gripper_closes", "contact"]),
        ("Close the drawer", ["contact"]),
        ("Open the gripper and let go of the puck", ["gripper_opens"]),
        ("Opens its fingers", ["gripper_opens"]),
        ("Move the open gripper across towards the puck", ["hand_across"]),
        ("Lower the closed gripper to the puck", ["hand_down"]),
        ("Raise the open gripper on the way", ["hand_up"]),
        ("Lift the puck with the closed gripper", ["contact", "lifted", "hand_up"]),
        ("Raise the bowl off the table", ["contact", "lifted", "hand_up"]),
        ("Wait near the table", []),
        ("Stop the hand and leave the puck as it is", ["goal"]),
        (
            "Move the open gripper to the left and forward towards the puck",
            ["hand_across", "hand_left", "hand_forward"],
        ),
        (
            "Move the open gripper forward and slightly to the left towards the puck",
            ["hand_across", "hand_left", "hand_forward"],
        ),
        ("Carry the mug straight to the right until it is there", RIGHT_WITH_CONTACT),
        ("Move the hand on a level straight back to wait", ["hand_across", "hand_back"]),
        ("Raise the open gripper to the left on the way", ["hand_up", "hand_left"]),
        ("Lower the gripper across the table to the right", DOWN_AND_ACROSS),
        ("Carry the mug to the right burner", ["contact", "hand_across"]),
        ("Carry the mug to the left of the plate", ["contact", "hand_across"]),
        ("Carry the book to the back compartment", ["contact"]),
    ],
)
def test_lexicon(what, claims):
    assert sorted(claimed_events([TraceStep(what, "")], "stir the soup")) == sorted(claims)


def test_the_words_order_of_two_sides_claims_no_order():
    for what in ("Go to the left and forward", "Go forward and slightly to the left"):
        claims = claimed_events([TraceStep(what, "")], "stir the soup")
        assert claims == ["hand_across", "hand_left", "hand_forward"]


def test_reasons_claim_nothing_and_single_events_count_once():
    steps = [
        TraceStep("Push the puck", "so that it can be lifted when the gripper closes"),
        TraceStep("Push the puck across", "it is not there yet"),
        TraceStep("Push the puck to the goal", "this is what was asked"),
    ]
    assert claimed_events(steps, "push the puck to the goal") == ["contact", "hand_across", "goal"]
