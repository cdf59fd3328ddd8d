"""What is executed of the action chunks that a policy predicts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from benchmarks.rollouts.config import RolloutConfig
from world_modality.system.errors import InvalidInputError

Chunks = Mapping[int, np.ndarray]
"""Chunks [H, A] in the simulator's units, by the frame that they were predicted in."""


@dataclass(frozen=True)
class ChunkExecution:
    """How many actions of a chunk are executed, and whether chunks are averaged.

    Attributes:
        chunk_size: H.
        n_action_steps: actions that are executed before the policy is asked again.
        ensemble_coeff: m of ACT's temporal ensembling; None executes chunks as predicted.
    """

    chunk_size: int
    n_action_steps: int
    ensemble_coeff: float | None

    @classmethod
    def of(cls, config: RolloutConfig, chunk_size: int) -> "ChunkExecution":
        """Take the flags, with their defaults, for a policy that predicts `chunk_size` actions.

        Raises:
            InvalidInputError: more actions are to be executed than are predicted.
        """
        coeff = config.temporal_ensemble_coeff
        n_action_steps = config.n_action_steps or (chunk_size if coeff is None else 1)
        if n_action_steps > chunk_size:
            raise InvalidInputError(
                f"--n_action_steps {n_action_steps}: the policy predicts {chunk_size} actions at a "
                f"time; give at most {chunk_size}"
            )
        return cls(chunk_size, n_action_steps, coeff)

    def actions(self, chunks: Chunks, step: int) -> Float32[np.ndarray, "n A"]:
        """Return the actions of frames step…step+n-1, clipped to [-1, 1].

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
        return np.clip(chosen, -1, 1).astype(np.float32)

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
