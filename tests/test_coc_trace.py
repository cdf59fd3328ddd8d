import pytest

from coc_vla.instruction_objects import instruction_clauses, instruction_objects
from coc_vla.trace import TraceStep, format_trace, parse_trace, trace_faults
from tests.chat_server import GOOD_ANSWER, GOOD_STEPS

INSTRUCTION = "push the block to the goal"


def faults_of(answer, instruction=INSTRUCTION):
    return trace_faults(parse_trace(answer), instruction)


def changed(number, **halves):
    steps = [TraceStep(*step) for step in GOOD_STEPS]
    before = steps[number - 1]
    steps[number - 1] = TraceStep(halves.get("what", before.what), halves.get("why", before.why))
    return format_trace(steps)


def test_a_written_trace_reads_back_and_has_no_faults():
    trace = parse_trace(GOOD_ANSWER)
    assert trace.steps == tuple(TraceStep(*step) for step in GOOD_STEPS)
    assert trace.numbers == (1, 2, 3, 4)
    assert faults_of(GOOD_ANSWER) == []


@pytest.mark.parametrize(
    "dressing",
    [
        lambda text: f"Here are the steps:\n\n{text}\n\nI hope that 1 of them helps.",
        lambda text: f"<think>1. What: no. Why: no.</think>\n{text}",
        lambda text: f"```\n{text}\n```",
        lambda text: text.replace("What:", "**What:**").replace("Why:", "\n   **Why:**"),
        lambda text: "\n".join(f"Step {line.replace('.', ':', 1)}" for line in text.splitlines()),
        lambda text: text.replace("What: ", "").replace(". Why: ", " because "),
        lambda text: text.replace("\n", "\r\n"),
    ],
)
def test_what_models_put_around_a_trace_is_left_out(dressing):
    assert parse_trace(dressing(GOOD_ANSWER)) == parse_trace(GOOD_ANSWER)


def test_a_connector_of_purpose_stays_in_the_reason():
    (step,) = parse_trace("1. Lower the hand so that the fingers reach the block").steps
    assert step == TraceStep("Lower the hand", "so that the fingers reach the block")


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("", "no numbered steps"),
        ("The robot pushes the block.", "no numbered steps"),
        ("\n".join(GOOD_ANSWER.splitlines()[:3]), "there are 3 steps"),
        (GOOD_ANSWER.replace("3. ", "5. "), "numbered 1, 2, 5, 4"),
        (changed(2, why=""), "step 2 has no 'Why:'"),
        (changed(2, what=""), "step 2 has no 'What:'"),
        (changed(2, why="because"), "step 2 has 1 words"),
        (changed(2, why="so " * 41), "step 2 has 41 words"),
        (changed(3, what="Move to (0.31, 0.2)"), "step 3 has '0.31'"),
        (changed(3, what="Move to [31, 20]"), "step 3 has '[31, 20'"),
        (changed(3, why="the block is at x = 12"), "step 3 has 'x = 12'"),
        (changed(3, why="the block is 5 cm away"), "step 3 has '5 cm'"),
        (changed(3, why="it is a pixel away"), "step 3 has 'pixel'"),
        (changed(3, what="<what the robot does>"), "placeholder"),
        (changed(3, what=GOOD_STEPS[0][0]), "step 3 says the same as step 1"),
        (GOOD_ANSWER.replace("block", "cube"), "'block'"),
        (GOOD_ANSWER.replace("goal", "end"), "'goal'"),
    ],
)
def test_what_is_no_explanation_is_refused_with_the_reason(answer, fault):
    assert fault in "; ".join(faults_of(answer))


def test_eight_steps_are_too_many():
    steps = [TraceStep(f"Push the block bit {word}", "it nears the goal") for word in "abcdefgh"]
    assert "there are 8 steps" in faults_of(format_trace(steps))[0]
    assert faults_of(format_trace(steps[:7])) == []


def test_an_angle_of_the_instruction_itself_is_no_coordinate():
    answer = GOOD_ANSWER.replace("block", "dial").replace("this change", "a turn of 90 degrees")
    assert faults_of(answer, "Rotate a dial 90 degrees") == []
    assert "90 degrees" in "; ".join(faults_of(answer, "Rotate a dial"))


def test_a_plural_names_the_object():
    assert faults_of(GOOD_ANSWER, "push the blocks to the goals") == []


@pytest.mark.parametrize(
    ("instruction", "heads"),
    [
        ("Push the puck to a goal", ["puck", "goal"]),
        ("Bypass a wall and press a button from the top", ["wall", "button"]),
        ("Hammer a screw on the wall", ["screw", "wall"]),
        ("Reach a goal position", ["goal"]),
        ("Rotate the faucet counter-clockwise", ["faucet"]),
        ("open the middle drawer of the cabinet", ["drawer", "cabinet"]),
        (
            "put both the alphabet soup and the tomato sauce in the basket",
            ["soup", "sauce", "basket"],
        ),
        ("put the yellow and white mug in the microwave and close it", ["mug", "microwave"]),
        ("pick up red block and blue block", ["block", "block"]),
        ("", []),
    ],
)
def test_the_objects_of_an_instruction_are_found(instruction, heads):
    assert [thing.head for thing in instruction_objects(instruction)] == heads


def test_an_instruction_of_two_tasks_has_two_clauses():
    assert len(instruction_clauses("turn on the stove and put the moka pot on it")) == 2
    assert len(instruction_clauses("pick up the bowl and place it on the plate")) == 1
    assert len(instruction_clauses("Pick and place a puck to a goal")) == 1
