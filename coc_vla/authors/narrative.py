"""Which steps a recorded motion consists of, before they are put into words."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from coc_vla.events.gripper import GripperEvent
from coc_vla.events.hand_axes import NO_SHIFT, Leaning, Shift
from coc_vla.events.motion import Direction, EpisodeMotion, motion_phases, movement_leanings

Scene = Literal[
    "begin", "fist", "spread", "approach", "grasp", "held", "release", "retreat", "act", "end"
]
# Closing within this first share of an episode is done on the way, around nothing.
FIST_SHARE = 0.1


@dataclass(frozen=True)
class Step:
    """One step of a narrative.

    Attributes:
        scene: what it is for.
        direction: of the hand.
        length: its frames, 0 for what happens at one moment.
        shift: of the hand; nothing where the axes are not known.
        gripper: what the gripper is at that time.
        grasp: how often it has closed on something before this step's thing.
        num_grasps: how often it closes on something in the whole episode.
        occurrence: the how-manieth step of its scene, direction and grasp, from 1.
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


def narrative_steps(motion: EpisodeMotion, min_steps: int, max_steps: int) -> list[Step]:
    """Return what happens in an episode, in order.

    Where the gripper closes on something, the motion before is approach, the motion until it opens
    is with the thing held. Where it does not, the last motion is the act itself and all before is
    approach.
    """
    steps = _scenes(motion)
    if not any(step.scene == "grasp" for step in steps):
        steps = _with_act(steps)
    while len(steps) > max_steps:
        shorter = _shortened(steps)
        if len(shorter) == len(steps):
            shorter = [*steps[: max_steps - 1], steps[-1]]
        steps = shorter
    return _numbered(_filled(steps, min_steps))


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
            steps.append(
                Step(scene, gripper=gripper, grasp=max(num_closed - (scene == "release"), 0))
            )
            num_closed += scene == "grasp"
        scene = "held" if is_held else "retreat" if num_closed else "approach"
        grasp = max(num_closed - (scene != "approach"), 0)
        step = Step(scene, phase.direction, phase.length, phase.shift, gripper, grasp)
        steps.append(step)
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
        last = joined[-1] if joined else None
        if (
            last is not None
            and step.length
            and replace(last, length=step.length, shift=step.shift) == step
        ):
            joined[-1] = step.joined(last)
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
    if len(moves) == 1:
        return [*steps, act]
    return [*steps[:last], act, *steps[last + 1 :]]


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


def _filled(steps: list[Step], min_steps: int) -> list[Step]:
    first, last = steps[0], steps[-1]
    gripper: Literal["open", "closed"] = "open" if first.scene == "fist" else first.gripper
    end = Step("end", grasp=last.grasp, num_grasps=last.num_grasps)
    fillers = [
        [*steps, end],
        [Step("begin", gripper=gripper, num_grasps=first.num_grasps), *steps, end],
        [Step("begin", gripper=gripper), *steps, Step("act", gripper=last.gripper), end],
    ]
    return next((more for more in [steps, *fillers] if len(more) >= min_steps), fillers[-1])


def _numbered(steps: list[Step]) -> list[Step]:
    seen: Counter[tuple[Scene, Direction, int]] = Counter()
    numbered = []
    for step in steps:
        kind = (step.scene, step.direction, step.grasp)
        seen[kind] += 1
        numbered.append(replace(step, occurrence=seen[kind]))
    return numbered
