"""The author without a model: a causal narrative from recorded motion, gripper and instruction.

It sees no picture. It is the baseline that a vision-language model has to beat, and the author of
tests and of the demo. `narrative_steps` says which steps a recorded motion consists of, `Wording`
puts each into words.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from coc_vla.authors.vlm import VlmAnswer, VlmRequest
from coc_vla.events.instruction_objects import (
    instruction_clauses,
    instruction_objects,
    instruction_verb,
    object_mentions,
    words_of,
)
from coc_vla.events.motion import (
    NO_SHIFT,
    Direction,
    EpisodeMotion,
    GripperEvent,
    Leaning,
    Shift,
    Side,
    motion_phases,
    movement_leanings,
)
from coc_vla.labels.trace import MAX_STEPS, MIN_STEPS, TraceStep, format_trace

MODEL_NAME = "rules-v3"
# What is added to a step that says the same as an earlier one.
AGAIN = ("", " once more", " a third time", " a fourth time", " a fifth time", " a sixth time")
Scene = Literal[
    "begin", "fist", "spread", "approach", "grasp", "held", "release", "retreat", "act", "end"
]
# Closing within this first share of an episode is done on the way, around nothing.
FIST_SHARE = 0.1
_CARRYING_VERBS = frozenset(
    words_of("pick place put stack get grasp take bring insert dunk lift hang")
)
_PULLING_VERBS = frozenset(words_of("pull open unplug"))
# How a side is said after a verb of motion.
_TO_SIDE: dict[Side, str] = {
    "left": "to the left",
    "right": "to the right",
    "forward": "forward",
    "back": "back",
}
_RETREAT_WAYS = {"up": "upwards", "down": "downwards", "across": "away", "still": "to rest"}
_ACT_WAYS = {"up": "upwards", "down": "downwards", "across": "on a level", "still": "a little"}
# An instruction longer than this is not quoted whole in a step.
MAX_QUOTED_WORDS = 22
# What is done and why: by scene, where it matters with the direction, and with `again` where it is
# the second movement of its kind.
_TEXTS: dict[str, tuple[str, str]] = {
    "begin": (
        "Begin with the {gripper} gripper away from {thing}",
        "from there the way to {thing} can be chosen freely",
    ),
    "fist": (
        "Close the empty fingers",
        "closed fingers make one firm tip that can act on {thing}",
    ),
    "spread": ("Open the empty fingers", "open fingers can go around {thing}"),
    "approach across": (
        "Move the {gripper} gripper {across} towards {thing}",
        "{thing} has to be within reach before anything can be done with it",
    ),
    "approach across again": (
        "Go on {across} until the {gripper} gripper is at {thing}",
        "from this height nothing stands between the gripper and {thing}",
    ),
    "approach up": (
        "Raise the {gripper} gripper{sides} on the way to {thing}",
        "from higher up it can come to {thing} without running into it",
    ),
    "approach down": (
        "Lower the {gripper} gripper{sides} to {thing}",
        "only at the height of {thing} can the fingers act on it",
    ),
    "approach still": (
        "Hold the {gripper} gripper still near {thing}",
        "a hand at rest can begin the next movement from a known place",
    ),
    "grasp": (
        "Close the gripper around {thing}",
        "a firm hold makes {thing} follow every further movement of the hand",
    ),
    "held across": (
        "{carry} {thing} {across} towards {goal}",
        "every bit of the way brings {thing} nearer to {goal}",
    ),
    "held across again": (
        "{carry} {thing} on {across} until it is at {goal}",
        "the rest of the way to {goal} is what is still missing",
    ),
    "held up": (
        "Lift {thing}{sides} with the closed gripper",
        "in the air it can travel to {goal} without being stopped on the way",
    ),
    "held down": (
        "Lower {thing}{sides} towards {goal}",
        "close to {goal} it can be let go without falling",
    ),
    "held still": (
        "Hold {thing} still with the closed gripper",
        "it comes to rest where it has been brought",
    ),
    "release": (
        "Open the gripper and let go of {thing}",
        "{thing} can stay at {goal} by itself only when nothing holds it",
    ),
    "retreat": (
        "Take the empty hand {retreat_way}{and_sides}",
        "the hand cannot disturb {thing} any more",
    ),
    "act": (
        "Move the hand {act_way}{and_sides} to {task}",
        "the hand is at {thing} now, so that its movement passes on to {thing}",
    ),
    "act of reaching": (
        "Move the hand {act_way}{and_sides} to {task}",
        "the hand itself has to come to {thing}, and this covers the rest of the way",
    ),
    "end": (
        "Stop the hand and leave {left}",
        "nothing is left to do, and a further movement could undo the result",
    ),
}


@dataclass(frozen=True)
class Rules:
    """Writes a trace from what `EpisodeMotion` holds; the same recording gives the same trace."""

    model_name: str = MODEL_NAME

    def answer(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        """Write each episode's trace."""
        answers = []
        for request in requests:
            began = time.monotonic()
            answers.append(VlmAnswer(_trace(request), None, time.monotonic() - began))
        return answers

    def close(self) -> None:
        """Nothing to let go of."""


