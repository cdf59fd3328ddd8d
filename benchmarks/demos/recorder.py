"""Plays a suite's scripted expert and records what it sees and does; knows no benchmark suite."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from benchmarks.demos.config import DemoConfig
from benchmarks.demos.episode import DemoEpisode, stack_frames
from benchmarks.demos.recording import CONTACT, EXECUTED_ACTION, OBJECT_HEIGHT, SUCCESS
from benchmarks.suite import (
    DEMONSTRATION_STREAM,
    LAYOUT_SCHEME,
    DemoSimulator,
    SampledResets,
    Simulator,
    Suite,
    layout_seed,
    noise_generator,
)

ACTION_KEY = "action"
Reset = Literal["seeded", "sampled", "stored"]
"""What demonstrations start in: the layout that `reset` makes of a seed, a state that
`reset_sampled` draws with a seed, or the benchmark's stored state of that number."""


def layouts_record(reset: Reset) -> dict[str, Any]:
    """Return what the record of a dataset says about its layouts."""
    if reset == "seeded":
        return dict(LAYOUT_SCHEME)
    return {"reset": reset, **(LAYOUT_SCHEME if reset == "sampled" else {})}


def reset_demonstration(
    simulator: Simulator, layouts: Mapping[str, Any], initial_state: int
) -> None:
    """Start a demonstration in an initial state, as the record of the layouts says."""
    if layouts.get("reset") == "sampled":
        assert isinstance(simulator, SampledResets), "only LIBERO's recordings say sampled"
        simulator.reset_sampled(initial_state)
    else:
        simulator.reset(initial_state)


class DemoRecorder:
    """Records attempts; keeps the last task's simulator open, which changes no outcome.

    It is sent to worker processes, and opens its simulators there.
    """

    def __init__(
        self, suite: Suite, config: DemoConfig, instructions: Mapping[str, str], reset: Reset
    ) -> None:
        """Take what is common to all attempts; the suite opens `DemoSimulator`s."""
        self._suite, self._config, self._reset = suite, config, reset
        self._instructions = dict(instructions)
        self._simulator: Simulator | None = None

    def initial_state(self, task: str, attempt: int) -> int:
        """Return what an attempt starts in: a layout's seed, or the number of a stored state."""
        if self._reset == "stored":
            return attempt
        return layout_seed(self._config.seed, DEMONSTRATION_STREAM, task, attempt)

    def record(self, task: str, attempt: int) -> DemoEpisode | None:
        """Play one attempt and return it, or None if the task was not solved within `max_steps`.

        The outcome is a function of the arguments and the settings alone.

        Raises:
            InvalidInputError: the task is none that the expert can play.
        """
        if self._simulator is None or self._simulator.task != task:
            if self._simulator is not None:
                self._simulator.close()
            self._simulator = self._suite.open(task)
        assert isinstance(self._simulator, DemoSimulator), "the suite has no scripted experts"
        layouts = layouts_record(self._reset)
        reset_demonstration(self._simulator, layouts, self.initial_state(task, attempt))
        noise = noise_generator(self._config.seed, DEMONSTRATION_STREAM, task, attempt)
        return _play(self._simulator, self._config, noise, self._instructions[task])


def _play(
    simulator: DemoSimulator, config: DemoConfig, noise: np.random.Generator, instruction: str
) -> DemoEpisode | None:
    """Play from the first frame on.

    A frame holds the observation and the action that is executed in it. The last action is the one
    after which the task is solved, or comes `success_hold` frames later.
    """
    assert config.max_steps is not None, "the suite's limit stands in for the flag"
    frames: list[dict[str, np.ndarray]] = []
    signals: list[dict[str, np.ndarray]] = []
    expert = simulator.expert()
    num_remaining = config.max_steps
    solved = False
    while num_remaining > 0:
        intended = np.clip(expert(), -1, 1)
        disturbance = config.action_noise * noise.standard_normal(len(intended))
        executed = np.clip(intended + disturbance, -1, 1).astype(np.float32)
        stored = executed if config.action_label == "executed" else intended
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
            num_remaining = min(num_remaining, config.success_hold)
    if not solved:
        return None
    return DemoEpisode(instruction, stack_frames(frames), stack_frames(signals))
