"""Plays the scripted expert in LIBERO and records what it sees and does."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.layouts import DEMONSTRATION_STREAM, layout_seed, noise_generator
from benchmarks.demos.player import PlaySettings, play_expert
from benchmarks.libero.rendering import Rendering
from benchmarks.libero.scripted_expert import PickAndPlaceExpert
from benchmarks.libero.simulator import LiberoSimulator

Layouts = Literal["sampled", "stored"]


@dataclass(frozen=True, kw_only=True)
class DemoSettings(PlaySettings):
    """What decides the content of an attempt, beside task and number."""

    suite: str
    layouts: Layouts
    seed: int
    rendering: Rendering

    def initial_state(self, task: str, attempt: int) -> int:
        """Return what an attempt begins in: the sampler's seed, or the number of a stored state."""
        if self.layouts == "stored":
            return attempt
        return layout_seed(self.seed, DEMONSTRATION_STREAM, task, attempt)


class LiberoDemoRecorder:
    """Records attempts; keeps the last task's simulator open, which changes no outcome."""

    def __init__(self, settings: DemoSettings, instructions: Mapping[str, str]) -> None:
        """Take what is common to all attempts.

        Args:
            settings: how they are played.
            instructions: task name to text.
        """
        self.settings = settings
        self.instructions = dict(instructions)
        self._simulator: LiberoSimulator | None = None

    def record(self, task: str, attempt: int) -> DemoEpisode | None:
        """Play one attempt and return it, or None if the task was not solved within `max_steps`.

        Raises:
            InvalidInputError: the task is none that the expert can play.
        """
        settings = self.settings
        simulator = self._open(task)
        initial_state = settings.initial_state(task, attempt)
        if settings.layouts == "stored":
            simulator.reset(initial_state)
        else:
            simulator.reset_sampled(initial_state)
        return play_expert(
            simulator,
            PickAndPlaceExpert(simulator).act,
            settings,
            noise_generator(settings.seed, DEMONSTRATION_STREAM, task, attempt),
            self.instructions[task],
        )

    def _open(self, task: str) -> LiberoSimulator:
        if self._simulator is None or self._simulator.task != task:
            if self._simulator is not None:
                self._simulator.close()
            self._simulator = LiberoSimulator(self.settings.suite, task, self.settings.rendering)
        return self._simulator
