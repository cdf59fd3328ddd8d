"""The author without a model: a causal narrative from recorded motion, gripper and instruction.

It sees no picture. It is the baseline that a vision-language model has to beat, and the author of
tests and of the demo.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from coc_vla.authors.narrative import narrative_steps
from coc_vla.authors.vlm import VlmAnswer, VlmRequest
from coc_vla.authors.wording import Wording
from coc_vla.events.instruction_objects import instruction_objects
from coc_vla.labels.trace import MAX_STEPS, MIN_STEPS, TraceStep, format_trace

MODEL_NAME = "rules-v3"
# What is added to a step that says the same as an earlier one.
AGAIN = ("", " once more", " a third time", " a fourth time", " a fifth time", " a sixth time")


@dataclass(frozen=True)
class Rules:
    """Writes a trace from what `EpisodeMotion` holds; the same recording gives the same trace."""

    model_name: str = MODEL_NAME
    needs_images: bool = False
    needs_motion: bool = True

    def answer(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        """Write each episode's trace."""
        return [_timed(request) for request in requests]

    def close(self) -> None:
        """Nothing to let go of."""


def _timed(request: VlmRequest) -> VlmAnswer:
    began = time.monotonic()
    return VlmAnswer(_write(request), None, time.monotonic() - began)


def _write(request: VlmRequest) -> str:
    if request.motion is None:
        raise ValueError("the rules need an episode's motion")
    wording = Wording.of(request.instruction)
    told = [wording.step(step) for step in narrative_steps(request.motion, MIN_STEPS, MAX_STEPS)]
    steps: list[TraceStep] = []
    times: Counter[str] = Counter()
    for step in told:
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
