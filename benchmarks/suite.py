"""What recording and rollouts need of a benchmark suite: simulators, episodes, and their layouts.

A layout (start and goal positions) is a function of a seed, a stream, the task and the number of
the episode: its own seed is drawn from `SeedSequence([seed, stream, crc32(task name), episode])`.
The streams keep the layouts of demonstrations and of evaluation apart under every seed, so that a
policy is never rolled out on a layout it was trained on. The task enters by its name: a layout
does not depend on which other tasks are selected, nor on the order in which the simulator's
library lists them.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

DEMONSTRATION_STREAM = 0
EVALUATION_STREAM = 1

LAYOUT_SCHEME = {
    "stream": DEMONSTRATION_STREAM,
    "entropy": "SeedSequence([seed, stream, crc32(task), attempt])",
    "layout_seed": "generate_state(1, uint64)[0] >> 1",
    "streams": {"demonstrations": DEMONSTRATION_STREAM, "evaluation": EVALUATION_STREAM},
}
"""What a dataset's record says about its layouts."""

Observation = dict[str, np.ndarray]
"""By LeRobot feature name: uint8 [H, W, 3] images and float32 vectors."""

Expert = Callable[[], Float[np.ndarray, " A"]]
"""Returns the action for the simulator's present state; values past [-1, 1] are clipped."""


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

    def observe_vectors(self) -> Observation:
        """Return the vectors of `observe` without its images; this renders nothing."""

    def step(self, action: Float32[np.ndarray, " A"]) -> bool:
        """Execute one action (clipped to [-1, 1]) and tell whether the task is solved now."""

    def close(self) -> None:
        """Free what it holds."""


@runtime_checkable
class DemoSimulator(Simulator, Protocol):
    """A simulator with a scripted expert, so that demonstrations can be recorded in it."""

    def expert(self) -> Expert:
        """Return a scripted expert for the episode that has just been reset."""

    def in_contact(self) -> bool:
        """Tell whether the robot touches something."""

    def object_height(self) -> float:
        """Return the height of the object that the task is about, in m."""


@runtime_checkable
class SampledResets(Protocol):
    """A simulator whose demonstrations may start in drawn states instead of stored ones."""

    def reset_sampled(self, seed: int) -> None:
        """Start an episode in the state that the seed draws."""


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
        """The cameras in an observation, all of which `observe` renders."""

    @property
    def state_keys(self) -> Sequence[str]:
        """The vectors in an observation."""

    def observing(self, image_keys: Sequence[str]) -> "Suite":
        """Return the suite with these of its cameras alone; its record is the same."""

    def record(self) -> dict[str, Any]:
        """Return `versions` (package to version), `gl_backend` and `rendering` (its settings)."""

    def open(self, task: str) -> Simulator:
        """Build the simulator of one task."""


@dataclass(frozen=True)
class EpisodeSpec:
    """One rollout. What happens in it depends on these fields and the policy alone.

    Attributes:
        task: the suite's name of the task.
        instruction: the task in words, as the policy reads it.
        episode: number of the rollout within the task, from 0.
        initial_state: what the simulator starts in (a layout's seed, or the number of a stored
            state); a function of task and episode, distinct within a task.
        seed: seeds everything that the policy draws at random, together with task and episode.
        max_steps: actions after which an episode that is not solved has failed.
        outage_start: the first frame in which the policy's cameras are dark; None if none is.
        outage_length: for how many frames.
    """

    task: str
    instruction: str
    episode: int
    initial_state: int
    seed: int
    max_steps: int
    outage_start: int | None = None
    outage_length: int = 0

    @property
    def dark_frames(self) -> range:
        """The frames in which the policy's cameras are dark."""
        start = self.outage_start or 0
        return range(start, start + self.outage_length)


def episode_specs(
    instructions: Mapping[str, str],
    num_episodes: int,
    seed: int,
    max_steps: int,
    initial_state: Callable[[str, int], int],
) -> list[EpisodeSpec]:
    """Return the rollouts of tasks (name to instruction), `num_episodes` of each.

    `initial_state` says what a task's episode of a number starts in.
    """
    return [
        EpisodeSpec(task, instruction, episode, initial_state(task, episode), seed, max_steps)
        for task, instruction in instructions.items()
        for episode in range(num_episodes)
    ]


def layout_seed(seed: int, stream: int, task: str, episode: int) -> int:
    """Return the seed of one episode's layout, in [0, 2**63).

    Args:
        seed: the run's seed, not negative.
        stream: `DEMONSTRATION_STREAM` or `EVALUATION_STREAM`.
        task: the simulator's task name, such as `push-v3`.
        episode: number of the attempt or rollout within the task, from 0.
    """
    state = _sequence(seed, stream, task, episode).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def noise_generator(seed: int, stream: int, task: str, episode: int) -> np.random.Generator:
    """Return the generator of one episode's action noise, independent of its layout's."""
    return np.random.default_rng(_sequence(seed, stream, task, episode).spawn(1)[0])


def _sequence(seed: int, stream: int, task: str, episode: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, stream, zlib.crc32(task.encode()), episode])