def _trace(request: VlmRequest) -> str:
    if request.motion is None:
        raise ValueError("the rules need an episode's motion")
    wording = Wording.of(request.instruction)
    steps: list[TraceStep] = []
    times: Counter[str] = Counter()
    for step in map(wording.step, narrative_steps(request.motion)):
        again = AGAIN[min(times[step.what], len(AGAIN) - 1)]
        times[step.what] += 1
        steps.append(TraceStep(f"{step.what}{again}", step.why))
    return format_trace(_naming_all(steps, request.instruction))


def _naming_all(steps: list[TraceStep], instruction: str) -> list[TraceStep]:
    """Let the last reason name what the checks want to be named and no step has named."""
    text = " ".join(f"{step.what} {step.why}" for step in steps)
    objects = instruction_objects(instruction)
    unnamed = [thing for thing in objects[:1] if not thing.is_named_in(text)]
    if not any(thing.is_named_in(text) for thing in objects[1:]):
        unnamed += objects[1:2]
    if not unnamed:
        return steps
    things = " and ".join(f"the {thing.phrase}" for thing in unnamed)
    last = steps[-1]
    return [*steps[:-1], TraceStep(last.what, f"{last.why}, with {things} taken into account")]


@dataclass(frozen=True)
class Step:
    """One step of a narrative.

    Attributes:
        scene: what it is for.
        direction: of the hand.
        length: its frames, 0 for what happens at one moment.
        shift: of the hand; nothing where the axes are not known.
        gripper: what the gripper is at that time.
        grasp: how often the gripper has closed on something before this step's thing.
        num_grasps: how often it does in the whole episode.
        occurrence: its number among the steps of its scene, direction and grasp, from 1.
    """

    scene: Scene
    direction: Direction = "still"
    length: int = 0
    shift: Shift = NO_SHIFT
    gripper: Literal["open", "closed"] = "open"
    grasp: int = 0
    num_grasps: int = 0
    occurrence: int = 1

    @property
    def leanings(self) -> tuple[Leaning, ...]:
        """Where a movement leads whose axes are known."""
        return movement_leanings(self.direction, self.shift)

    def joined(self, other: "Step") -> "Step":
        """Return both as one movement of this one's kind."""
        right, forward, up = (a + b for a, b in zip(self.shift, other.shift, strict=True))
        return replace(self, length=self.length + other.length, shift=(right, forward, up))


def narrative_steps(motion: EpisodeMotion) -> list[Step]:
    """Return what happens in an episode, in order, in as many steps as a trace may have.

    Where the gripper closes on something, the motion before is approach, the motion until it opens
    is with the thing held. Where it does not, the last motion is the act itself and all before is
    approach.
    """
    steps = _scenes(motion)
    if not any(step.scene == "grasp" for step in steps):
        steps = _with_act(steps)
    while len(steps) > MAX_STEPS:
        shorter = _shortened(steps)
        if len(shorter) == len(steps):
            shorter = [*steps[: MAX_STEPS - 1], steps[-1]]
        steps = shorter
    return _numbered(_filled(steps))


