"""MetaWorld as the rollout loop sees it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.demos.layouts import EVALUATION_STREAM, layout_seed
from benchmarks.metaworld import simulator
from benchmarks.metaworld.simulator import MetaworldSimulator, Rendering
from benchmarks.rollouts.suite import EpisodeSpec


@dataclass(frozen=True)
class MetaworldSuite:
    """MetaWorld under one rendering."""

    rendering: Rendering

    @property
    def name(self) -> str:
        """The suite's name in recordings and results."""
        return simulator.SUITE_NAME

    @property
    def fps(self) -> int:
        """Frames per second of simulated time."""
        return simulator.FPS

    @property
    def action_dim(self) -> int:
        """A."""
        return simulator.ACTION_DIM

    @property
    def image_keys(self) -> Sequence[str]:
        """The one camera."""
        return (simulator.IMAGE_KEY,)

    @property
    def state_keys(self) -> Sequence[str]:
        """What the robot knows of itself, and what only the simulator knows."""
        return (simulator.STATE_KEY, simulator.ENVIRONMENT_STATE_KEY)

    def record(self) -> dict[str, Any]:
        """Return versions, GL backend and rendering."""
        return {
            "versions": simulator.simulator_versions(),
            "gl_backend": self.rendering.gl_backend,
            "rendering": self.rendering.record(),
        }

    def open(self, task: str) -> MetaworldSimulator:
        """Build the simulator of one task."""
        return MetaworldSimulator(task, self.rendering)


def evaluation_episodes(
    instructions: Mapping[str, str], num_episodes: int, seed: int, max_steps: int
) -> list[EpisodeSpec]:
    """Return the rollouts of tasks (name to instruction), in layouts that no demonstration has."""
    return [
        EpisodeSpec(
            task=task,
            instruction=instruction,
            episode=episode,
            initial_state=layout_seed(seed, EVALUATION_STREAM, task, episode),
            seed=seed,
            max_steps=max_steps,
        )
        for task, instruction in instructions.items()
        for episode in range(num_episodes)
    ]
