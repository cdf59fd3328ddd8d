"""A causal trace: numbered steps, each with what the robot does and why; parsed and checked.

The checks keep out what is no explanation. They do not say that a trace is true.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from coc_vla.events.instruction_objects import instruction_objects, words_of

MIN_STEPS, MAX_STEPS = 4, 7
MIN_HALF_WORDS, MAX_HALF_WORDS = 2, 40

_THOUGHT = r"[<\[◁](?:think|thinking|thought|reasoning)[>\]▷]"
_THOUGHT_END = _THOUGHT.replace("(?:", "/(?:", 1)
# What stands around words and means nothing without a renderer: fences, HTML, a server's own marks.
_TAGS = re.compile(
    r"<\|[^<>]*\|>|</?(?:answer|b|br|code|em|h\d|i|li|ol|p|pre|span|strong|u|ul)\s*/?>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~).*$", re.MULTILINE)
_BULLET = re.compile(r"^([ \t]*)[*+•‣◦▪●·–—-][ \t]+", re.MULTILINE)
# Asterisks and backticks are never words; an underscore within one is.
_EMPHASIS = re.compile(r"[*`]+|(?<!\w)_+|_+(?!\w)")
_STEP_START = re.compile(
    r"^[ \t>#-]*(?:step[ \t]+\(?(\d{1,2})(?:[ \t]*$|[ \t]+[-–—:]|\\?[.):])"
    r"|\(?(\d{1,2})(?:[ \t]*\\?[.):](?!\d)|[ \t]+[-–—](?=[ \t])))[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_WHAT, _WHY = (re.compile(rf"\b{name}\s*:", re.IGNORECASE) for name in ("what", "why"))
_CONNECTED = re.compile(
    r"^(?:what\s*:\s*)?(?P<what>.*?)[,;]?\s+"
    r"(?:because\s+|(?=(?:so that|in order to|so as to)\s))(?P<why>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_MARKUP = re.compile(
    r"[*`#|{}\[\]<>\\~^$]+|&#?\w+;|\bhttps?:\S+|^\W*(?:what|why)\b|\b(?:what|why)\W{0,2}:",
    re.IGNORECASE,
)
_COORDINATES = re.compile(
    r"-?\d+\.\d+"
    r"|[\[(<]\s*-?\d+\s*[,;]\s*-?\d+"
    r"|\b[xyz]\s*[=:]\s*-?\d+"
    r"|\b[xyz][- ](?:axis|coordinate|direction)\b"
    r"|\bpixels?\b|\bcoordinates?\b"
    r"|-?\d+\s*(?:px|[cm]?m|met(?:er|re)s?|centimet\w+|millimet\w+|inch(?:es)?|degrees?)\b"
    r"|-?\d+\s*°",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class TraceStep:
    """One step.

    Attributes:
        what: what the robot does.
        why: why this brings the goal nearer.
    """

    what: str
    why: str


@dataclass(frozen=True)
class ParsedTrace:
    """What an answer holds.

    Attributes:
        numbers: the steps' numbers as written.
        steps: in the order written; a missing half is an empty text.
    """

    numbers: tuple[int, ...]
    steps: tuple[TraceStep, ...]


def format_trace(steps: Sequence[TraceStep]) -> str:
    """Write steps in the form that prompts ask for and `parse_trace` reads."""
    return "\n".join(
        f"{number}. What: {step.what}. Why: {step.why}." for number, step in enumerate(steps, 1)
    )


def without_thoughts(answer: str) -> str:
    """Return what an answer says after a model's thoughts (`<think>`); nothing where it thinks on.

    A chat template may have opened the thoughts itself, so that the answer holds their end alone.
    """
    after = re.split(_THOUGHT_END, answer, flags=re.IGNORECASE)[-1]
    return re.split(_THOUGHT, after, maxsplit=1, flags=re.IGNORECASE)[0]


def parse_trace(answer: str) -> ParsedTrace:
    """Read the numbered steps of an answer.

    A line that begins with `1.`, `1)`, `(1)`, `1:`, `1 -` or `Step 1` begins a step. Its halves are
    marked by `What:` and `Why:`, or joined by `because`, `so that`, `in order to` or `so as to`.
    Left out are a model's thoughts, emphasis, bullets, headings, code fences, what stands before
    the first step, a step's title before `What:`, and what follows a half: another paragraph,
    bullet or sentence on a line of its own. `trace_faults` refuses markup that is left.
    """
    text = _TAGS.sub("", "\n".join(without_thoughts(answer).splitlines()))
    text = _EMPHASIS.sub("", _BULLET.sub(r"\1- ", _FENCE.sub("", text)))
    starts = list(_STEP_START.finditer(text))
    bounds = [*(start.start() for start in starts), len(text)]
    bodies = [text[start.end() : end] for start, end in zip(starts, bounds[1:], strict=True)]
    numbers = tuple(int(start[1] or start[2]) for start in starts)
    return ParsedTrace(numbers, tuple(_split(body) for body in bodies))


def trace_faults(trace: ParsedTrace, instruction: str) -> list[str]:
    """Say what keeps a trace from being a label; each sentence can be told to a model.

    Args:
        trace: what an answer holds.
        instruction: what the robot was told; its objects have to be named: the first, and one of
            the others where there are any.
    """
    if not trace.steps:
        return ["there are no numbered steps; write lines like '1. What: ... Why: ...'"]
    faults = []
    count = len(trace.steps)
    if not MIN_STEPS <= count <= MAX_STEPS:
        faults.append(f"there are {count} steps; write {MIN_STEPS} to {MAX_STEPS}")
    if trace.numbers != tuple(range(1, count + 1)):
        written = ", ".join(map(str, trace.numbers))
        faults.append(f"the steps are numbered {written}; number them 1 to {count} in order")
    for number, step in enumerate(trace.steps, 1):
        for name, half in (("What", step.what), ("Why", step.why)):
            faults += [f"step {number} {fault}" for fault in _half_faults(name, half)]
    whats = [" ".join(words_of(step.what)) for step in trace.steps]
    for number, what in enumerate(whats, 1):
        if what and what in whats[: number - 1]:
            faults.append(f"step {number} says the same as step {whats.index(what) + 1}")
    return faults + _coordinate_faults(trace, instruction) + _object_faults(trace, instruction)


def _split(body: str) -> TraceStep:
    label = _WHY.search(body)
    if label is not None:
        title, what = body[: label.start()], _WHAT.search(body, 0, label.start())
        acted = title if what is None else title[what.end() :]
        return TraceStep(_clean(acted), _clean(body[label.end() :]))
    block = _first_block(body)
    match = _CONNECTED.match(block)
    if match is None:
        return TraceStep(_clean(re.sub(r"^what\s*:", "", block, flags=re.IGNORECASE)), "")
    return TraceStep(_clean(match["what"]), _clean(match["why"]))


def _first_block(text: str) -> str:
    """Return the first line with those into which its sentence is wrapped."""
    lines = text.strip().lstrip("># -\t\n").split("\n")
    for count, (line, following) in enumerate(pairwise(lines), 1):
        goes_on = re.match(r"[ \t]*[\"'(]?([^\W\d_])", following)
        is_new = goes_on is None or not goes_on[1].islower()
        if is_new or re.search(r"[.!?][\"')]*\s*$", line) or re.match(r"\s*\w+\s*:", following):
            return "\n".join(lines[:count])
    return "\n".join(lines)


def _clean(half: str) -> str:
    words = " ".join(_first_block(half).split()).strip(" .;,|-–—)").rstrip(" (")
    is_quoted = len(words) > 1 and words[0] == words[-1] == '"' and words.count('"') == 2
    return words.strip('"' if is_quoted else " ").strip(" .;,")


def _half_faults(name: str, half: str) -> list[str]:
    num_words = len(half.split())
    if num_words == 0:
        return [f"has no '{name}:'"]
    if not MIN_HALF_WORDS <= num_words <= MAX_HALF_WORDS:
        return [
            f"has {num_words} words after '{name}:'; write {MIN_HALF_WORDS} to {MAX_HALF_WORDS}"
        ]
    if re.search(r"<[^<>]*>|\.\.\.|…", half):
        return [f"has a placeholder after '{name}:'; write what happens"]
    markup = _MARKUP.findall(half) or [sign for sign in half if unicodedata.category(sign) == "So"]
    if markup:
        return [f"has markup after '{name}:' ('{markup[0]}'); write plain words"]
    return []


def _coordinate_faults(trace: ParsedTrace, instruction: str) -> list[str]:
    allowed = set(re.findall(r"\d+", instruction))
    faults = []
    for number, step in enumerate(trace.steps, 1):
        for match in _COORDINATES.finditer(f"{step.what} | {step.why}"):
            figures = re.findall(r"\d+", match.group())
            # `90 degrees` of the instruction itself is no coordinate.
            if not figures or not set(figures) <= allowed:
                faults.append(
                    f"step {number} has '{match.group().strip()}'; use no coordinates or "
                    "measurements"
                )
                break
    return faults


def _object_faults(trace: ParsedTrace, instruction: str) -> list[str]:
    objects = instruction_objects(instruction)
    text = " ".join(f"{step.what} {step.why}" for step in trace.steps)
    faults = []
    if objects and not objects[0].is_named_in(text):
        faults.append(f"no step names the instruction's '{objects[0].phrase}'")
    others = objects[1:]
    if others and not any(thing.is_named_in(text) for thing in others):
        listed = " or ".join(f"'{thing.phrase}'" for thing in others)
        faults.append(f"no step names the instruction's {listed}")
    return faults
