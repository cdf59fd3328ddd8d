"""What a rollout needs of a policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from benchmarks.rollouts.suite import EpisodeSpec, Observation


@dataclass(frozen=True)
class Query:
    """An episode that waits for its next actions.

    Attributes:
        memory: what the policy's `begin` returned for the episode.
        step: number of the frame that is acted in, from 0.
        frames: the frames observed since the last query, by their number; the newest is `step`.
    """

    memory: Any
    step: int
    frames: Mapping[int, Observation]


@runtime_checkable
class RolloutPolicy(Protocol):
    """Acts in many episodes at once.

    An episode's actions do not depend on which other episodes are asked about in the same call.
    """

    @property
    def n_action_steps(self) -> int:
        """Actions that a query is answered with; they come at frames 0, n, 2n and so on."""

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """How many frames before a query the frames lie that it needs; 0 is among them.

        Frames before the episode's start are not asked for. No other frames are rendered.
        """

    def begin(self, episode: EpisodeSpec) -> Any:
        """Return the memory of a new episode, which only this policy looks into."""

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return for each query float32 actions [n, A], in the simulator's units."""

    def record(self) -> dict[str, Any]:
        """Return what decides its actions, as JSON, for the results."""


def is_observed(frame: int, policy: RolloutPolicy) -> bool:
    """Tell whether a later query, or the one at this frame, needs the frame."""
    return any((frame + lag) % policy.n_action_steps == 0 for lag in policy.observed_lags)
