import json
import time
from dataclasses import replace

import pytest

from coc_vla.events.instruction_objects import instruction_clauses, instruction_objects
from coc_vla.labels.trace import ParsedTrace, TraceStep, format_trace, parse_trace, trace_faults
from tests.fixtures.chat_server import GOOD_ANSWER, GOOD_STEPS

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


def each_step(form):
    """Write the good steps in a form with {n}, {what} and {why}."""
    return "\n".join(
        form.format(n=n, what=what, why=why) for n, (what, why) in enumerate(GOOD_STEPS, 1)
    )


# What models write around the steps and in them; the same trace has to be read from each.
DRESSINGS = {
    "preamble and closing": f"Here are the steps:\n\n{GOOD_ANSWER}\n\nI hope that 1 of them helps.",
    "thoughts": f"<think>1. What: no. Why: no.</think>\n{GOOD_ANSWER}",
    "thoughts that the template opens": f"1. What: no. Why: no.</think>\n{GOOD_ANSWER}",
    "Mistral's thoughts": f"[THINK]1. What: no. Why: no.[/THINK]{GOOD_ANSWER}",
    "an answer's tag": f"<thinking>1. Hm.</thinking>\n<answer>\n{GOOD_ANSWER}\n</answer>",
    "a fence and a remark": f"```markdown\n{GOOD_ANSWER}\n```\nThese steps fit the pictures.",
    "a server's end mark": f"{GOOD_ANSWER}<|im_end|>",
    "bold halves": each_step("{n}. **What:** {what}.\n   **Why:** {why}."),
    "colon after the bold": each_step("{n}. **What**: {what}. **Why**: {why}."),
    "bold numbers": each_step("**{n}.** **What:** *{what}*. **Why:** *{why}*."),
    "bullets under a title": each_step("**Step {n}: Act**\n- **What:** {what}\n- **Why:** {why}\n"),
    "starred bullets": each_step("{n}.\n   * __What__: {what}\n   * __Why__: {why}"),
    "headings": each_step(
        "### Step {n}: The gripper\n**What:** {what}.\n\n**Why:** {why}.\n\n---\n"
    ),
    "a heading for each half": each_step("## {n}. Act\n#### What:\n{what}\n#### Why:\n{why}\n"),
    "bulleted numbers": each_step("- {n}) What: {what}; _Why:_ {why}"),
    "quotation": each_step("> {n}. What: {what}. Why: {why}."),
    "numbers in brackets": each_step("({n}) What: {what} (Why: {why})"),
    "escaped points": each_step("{n}\\. What: {what}. Why: {why}."),
    "a dash after the number": each_step("{n} - What: {what} – Why: {why}"),
    "a step's number alone": each_step("Step {n}\nWhat: {what}\nWhy: {why}\n"),
    "HTML": each_step("{n}. <b>What:</b> {what}.<br> <b>Why:</b> {why}."),
    "code": each_step("{n}. `What:` {what}. `Why:` {why}."),
    "quotation marks": each_step('{n}. What: "{what}". Why: "{why}".'),
    "because": each_step("{n}. {what} because {why}."),
    "because on a line of its own": each_step("{n}. {what}\n   because {why}."),
    "other lines": GOOD_ANSWER.replace("\n", "\r\n"),
    "wrapped lines": GOOD_ANSWER.replace(" to ", " to\n   ").replace(" has ", "\n   has "),
    "closing on the next line": f"{GOOD_ANSWER}\nThis completes the task.",
    "closing without a point before": f"{GOOD_ANSWER[:-1]}\nIn summary, it is done.",
    "a closing heading": f"{GOOD_ANSWER}\n### Summary\nIt is done.",
    "a closing bullet": f"{GOOD_ANSWER}\n* Note: the steps follow the pictures.",
    "a rule between steps": GOOD_ANSWER.replace("\n", "\n***\n"),
    "phases between steps": GOOD_ANSWER.replace("\n", "\n## Phase 2: onwards\n"),
    "further lines of a step": each_step(
        "{n}. **What:** {what}.\n   **Why:** {why}.\n   **Evidence:** frame {n}."
    ),
}


@pytest.mark.parametrize("answer", DRESSINGS.values(), ids=DRESSINGS)
def test_what_models_put_around_a_trace_is_left_out(answer):
    assert parse_trace(answer) == parse_trace(GOOD_ANSWER)
    assert faults_of(answer) == []


# Forms that hold no trace, or one that cannot be told from its markup.
REFUSED = {
    "a plan in thoughts without an end": (f"<think>\n{GOOD_ANSWER}", "no numbered steps"),
    "thoughts again, after others": (
        f"<think>no</think><think>{GOOD_ANSWER}",
        "no numbered steps",
    ),
    "JSON": (
        json.dumps([{"step": 1, "what": what, "why": why} for what, why in GOOD_STEPS]),
        "no numbered steps",
    ),
    "JSON by number": (
        each_step('{n}. {{"What": "{what}", "Why": "so that {why}"}}'),
        "step 1 has markup",
    ),
    "a table": (each_step("| {n} | {what} | because {why} |"), "no numbered steps"),
    "a table's cells": (each_step("{n}. What: {what} | Who: robot. Why: {why}"), "markup"),
    "a link": (each_step("{n}. What: {what}. Why: [{why}](frame.jpg)"), "markup"),
    "TeX": (each_step("{n}. What: {what} $\\rightarrow$ go. Why: {why}"), "markup"),
    "an escaped sign": (each_step("{n}. What: {what} &amp; go. Why: {why}"), "markup"),
    "struck out": (each_step("{n}. What: ~~no~~ {what}. Why: {why}"), "markup"),
    "a box": (each_step("{n}. What: \\boxed{{{what}}}. Why: {why}"), "markup"),
    "a picture": (each_step("{n}. What: {what} ✅. Why: {why}"), "markup after 'What:' ('✅')"),
    "a dash for the colon": (each_step("{n}. What - {what}, because {why}"), "markup"),
    "two reasons": (each_step("{n}. What: {what}. Why: {why}. Why: it has to"), "markup"),
    "numbered halves": (each_step("{n}. Act\n   1. What: {what}\n   2. Why: {why}"), "numbered"),
}


@pytest.mark.parametrize(("answer", "fault"), REFUSED.values(), ids=REFUSED)
def test_an_answer_whose_markup_cannot_be_cut_off_is_refused(answer, fault):
    assert fault in "; ".join(faults_of(answer))


@pytest.mark.parametrize("filling", ["what: move a ", "- , . ", "because ", "((", "why "])
def test_an_answer_that_rambles_is_read_in_no_time(filling):
    began = time.process_time()
    faults_of("1. " + filling * 5000)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("half", ["what", "why"])
@pytest.mark.parametrize("markup", ["**", "`", "# ", "|", "{", "[", "<", "\\", "Why: ", "🙂"])
def test_markup_in_a_half_is_a_fault_wherever_it_came_from(half, markup):
    steps = [TraceStep(*step) for step in GOOD_STEPS]
    steps[2] = replace(steps[2], **{half: f"{markup}close the gripper around the block"})
    trace = ParsedTrace((1, 2, 3, 4), tuple(steps))
    assert f"step 3 has markup after '{half.capitalize()}:'" in trace_faults(trace, INSTRUCTION)[0]


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


def test_an_angle_of_the_instruction_is_no_coordinate_and_a_plural_names_the_object():
    answer = GOOD_ANSWER.replace("block", "dial").replace("this change", "a turn of 90 degrees")
    assert faults_of(answer, "Rotate a dial 90 degrees") == []
    assert "90 degrees" in "; ".join(faults_of(answer, "Rotate a dial"))
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
