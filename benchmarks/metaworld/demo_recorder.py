"""Plays MetaWorld's scripted experts and records what they see and do."""

from dataclasses import dataclass

from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.layouts import DEMONSTRATION_STREAM, layout_seed, noise_generator
from benchmarks.demos.player import PlaySettings, play_expert
from benchmarks.metaworld.simulator import MetaworldSimulator, Rendering, scripted_expert


@dataclass(frozen=True, kw_only=True)
class DemoSettings(PlaySettings):
    """What decides the content of an attempt, beside task and number."""

    seed: int
    rendering: Rendering

    def initial_state(self, task: str, attempt: int) -> int:
        """Return the seed of an attempt's layout."""
        return layout_seed(self.seed, DEMONSTRATION_STREAM, task, attempt)


class MetaworldDemoRecorder:
    """Records attempts; keeps the last task's simulator open, which changes no outcome."""

    def __init__(self, settings: DemoSettings, instructions: dict[str, str]) -> None:
        self.settings = settings
        self.instructions = instructions
        self._simulator: MetaworldSimulator | None = None

    def record(self, task: str, attempt: int) -> DemoEpisode | None:
        """Play one attempt and return it, or None if the task was not solved within `max_steps`."""
        simulator = self._open(task)
        simulator.reset(self.settings.initial_state(task, attempt))
        expert = scripted_expert(task)
        return play_expert(
            simulator,
            lambda: expert(simulator.raw_observation),
            self.settings,
            noise_generator(self.settings.seed, DEMONSTRATION_STREAM, task, attempt),
            self.instructions[task],
        )

    def _open(self, task: str) -> MetaworldSimulator:
        if self._simulator is None or self._simulator.task != task:
            if self._simulator is not None:
                self._simulator.close()
            self._simulator = MetaworldSimulator(task, self.settings.rendering)
        return self._simulator
