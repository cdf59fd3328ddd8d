"""LIBERO as the rollout loop sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.libero import simulator
from benchmarks.libero.simulator import LiberoSimulator, Rendering
from benchmarks.libero.suites import LiberoTask, num_initial_states
from benchmarks.rollouts.suite import EpisodeSpec
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class LiberoSuite:
    """One of LIBERO's suites under one rendering.

    Attributes:
        name: such as `libero_object`.
        rendering: how images are made.
        image_keys: the cameras that are rendered.
    """

    name: str
    rendering: Rendering
    image_keys: Sequence[str] = simulator.IMAGE_KEYS

    @property
    def fps(self) -> int:
        """Frames per second of simulated time."""
        return simulator.FPS

    @property
    def action_dim(self) -> int:
        """A."""
        return simulator.ACTION_DIM

    @property
    def state_keys(self) -> Sequence[str]:
        """What the robot knows of itself."""
        return (simulator.STATE_KEY,)

    def record(self) -> dict[str, Any]:
        """Return versions, GL backend and rendering."""
        return {
            "versions": simulator.simulator_versions(),
            "gl_backend": self.rendering.gl_backend,
            "rendering": self.rendering.record(),
        }

    def open(self, task: str) -> LiberoSimulator:
        """Build the simulator of one task."""
        return LiberoSimulator(self.name, task, self.rendering, self.image_keys)


def evaluation_episodes(
    tasks: Sequence[LiberoTask], num_episodes: int, seed: int, max_steps: int
) -> list[EpisodeSpec]:
    """Return the rollouts of tasks: episode i starts in the benchmark's stored state i.

    Raises:
        InvalidInputError: a task has fewer stored states than episodes are wanted.
    """
    for task in tasks:
        num_states = num_initial_states(task)
        if num_states < num_episodes:
            raise InvalidInputError(
                f"--n_trials {num_episodes}: the benchmark has {num_states} initial states of "
                f"{task.name}; give --n_trials {num_states} or fewer"
            )
    return [
        EpisodeSpec(
            task=task.name,
            instruction=task.instruction,
            episode=episode,
            initial_state=episode,
            seed=seed,
            max_steps=max_steps,
        )
        for task in tasks
        for episode in range(num_episodes)
    ]
