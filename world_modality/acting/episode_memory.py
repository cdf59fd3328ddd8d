"""What an episode's earlier frames left behind for the actions that are still to come."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from world_modality.acting.world_input import EpisodeWorldInput, Tokens

T = TypeVar("T")


@runtime_checkable
class AskedNowAndThen(Protocol):
    """A policy that is asked at frames 0, n, 2n and so on, and needs frames before them, too."""

    @property
    def n_action_steps(self) -> int:
        """The number n of actions that an answer has."""

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """How many frames before a question the frames lie that it needs; 0 is among them."""


def is_observed(frame: int, policy: AskedNowAndThen) -> bool:
    """Tell whether a later question, or the one at this frame, needs the frame."""
    return any((frame + lag) % policy.n_action_steps == 0 for lag in policy.observed_lags)


@dataclass(frozen=True)
class EncodedFrame:
    """One observed frame as the policy's inputs hold it.

    Attributes:
        embedding: float16 [D], or [P, M] where the policy reads several vectors, as the cache would
            hold them.
        state: float32 [S], raw units.
    """

    embedding: np.ndarray
    state: np.ndarray


@dataclass
class EpisodeMemory:
    """One running episode.

    Attributes:
        instruction: float16 [L], None without language.
        world: chooses the world tokens that are read; None for a policy that reads none.
        frames: the frames that later queries may need, by number.
        tokens: the world tokens that later queries may need, by frame: with a history, those of
            many more frames than are kept whole.
        chunks: the predicted action chunks [H, A] that later actions may need, by frame.
    """

    instruction: np.ndarray | None
    world: EpisodeWorldInput | None
    frames: dict[int, EncodedFrame] = field(default_factory=dict)
    tokens: dict[int, Tokens] = field(default_factory=dict)
    chunks: dict[int, np.ndarray] = field(default_factory=dict)

    def context(self, step: int, lags: Iterable[int]) -> list[EncodedFrame]:
        """Return the frames so many before a frame.

        Before the episode's start its first frame is repeated, as `FrameTensors.gather` does.
        """
        return [self.frames[max(step - lag, 0)] for lag in lags]

    def world_tokens(self, step: int) -> Tokens:
        """Return the world token or tokens that are read at a frame, by a policy that reads any."""
        assert self.world is not None, "the policy reads no world token"
        return self.world.tokens(self.tokens, step)

    def forget_before(
        self, next_step: int, context_lags: Iterable[int], token_lags: Iterable[int]
    ) -> None:
        """Drop the frames and tokens that no query from frame `next_step` on needs."""
        self.frames = _kept(self.frames, next_step, context_lags)
        self.tokens = _kept(self.tokens, next_step, token_lags)


def _kept(by_frame: dict[int, T], next_step: int, lags: Iterable[int]) -> dict[int, T]:
    oldest = max(next_step - max(lags, default=0), 0)
    return {number: one for number, one in by_frame.items() if number >= oldest}
