"""A language model's True or False on a label, beside the lexicon's counts."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.openai_vlm import OpenAiVlm
from coc_vla.authors.vlm import VlmRequest
from coc_vla.events.recorded import EventType
from coc_vla.labels.record import CocLabel
from coc_vla.labels.trace import without_thoughts
from world_modality.statistics.intervals import Interval, ratio_interval
from world_modality.system.errors import InvalidInputError

QUESTIONS = {
    "coverage": "Every recorded event that matters for the instruction is in the explanation.",
    "correctness": "The explanation says nothing that contradicts the recorded events.",
    "minimality": "No step of the explanation could be left out without losing something.",
}
_WORDS: dict[EventType, str] = {
    "gripper_closes": "the gripper closes",
    "gripper_opens": "the gripper opens",
    "contact": "the robot touches something for the first time",
    "lifted": "the object leaves its support",
    "goal": "the goal is reached",
    "hand_up": "the hand moves up",
    "hand_down": "the hand moves down",
    "hand_across": "the hand moves sideways",
    "hand_left": "the hand moves to the left",
    "hand_right": "the hand moves to the right",
    "hand_forward": "the hand moves forward",
    "hand_back": "the hand moves backward",
}
_PROMPT = """A robot was told: {instruction}

What the simulator recorded, in order: {events}.

An explanation of what the robot did and why:
{trace}

Judge these three statements, each by itself:
{questions}

Answer with three lines and nothing else, each the statement's name, a colon, and True or False."""
CONCURRENCY = 8


@dataclass(frozen=True)
class JudgeResult:
    """What a judge said.

    Attributes:
        model_name: who.
        shares: share of True by question, with intervals over the labels that were answered.
        num_judged: labels that were asked about.
        num_unclear: answers that were neither True nor False, or did not come, over all questions.
        answers: by `episode_id`, then question; None where unclear.
    """

    model_name: str
    shares: dict[str, Interval]
    num_judged: int
    num_unclear: int
    answers: dict[int, dict[str, bool | None]]


def judge_labels(
    base_url: str,
    model_name: str,
    labels: Sequence[tuple[CocLabel, Sequence[EventType]]],
    max_tokens: int,
    seed: int,
) -> JudgeResult:
    """Ask a model on an OpenAI-compatible server about labels; it sees no picture.

    Args:
        base_url: of the server, ending in `/v1`.
        model_name: what it calls the model.
        labels: each with the events recorded in its episode.
        max_tokens: of an answer, the model's thoughts included.
        seed: of the server's sampling, which is greedy anyway.

    Raises:
        InvalidInputError: the address is none, or an answer does not end within `max_tokens`.
        VlmUnavailableError: nobody answers there.
    """
    flags = AuthorFlags(
        backend="openai",
        base_url=base_url,
        model_name=model_name,
        max_tokens=max_tokens,
        concurrency=CONCURRENCY,
    )
    requests = [
        VlmRequest(label.episode_id, label.instruction, (), judge_prompt(label, events), seed)
        for label, events in labels
    ]
    judge = OpenAiVlm(flags)
    try:
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            answers = [given[0] for given in pool.map(lambda r: judge.answer([r]), requests)]
    finally:
        judge.close()
    if num_cut_off := sum(answer.is_cut_off for answer in answers):
        raise InvalidInputError(
            f"{num_cut_off} of {len(answers)} answers of the judge {model_name} were cut off at "
            f"{max_tokens} tokens, its thoughts included; raise --judge_max_tokens"
        )
    verdicts = [read_verdict(answer.text) for answer in answers]
    return JudgeResult(
        model_name=model_name,
        shares={question: _share(question, verdicts, seed) for question in QUESTIONS},
        num_judged=len(verdicts),
        num_unclear=sum(value is None for verdict in verdicts for value in verdict.values()),
        answers={r.episode_id: v for r, v in zip(requests, verdicts, strict=True)},
    )


def judge_prompt(label: CocLabel, events: Sequence[EventType]) -> str:
    """Return the question about one label."""
    return _PROMPT.format(
        instruction=label.instruction,
        events="; ".join(_WORDS[event] for event in events) or "nothing",
        trace=label.text,
        questions="\n".join(f"{name}: {text}" for name, text in QUESTIONS.items()),
    )


def read_verdict(answer: str) -> dict[str, bool | None]:
    """Read True or False on each question; None where an answer does not say, or says both."""
    text = without_thoughts(answer)
    verdict: dict[str, bool | None] = {}
    for question in QUESTIONS:
        found = re.findall(rf"\b{question}\b\W*(true|false)\b", text, re.IGNORECASE)
        said = {word.lower() == "true" for word in found}
        verdict[question] = said.pop() if len(said) == 1 else None
    return verdict


def _share(question: str, verdicts: list[dict[str, bool | None]], seed: int) -> Interval:
    given = [verdict[question] for verdict in verdicts]
    return ratio_interval(
        np.array([value is True for value in given], dtype=np.float64),
        np.array([value is not None for value in given], dtype=np.float64),
        seed,
    )
