"""What a policy remembers of the episodes that it acts in."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.rollouts.acting.world_input import EpisodeWorldInput


@dataclass(frozen=True)
class EncodedFrame:
    """One observed frame as the policy's inputs hold it.

    Attributes:
        embedding: float16 [D], as the cache would hold it.
        state: float32 [S], raw units.
        token: the world token; None for a policy that reads none.
    """

    embedding: np.ndarray
    state: np.ndarray
    token: int | None


@dataclass
class EpisodeMemory:
    """One running episode.

    Attributes:
        instruction: float16 [L], None without language.
        world: chooses the world token that is read; None for a policy that reads none.
        frames: the frames that later queries may need, by number.
        chunks: the predicted action chunks [H, A] that later actions may need, by frame.
    """

    instruction: np.ndarray | None
    world: EpisodeWorldInput | None
    frames: dict[int, EncodedFrame] = field(default_factory=dict)
    chunks: dict[int, np.ndarray] = field(default_factory=dict)

    def context(self, step: int, num_frames: int) -> list[EncodedFrame]:
        """Return the frames step-num_frames+1…step, oldest first.

        Before the episode's start its first frame is repeated, as `FrameTensors.gather` does.
        """
        return [self.frames[max(step - lag, 0)] for lag in range(num_frames - 1, -1, -1)]

    def world_token(self, step: int) -> int:
        """Return the world token that is read at a frame; 0 where none is read."""
        if self.world is None:
            return 0
        own = {number: f.token for number, f in self.frames.items() if f.token is not None}
        return self.world.token(own, step)

    def forget_before(self, next_step: int, lags: Iterable[int]) -> None:
        """Drop the frames that no query from frame `next_step` on needs."""
        oldest = max(next_step - max(lags), 0)
        self.frames = {number: f for number, f in self.frames.items() if number >= oldest}
