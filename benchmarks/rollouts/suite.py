"""What a rollout needs of a benchmark suite; each suite has an adapter that fulfils it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

Observation = dict[str, np.ndarray]
"""By LeRobot feature name: uint8 [H, W, 3] images and float32 vectors."""


@dataclass(frozen=True)
class EpisodeSpec:
    """One rollout. What happens in it depends on these fields and the policy alone.

    Attributes:
        task: the suite's name of the task.
        instruction: the task in words, as the policy is told it.
        episode: number of the rollout within the task, from 0.
        initial_state: what the simulator starts in (a layout's seed, or the number of a stored
            state); a function of task and episode, distinct within a task.
        seed: of everything that the policy draws at random, together with task and episode.
        max_steps: actions after which an episode that is not solved has failed.
    """

    task: str
    instruction: str
    episode: int
    initial_state: int
    seed: int
    max_steps: int


@runtime_checkable
class Simulator(Protocol):
    """One task of a suite, in the process that uses it.

    The same initial state and actions give the same observations, whatever was played before.
    """

    @property
    def task(self) -> str:
        """The suite's name of the task."""

    def reset(self, initial_state: int) -> None:
        """Start an episode, up to the first frame that a policy acts in."""

    def observe(self) -> Observation:
        """Return what is seen now; this renders, which is most of the cost of a frame."""

    def step(self, action: Float32[np.ndarray, " A"]) -> bool:
        """Execute one action (clipped to [-1, 1]) and tell whether the task is solved now."""

    def close(self) -> None:
        """Free what it holds."""


@runtime_checkable
class Suite(Protocol):
    """A benchmark suite with its settings: plain data, which is sent to worker processes."""

    @property
    def name(self) -> str:
        """Such as `metaworld` or `libero_object`."""

    @property
    def fps(self) -> int:
        """Frames per second of simulated time."""

    @property
    def action_dim(self) -> int:
        """A."""

    @property
    def image_keys(self) -> Sequence[str]:
        """The cameras in an observation."""

    @property
    def state_keys(self) -> Sequence[str]:
        """The vectors in an observation."""

    def record(self) -> dict[str, Any]:
        """Return `versions` (package to version), `gl_backend` and `rendering` (its settings)."""

    def open(self, task: str) -> Simulator:
        """Build the simulator of one task."""
