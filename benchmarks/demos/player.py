"""Plays one attempt of a scripted expert and records what it sees and does; knows no suite."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from benchmarks.demos.episode import DemoEpisode, stack_frames
from benchmarks.demos.signals import CONTACT, EXECUTED_ACTION, OBJECT_HEIGHT, SUCCESS

ACTION_KEY = "action"
ActionLabel = Literal["executed", "expert"]


@runtime_checkable
class DemoSimulator(Protocol):
    """What playing an attempt needs of a suite's simulator, which has been reset."""

    def observe(self) -> dict[str, np.ndarray]:
        """Return what is seen now, by LeRobot feature name."""

    def step(self, action: Float32[np.ndarray, " A"]) -> bool:
        """Execute one action and tell whether the task is solved now."""

    def in_contact(self) -> bool:
        """Tell whether the robot touches something."""

    def object_height(self) -> float:
        """Return the height of the object that the task is about, in m."""


@dataclass(frozen=True, kw_only=True)
class PlaySettings:
    """What decides how an expert is played; the flags of the same names."""

    action_noise: float
    action_label: ActionLabel
    max_steps: int
    success_hold: int


def play_expert(
    simulator: DemoSimulator,
    expert: Callable[[], Float[np.ndarray, " A"]],
    settings: PlaySettings,
    noise: np.random.Generator,
    instruction: str,
) -> DemoEpisode | None:
    """Play one attempt and return it, or None if the task was not solved within `max_steps`.

    A frame holds the observation and the action that is taken in it. The last action is the one
    after which the task is solved, or comes `success_hold` frames later.

    Args:
        simulator: at the first frame of the attempt.
        expert: returns the action for the simulator's present state; values past [-1, 1] are
            clipped.
        settings: how it is played.
        noise: of the action noise.
        instruction: the task in words.
    """
    frames: list[dict[str, np.ndarray]] = []
    signals: list[dict[str, np.ndarray]] = []
    num_remaining = settings.max_steps
    solved = False
    while num_remaining > 0:
        intended = np.clip(expert(), -1, 1)
        disturbance = settings.action_noise * noise.standard_normal(len(intended))
        executed = np.clip(intended + disturbance, -1, 1).astype(np.float32)
        stored = executed if settings.action_label == "executed" else intended
        frames.append({**simulator.observe(), ACTION_KEY: stored.astype(np.float32)})
        success = simulator.step(executed)
        signals.append(
            {
                EXECUTED_ACTION: executed,
                CONTACT: np.array([simulator.in_contact()], np.float32),
                SUCCESS: np.array([success], np.float32),
                OBJECT_HEIGHT: np.array([simulator.object_height()], np.float32),
            }
        )
        num_remaining -= 1
        if success and not solved:
            solved = True
            num_remaining = min(num_remaining, settings.success_hold)
    if not solved:
        return None
    return DemoEpisode(instruction, stack_frames(frames), stack_frames(signals))
