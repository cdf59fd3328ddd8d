"""Which events a trace claims, by a small lexicon; no language model.

Only what a step says the robot *does* is read; its reason speaks of what is hoped for. A step may
claim several events; those that happen once count once. The words of each event stand in
`_PATTERNS`; the goal is also claimed by the last step that repeats the instruction's verb and first
thing, and a movement to a side is one across where the step says neither up nor down.

`the closed gripper` and `the open gripper` claim nothing: they say how the gripper is.
Nor do `to the left of the plate`, `the left plate` and `the back burner`: they say where it is.
The sides that one step names have no order among themselves.
"""

import re
from collections.abc import Sequence

from coc_vla.events.instruction_objects import instruction_objects, instruction_verb
from coc_vla.events.recorded import EVENT_TYPES, ONCE, SIDE_EVENTS, EventType
from coc_vla.labels.trace import TraceStep

_HAND = r"(?:gripper|grippers|finger|fingers|hand|jaw|jaws|claw|claws)"
_ITS = r"(?:the |its |both |all |two |robot'?s? |empty |robotic )*"
# `the open gripper` says how it is.
_NOT_SAID_OF = r"(?<!\bthe )(?<!\ban )(?<!\bits )"
_GRASP = (
    r"grasp(?:s|ing)?|grabs?|grabbing|grips?|gripping|pinch(?:es|ing)?|seiz(?:es?|ing)"
    r"|clamp(?:s|ing)?"
)
# `to the left burner` and `to the left of the plate` say where something is.
_NO_PLACE = r"(?=\s*$|[.,;:)]|\s(?:and|then|towards?|until|to|over|above|with|while|on the way)\b)"
_LEVEL_WORDS = r"across|sideways|level|horizontal(?:ly)?|laterally"
_LIFT = (
    r"lift(?:s|ing)?|hoist(?:s|ing)?|pick(?:s|ing)?(?: \w+){0,4} up"
    rf"|rais(?:es?|ing) (?!{_ITS}(?:open |closed )?(?:{_HAND}|arm))"
)
_ACT_ON = (
    r"touch(?:es|ing)?|contacts?|press(?:es|ing)?|push(?:es|ing)?|pull(?:s|ing)?|slid(?:es?|ing)"
    r"|turn(?:s|ing)?|rotat(?:es?|ing)|hit(?:s|ting)?|strik(?:es?|ing)|hold(?:s|ing)?"
    r"|carr(?:y|ies|ying)"
    rf"|{_NOT_SAID_OF}(?:open|clos)(?:e|s|es|ing)? (?:an?|the) (?!{_ITS}{_HAND})"
    rf"|clos(?:es?|ing) {_ITS}{_HAND} (?:around|on|over)"
)
_PATTERNS: dict[EventType, str] = {
    "gripper_closes": rf"clos(?:es?|ing) {_ITS}{_HAND}|{_GRASP}",
    "gripper_opens": (
        rf"{_NOT_SAID_OF}open(?:s|ing)? {_ITS}{_HAND}|releas(?:es?|ing)"
        r"|let(?:s|ting)? (?:\w+ ){0,4}?go|drop(?:s|ping)?"
    ),
    "contact": rf"{_ACT_ON}|{_GRASP}|{_LIFT}",
    "lifted": _LIFT,
    "goal": (
        r"complet(?:es?|ed|ing)|finish(?:es|ed|ing)?|achiev(?:es?|ed|ing)|succeed(?:s|ed)?"
        r"|plac(?:es?|ing)|put(?:s|ting)?|set(?:s|ting)?"
        r"|leav(?:es?|ing) [^,;]*\bas (?:it is|they are)"
    ),
    "hand_up": r"rais(?:es?|ing)|lift(?:s|ing)?|ris(?:es?|ing)|ascend(?:s|ing)?|up|upwards?",
    "hand_down": r"lower(?:s|ing)?|descend(?:s|ing)?|down|downwards?",
    # With the words before the side, so that it is not claimed after `hand_left`.
    "hand_across": (
        rf"{_LEVEL_WORDS}|(?:to (?:the|its) )?(?:left|right)|forwards?|(?<!the )back|backwards?"
    ),
    "hand_left": rf"to (?:the|its) left{_NO_PLACE}|leftwards?",
    "hand_right": rf"to (?:the|its) right{_NO_PLACE}|rightwards?",
    "hand_forward": r"forwards?|ahead",
    "hand_back": r"(?<!the )back|backwards?",
}
_LEVEL = re.compile(rf"\b(?:{_LEVEL_WORDS})\b", re.IGNORECASE)
_LEXICON = {
    kind: re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE) for kind, pattern in _PATTERNS.items()
}


def claimed_events(steps: Sequence[TraceStep], instruction: str) -> list[EventType]:
    """Return the events that a trace claims, in its order.

    Args:
        steps: of the trace.
        instruction: what the robot was told.
    """
    claims = [_step_claims(step.what) for step in steps]
    done = [i for i, step in enumerate(steps) if _repeats(step.what, instruction)]
    if done and "goal" not in claims[done[-1]]:
        claims[done[-1]].append("goal")
    ordered = [kind for step in claims for kind in step]
    last_goal = len(ordered) - 1 - ordered[::-1].index("goal") if "goal" in ordered else None
    kept: list[EventType] = []
    for position, kind in enumerate(ordered):
        # The goal is reached where it is claimed last, the other single events where first.
        if kind == "goal" and position != last_goal:
            continue
        if kind in ONCE and kind in kept:
            continue
        kept.append(kind)
    return kept


def _step_claims(what: str) -> list[EventType]:
    """Return each type that a step claims once, in the order of the words.

    Words that claim several types claim them in the order in which they follow from each other.
    """
    found = []
    for kind, pattern in _LEXICON.items():
        match = pattern.search(what)
        if match is not None:
            found.append((match.start(), EVENT_TYPES.index(kind), kind))
    kinds = _with_sides_in_order([kind for _, _, kind in sorted(found)])
    # `Raise the gripper to the left` is one slanting movement, and no level one.
    if {"hand_up", "hand_down"} & set(kinds) and not _LEVEL.search(what):
        kinds = [kind for kind in kinds if kind != "hand_across"]
    return kinds


def _with_sides_in_order(kinds: list[EventType]) -> list[EventType]:
    """Sort the sides: `forward and to the left` is the same slant as `to the left and forward`."""
    sides = iter(sorted((k for k in kinds if k in SIDE_EVENTS), key=EVENT_TYPES.index))
    return [next(sides) if kind in SIDE_EVENTS else kind for kind in kinds]


def _repeats(what: str, instruction: str) -> bool:
    verb, things = instruction_verb(instruction), instruction_objects(instruction)
    if not verb or not things:
        return False
    stem = re.escape(verb.removesuffix("e"))
    said = re.search(rf"\b{stem}(?:e|es|s|ing|{verb[-1:]}ing)?\b", what, re.IGNORECASE)
    return said is not None and things[0].is_named_in(what)
