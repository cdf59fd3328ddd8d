"""Policies to measure another one against: that compute nothing, or that see every frame."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.rollouts.loop import Query, RolloutPolicy
from benchmarks.suite import EpisodeSpec
from world_modality.acting.episode_memory import is_observed


@dataclass(frozen=True)
class WrappedPolicy:
    """Another policy, as it is; what is measured differs from it in one thing."""

    policy: RolloutPolicy

    @property
    def n_action_steps(self) -> int:
        """The policy's."""
        return self.policy.n_action_steps

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """The policy's."""
        return tuple(self.policy.observed_lags)

    def begin(self, episode: EpisodeSpec) -> Any:
        """Return the policy's memory."""
        return self.policy.begin(episode)

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return the policy's answers."""
        return self.policy.act(queries)

    def record(self) -> dict[str, Any]:
        """Return what it is."""
        return {**self.policy.record(), "measured_as": type(self).__name__}


@dataclass(frozen=True)
class NoOpPolicy(WrappedPolicy):
    """Asks for the frames that the policy asks for, and answers with zeros."""

    action_dim: int

    def begin(self, episode: EpisodeSpec) -> None:
        """Remember nothing."""

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return zeros [n, A] for each query."""
        return [np.zeros((self.n_action_steps, self.action_dim), np.float32) for _ in queries]


class EveryFramePolicy(WrappedPolicy):
    """Lets its environments render every frame, as those of Gymnasium do."""

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """All frames since the last query, and those that the policy needs."""
        return tuple(sorted({*range(self.n_action_steps), *self.policy.observed_lags}))

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return what the policy answers to the frames that it would have asked for."""
        return self.policy.act([self._thinned(query) for query in queries])

    def _thinned(self, query: Query) -> Query:
        frames = {n: seen for n, seen in query.frames.items() if is_observed(n, self.policy)}
        return Query(query.memory, query.step, frames)


@dataclass(frozen=True)
class RecordedPolicy(WrappedPolicy):
    """Keeps the policy's answers, actions [n, A] by episode and the frame they were asked in."""

    answers: dict[tuple[EpisodeSpec, int], np.ndarray] = field(default_factory=dict)

    def begin(self, episode: EpisodeSpec) -> tuple[EpisodeSpec, Any]:
        """Return the episode beside the policy's memory of it."""
        return episode, self.policy.begin(episode)

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return the policy's answers."""
        answers = self.policy.act([Query(q.memory[1], q.step, q.frames) for q in queries])
        for query, actions in zip(queries, answers, strict=True):
            self.answers[query.memory[0], query.step] = actions
        return answers


@dataclass(frozen=True)
class ReplayedPolicy(WrappedPolicy):
    """Gives a recorded policy's answers again: the same motion, and nothing computed for it."""

    policy: RecordedPolicy

    def begin(self, episode: EpisodeSpec) -> EpisodeSpec:
        """Return the episode."""
        return episode

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return what was answered in the recorded turn.

        Raises:
            KeyError: the episode was not recorded.
        """
        return [self.policy.answers[query.memory, query.step] for query in queries]
