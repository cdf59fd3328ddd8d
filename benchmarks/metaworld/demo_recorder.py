"""Plays MetaWorld's scripted experts and records what they see and do."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.demo_episode import DemoEpisode, stack_frames
from benchmarks.demo_signals import CONTACT, EXECUTED_ACTION, SUCCESS
from benchmarks.metaworld.layouts import DEMONSTRATION_STREAM, layout_seed, noise_generator
from benchmarks.metaworld.simulator import (
    ACTION_DIM,
    Expert,
    MetaworldSimulator,
    Rendering,
    scripted_expert,
)

ACTION_KEY = "action"
ActionLabel = Literal["executed", "expert"]


@dataclass(frozen=True)
class DemoSettings:
    """What decides the content of an attempt, beside task and number."""

    seed: int
    action_noise: float
    action_label: ActionLabel
    max_steps: int
    success_hold: int
    rendering: Rendering


class MetaworldDemoRecorder:
    """Records attempts; keeps the last task's simulator open, which changes no outcome."""

    def __init__(self, settings: DemoSettings, instructions: dict[str, str]) -> None:
        self.settings = settings
        self.instructions = instructions
        self._simulator: MetaworldSimulator | None = None

    def record(self, task: str, attempt: int) -> DemoEpisode | None:
        """Play one attempt and return it, or None if the task was not solved within `max_steps`.

        A frame holds the observation and the action that is taken in it. The last action is the one
        after which the task is solved, or comes `success_hold` frames later.
        """
        settings = self.settings
        simulator = self._open(task)
        expert = scripted_expert(task)
        noise = noise_generator(settings.seed, DEMONSTRATION_STREAM, task, attempt)
        simulator.reset(layout_seed(settings.seed, DEMONSTRATION_STREAM, task, attempt))
        frames: list[dict[str, np.ndarray]] = []
        signals: list[dict[str, np.ndarray]] = []
        num_remaining = settings.max_steps
        solved = False
        while num_remaining > 0:
            executed, label = self._act(simulator, expert, noise)
            frames.append({**simulator.observe(), ACTION_KEY: label})
            success = simulator.step(executed)
            signals.append(
                {
                    EXECUTED_ACTION: executed,
                    CONTACT: np.array([simulator.in_contact()], np.float32),
                    SUCCESS: np.array([success], np.float32),
                }
            )
            num_remaining -= 1
            if success and not solved:
                solved = True
                num_remaining = min(num_remaining, settings.success_hold)
        if not solved:
            return None
        return DemoEpisode(self.instructions[task], stack_frames(frames), stack_frames(signals))

    def _act(
        self, simulator: MetaworldSimulator, expert: Expert, noise: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the action to execute and the one to store, both float32 [4] in [-1, 1]."""
        intended = np.clip(expert(simulator.raw_observation), -1, 1)
        disturbance = self.settings.action_noise * noise.standard_normal(ACTION_DIM)
        executed = np.clip(intended + disturbance, -1, 1).astype(np.float32)
        stored = executed if self.settings.action_label == "executed" else intended
        return executed, stored.astype(np.float32)

    def _open(self, task: str) -> MetaworldSimulator:
        if self._simulator is None or self._simulator.task != task:
            if self._simulator is not None:
                self._simulator.close()
            self._simulator = MetaworldSimulator(task, self.settings.rendering)
        return self._simulator
