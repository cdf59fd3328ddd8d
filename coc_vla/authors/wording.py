"""The words of the rules: what each step of a narrative is called, and why it is done."""

from dataclasses import dataclass

from coc_vla.authors.narrative import Step
from coc_vla.events.hand_axes import Side
from coc_vla.events.instruction_objects import (
    instruction_clauses,
    instruction_verb,
    object_mentions,
)
from coc_vla.events.motion import Direction
from coc_vla.labels.trace import TraceStep

_CARRYING_VERBS = frozenset(
    (
        "pick",
        "place",
        "put",
        "stack",
        "get",
        "grasp",
        "take",
        "bring",
        "insert",
        "dunk",
        "lift",
        "hang",
    )
)
_PULLING_VERBS = frozenset(("pull", "open", "unplug"))
# How a side is said after a verb of motion.
_TO_SIDE: dict[Side, str] = {
    "left": "to the left",
    "right": "to the right",
    "forward": "forward",
    "back": "back",
}
# An instruction longer than this is not quoted whole in a step.
MAX_QUOTED_WORDS = 22


@dataclass(frozen=True)
class Wording:
    """How an instruction's things and aims are called.

    Attributes:
        instruction: without a final point, beginning with a capital.
        verb: its first word.
        things: what is handled, one for each clause of the instruction.
        destinations: where each goes, None where the instruction does not say.
    """

    instruction: str
    verb: str
    things: tuple[str, ...]
    destinations: tuple[str | None, ...]

    @classmethod
    def of(cls, instruction: str) -> "Wording":
        """Find an instruction's things and where they go."""
        verb = instruction_verb(instruction)
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
            text[:1].upper() + text[1:],
            verb,
            tuple(things) or ("the object",),
            tuple(destinations) or (None,),
        )

    def step(self, step: Step) -> TraceStep:
        """Put a step into words."""
        thing = self._thing(step)
        what, why = getattr(self, f"_{step.scene}")(step, thing)
        return TraceStep(what, why)

    def _place(self, step: Step) -> int:
        """Return which clause's thing a step is about: the how-manieth grasp, the last at most."""
        return min(step.grasp, len(self.things) - 1) if step.num_grasps > 1 else 0

    def _thing(self, step: Step) -> str:
        return self.things[self._place(step)]

    def _goal(self, step: Step) -> str:
        return self.destinations[self._place(step)] or "the place where it has to go"

    def _begin(self, step: Step, thing: str) -> tuple[str, str]:
        return (
            f"Begin with the {step.gripper} gripper away from {thing}",
            f"from there the way to {thing} can be chosen freely",
        )

    def _fist(self, step: Step, thing: str) -> tuple[str, str]:
        return (
            "Close the empty fingers",
            f"closed fingers make one firm tip that can act on {thing}",
        )

    def _spread(self, step: Step, thing: str) -> tuple[str, str]:
        return "Open the empty fingers", f"open fingers can go around {thing}"

    def _approach(self, step: Step, thing: str) -> tuple[str, str]:
        gripper = f"the {step.gripper} gripper"
        across, aslant = _across(step), _aslant(step)
        texts: dict[Direction, tuple[str, str]] = {
            "across": (
                f"Move {gripper} {across} towards {thing}",
                f"{thing} has to be within reach before anything can be done with it",
            ),
            "up": (
                f"Raise {gripper}{aslant} on the way to {thing}",
                f"from higher up it can come to {thing} without running into it",
            ),
            "down": (
                f"Lower {gripper}{aslant} to {thing}",
                f"only at the height of {thing} can the fingers act on it",
            ),
            "still": (
                f"Hold {gripper} still near {thing}",
                "a hand at rest can begin the next movement from a known place",
            ),
        }
        if step.occurrence == 2 and step.direction == "across":
            return (
                f"Go on {across} until {gripper} is at {thing}",
                f"from this height nothing stands between the gripper and {thing}",
            )
        return texts[step.direction]

    def _grasp(self, step: Step, thing: str) -> tuple[str, str]:
        return (
            f"Close the gripper around {thing}",
            f"a firm hold makes {thing} follow every further movement of the hand",
        )

    def _held(self, step: Step, thing: str) -> tuple[str, str]:
        goal, across, aslant = self._goal(step), _across(step), _aslant(step)
        carry = "Carry" if self.verb in _CARRYING_VERBS else "Push"
        carry = "Pull" if self.verb in _PULLING_VERBS else carry
        if step.occurrence == 2 and step.direction == "across":
            return (
                f"{carry} {thing} on {across} until it is at {goal}",
                f"the rest of the way to {goal} is what is still missing",
            )
        texts: dict[Direction, tuple[str, str]] = {
            "across": (
                f"{carry} {thing} {across} towards {goal}",
                f"every bit of the way brings {thing} nearer to {goal}",
            ),
            "up": (
                f"Lift {thing}{aslant} with the closed gripper",
                f"in the air it can travel to {goal} without being stopped on the way",
            ),
            "down": (
                f"Lower {thing}{aslant} towards {goal}",
                f"close to {goal} it can be let go without falling",
            ),
            "still": (
                f"Hold {thing} still with the closed gripper",
                "it comes to rest where it has been brought",
            ),
        }
        return texts[step.direction]

    def _release(self, step: Step, thing: str) -> tuple[str, str]:
        goal = self._goal(step)
        return (
            f"Open the gripper and let go of {thing}",
            f"{thing} can stay at {goal} by itself only when nothing holds it",
        )

    def _retreat(self, step: Step, thing: str) -> tuple[str, str]:
        way = {"up": "upwards", "down": "downwards", "across": "away", "still": "to rest"}
        return (
            f"Take the empty hand {way[step.direction]}{_also_aslant(step)}",
            f"the hand cannot disturb {thing} any more",
        )

    def _act(self, step: Step, thing: str) -> tuple[str, str]:
        way = {"up": "upwards", "down": "downwards", "across": "on a level", "still": "a little"}
        task = self.instruction[:1].lower() + self.instruction[1:]
        if len(task.split()) > MAX_QUOTED_WORDS:
            task = f"do with {thing} what the instruction asks"
        why = f"the hand is at {thing} now, so that its movement passes on to {thing}"
        if self.verb == "reach":
            why = f"the hand itself has to come to {thing}, and this covers the rest of the way"
        return f"Move the hand {way[step.direction]}{_also_aslant(step)} to {task}", why

    def _end(self, step: Step, thing: str) -> tuple[str, str]:
        left = f"{thing} as it is"
        destination = self.destinations[self._place(step)]
        if destination is not None:
            left = f"{thing} and {destination} as they are"
        return (
            f"Stop the hand and leave {left}",
            "nothing is left to do, and a further movement could undo the result",
        )


def _across(step: Step) -> str:
    """Say where a movement across leads, as far as that is known."""
    if not step.leanings:
        return "across"
    return ("straight" + _aslant(step) if len(step.leanings) == 1 else _aslant(step)).strip()


def _aslant(step: Step) -> str:
    """Say to which sides a movement leads, the main one first, with a space before.

    ` forward and slightly to the left`.
    """
    main_first = sorted(step.leanings, key=lambda leaning: leaning.is_slight)
    sides = [f"{'slightly ' * leaning.is_slight}{_TO_SIDE[leaning.side]}" for leaning in main_first]
    return f" {' and '.join(sides)}" if sides else ""


def _also_aslant(step: Step) -> str:
    """Say the sides after `upwards` or `downwards`, with `and`; after another way as they are."""
    is_upright = step.direction in ("up", "down")
    return f" and{_aslant(step)}" if is_upright and step.leanings else _aslant(step)