def _scenes(motion: EpisodeMotion) -> list[Step]:
    num_frames = len(motion.positions)
    events = {event.frame: event for event in motion.gripper_events}
    steps: list[Step] = []
    is_held = False
    gripper: Literal["open", "closed"] = "open"
    num_closed = 0
    for phase in motion_phases(motion):
        event = events.get(phase.start)
        if event is not None:
            gripper = "closed" if event.kind == "close" else "open"
            scene = _scene_of(event, num_frames, is_held)
            is_held = scene == "grasp"
            grasp = max(num_closed - (scene == "release"), 0)
            steps.append(Step(scene, gripper=gripper, grasp=grasp))
            num_closed += scene == "grasp"
        scene = "held" if is_held else "retreat" if num_closed else "approach"
        grasp = max(num_closed - (scene != "approach"), 0)
        steps.append(Step(scene, phase.direction, phase.length, phase.shift, gripper, grasp))
    steps = [replace(step, num_grasps=num_closed) for step in _reaching_again(steps)]
    return _without_pauses(_without_settling(steps))


def _scene_of(event: GripperEvent, num_frames: int, is_held: bool) -> Scene:
    if event.kind == "open":
        return "release" if is_held else "spread"
    return "fist" if event.frame < FIST_SHARE * num_frames else "grasp"


def _reaching_again(steps: list[Step]) -> list[Step]:
    """Turn a retreat that another grasp follows into the approach to the next thing."""
    last_grasp = max((i for i, step in enumerate(steps) if step.scene == "grasp"), default=-1)
    return [
        replace(step, scene="approach", grasp=step.grasp + 1)
        if step.scene == "retreat" and position < last_grasp
        else step
        for position, step in enumerate(steps)
    ]


def _without_settling(steps: list[Step]) -> list[Step]:
    """Drop the end of a descent during which the fingers close already."""
    kept: list[Step] = []
    for position, step in enumerate(steps):
        closes = position >= 2 and steps[position - 1].scene == "grasp"
        goes_on = position + 1 < len(steps) and steps[position + 1].scene == "held"
        if closes and goes_on and step.direction in (steps[position - 2].direction, "still"):
            continue
        kept.append(step)
    return kept


def _without_pauses(steps: list[Step]) -> list[Step]:
    """Drop the pauses, and join the motions that one interrupted."""
    moving = [step for step in steps if step.direction != "still" or step.length == 0]
    joined: list[Step] = []
    for step in moving:
        is_moving = bool(joined) and step.length > 0
        if is_moving and replace(joined[-1], length=step.length, shift=step.shift) == step:
            joined[-1] = step.joined(joined[-1])
        else:
            joined.append(step)
    return joined or steps


def _with_act(steps: list[Step]) -> list[Step]:
    """Make the last motion the act; one that stands alone is approach and act in one."""
    moves = [position for position, step in enumerate(steps) if step.length]
    if not moves:
        return steps
    last = moves[-1]
    act = replace(steps[last], scene="act")
    return [*steps, act] if len(moves) == 1 else [*steps[:last], act, *steps[last + 1 :]]


def _shortened(steps: list[Step]) -> list[Step]:
    """Join the shortest motion with a neighbour of the same scene and thing."""
    for position in sorted(range(len(steps)), key=lambda i: steps[i].length):
        step = steps[position]
        for other in (position - 1, position + 1):
            if not 0 <= other < len(steps) or not step.length:
                continue
            neighbour = steps[other]
            if (neighbour.scene, neighbour.grasp) == (step.scene, step.grasp):
                shorter, longer = sorted((step, neighbour), key=lambda s: s.length)
                low = min(position, other)
                return [*steps[:low], longer.joined(shorter), *steps[low + 2 :]]
    return steps


def _filled(steps: list[Step]) -> list[Step]:
    first, last = steps[0], steps[-1]
    gripper: Literal["open", "closed"] = "open" if first.scene == "fist" else first.gripper
    end = Step("end", grasp=last.grasp, num_grasps=last.num_grasps)
    fillers = [
        [*steps, end],
        [Step("begin", gripper=gripper, num_grasps=first.num_grasps), *steps, end],
        [Step("begin", gripper=gripper), *steps, Step("act", gripper=last.gripper), end],
    ]
    return next((more for more in [steps, *fillers] if len(more) >= MIN_STEPS), fillers[-1])


