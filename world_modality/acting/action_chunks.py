"""What is executed of the action chunks that a policy predicts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

Chunks = Mapping[int, np.ndarray]
"""Chunks [H, A] in the dataset's units, by the frame that they were predicted in."""


@dataclass(frozen=True)
class ChunkExecution:
    """How many actions of a chunk are executed, and whether chunks are averaged.

    Attributes:
        chunk_size: H.
        n_action_steps: actions that are executed before the policy is asked again.
        ensemble_coeff: m of ACT's temporal ensembling; None executes chunks as predicted.
        action_range: what actions are clipped to; None leaves them as they are.
    """

    chunk_size: int
    n_action_steps: int
    ensemble_coeff: float | None = None
    action_range: tuple[float, float] | None = (-1.0, 1.0)

    def actions(self, chunks: Chunks, step: int) -> Float32[np.ndarray, "n A"]:
        """Return the actions of frames step…step+n-1, clipped to their range.

        With an `ensemble_coeff` m, the action of the frame is the mean of what all chunks say about
        it, weighted by exp(-m i), i = 0 the oldest (ACT; Zhao et al., 2023, algorithm 2).

        Args:
            chunks: the episode's chunks as they were predicted (not clipped), the one of frame
                `step` among them; with ensembling, those of the H-1 frames before too.
            step: the frame that is acted in.
        """
        if self.ensemble_coeff is None:
            chosen: np.ndarray = chunks[step][: self.n_action_steps]
        else:
            chosen = self._ensemble(chunks, step, self.ensemble_coeff)[None]
        return self.clipped(chosen).astype(np.float32)

    def clipped(self, actions: Float[np.ndarray, "*any A"]) -> Float[np.ndarray, "*any A"]:
        """Return actions with those past the range on its ends."""
        return actions if self.action_range is None else np.clip(actions, *self.action_range)

    def kept(self, chunks: Chunks, step: int) -> dict[int, np.ndarray]:
        """Return those chunks that say something about frames after `step`."""
        if self.ensemble_coeff is None:
            return {}
        return {made: chunk for made, chunk in chunks.items() if made + self.chunk_size > step + 1}

    def _ensemble(self, chunks: Chunks, step: int, coeff: float) -> Float[np.ndarray, " A"]:
        made = [frame for frame in sorted(chunks) if frame <= step < frame + self.chunk_size]
        predictions = np.stack([chunks[frame][step - frame] for frame in made]).astype(np.float64)
        weights = np.exp(-coeff * np.arange(len(made)))
        mean: np.ndarray = weights @ predictions / weights.sum()
        return mean