def _numbered(steps: list[Step]) -> list[Step]:
    kinds = [(step.scene, step.direction, step.grasp) for step in steps]
    return [
        replace(step, occurrence=kinds[: position + 1].count(kinds[position]))
        for position, step in enumerate(steps)
    ]


@dataclass(frozen=True)
class Wording:
    """How an instruction's things and aims are called.

    Attributes:
        task: the instruction without a final point, beginning with a small letter.
        verb: its first word.
        things: what is handled, one for each clause of the instruction.
        destinations: where each goes, None where the instruction does not say.
    """

    task: str
    verb: str
    things: tuple[str, ...]
    destinations: tuple[str | None, ...]

    @classmethod
    def of(cls, instruction: str) -> "Wording":
        """Find an instruction's things and where they go."""
        things: list[str] = []
        destinations: list[str | None] = []
        for clause in instruction_clauses(instruction):
            # The robot's own gripper, and what is gone around, are not what is handled.
            mentions = object_mentions(f"do the {clause}" if things else clause)
            handled = [thing for thing in mentions if thing.head != "gripper"] or mentions
            if not handled or clause.startswith("bypass"):
                continue
            thing, last = f"the {handled[0].phrase}", f"the {mentions[-1].phrase}"
            things.append(thing)
            destinations.append(last if last != thing else None)
        if len(things) > 1 and "both" in instruction.lower().split():
            destinations = [destinations[-1]] * len(things)
        text = instruction.strip().rstrip(".!")
        return cls(
            text[:1].lower() + text[1:],
            instruction_verb(instruction),
            tuple(things) or ("the object",),
            tuple(destinations) or (None,),
        )

    def step(self, step: Step) -> TraceStep:
        """Put a step into words."""
        kind = f"{step.scene} {step.direction}"
        kinds = [kind, step.scene]
        if step.occurrence == 2:
            kinds.insert(0, f"{kind} again")
        if step.scene == "act" and self.verb == "reach":
            kinds = ["act of reaching"]
        what, why = next(_TEXTS[kind] for kind in kinds if kind in _TEXTS)
        words = self._words(step)
        return TraceStep(what.format_map(words), why.format_map(words))

    def _words(self, step: Step) -> dict[str, str]:
        """Return what the texts' placeholders stand for."""
        # Which clause a step is about: one clause for each grasp, the last for all further ones.
        place = min(step.grasp, len(self.things) - 1) if step.num_grasps > 1 else 0
        thing, destination = self.things[place], self.destinations[place]
        task = self.task
        if len(task.split()) > MAX_QUOTED_WORDS:
            task = f"do with {thing} what the instruction asks"
        carry = "Carry" if self.verb in _CARRYING_VERBS else "Push"
        sides = _sides(step)
        is_straight = len(step.leanings) == 1
        is_upright = step.direction in ("up", "down")
        return {
            "thing": thing,
            "goal": destination or "the place where it has to go",
            "left": f"{thing} and {destination} as they are"
            if destination
            else f"{thing} as it is",
            "task": task,
            "gripper": step.gripper,
            "carry": "Pull" if self.verb in _PULLING_VERBS else carry,
            "across": f"{'straight' * is_straight}{sides}".strip() or "across",
            "sides": sides,
            "and_sides": f" and{sides}" if is_upright and sides else sides,
            "retreat_way": _RETREAT_WAYS[step.direction],
            "act_way": _ACT_WAYS[step.direction],
        }


def _sides(step: Step) -> str:
    """Say to which sides a movement leads, the main one first, with a space before.

    ` forward and slightly to the left`.
    """
    main_first = sorted(step.leanings, key=lambda leaning: leaning.is_slight)
    sides = [f"{'slightly ' * leaning.is_slight}{_TO_SIDE[leaning.side]}" for leaning in main_first]
    return f" {' and '.join(sides)}" if sides else ""
