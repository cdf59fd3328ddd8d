"""Ways to make the world token that a policy reads wrong, each a different kind of wrong."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from world_modality.source.episodes import Episodes

Tokens = Int[np.ndarray, " M"]
Draw = Callable[[np.random.Generator], Tokens]


def uniform_tokens(train_tokens: Tokens, num_frames: int) -> Draw:
    """Draw each token uniformly from the codes that training episodes use.

    Codes that no frame has are left out: the policy never learned an embedding for them, and the
    harm they do says nothing about whether it reads the world.
    """
    used = np.unique(train_tokens)
    return lambda rng: rng.choice(used, num_frames)


def marginal_tokens(train_tokens: Tokens, num_frames: int) -> Draw:
    """Draw each token as often as it occurs in training episodes."""
    return lambda rng: rng.choice(train_tokens, num_frames)


def task_shuffled_tokens(
    tokens: Int[np.ndarray, " N"], episodes: Episodes, frames: Int[np.ndarray, " M"]
) -> Draw:
    """Permute the recorded tokens among those of these frames that have the same task.

    What is lost is which frame a token belongs to; how often each occurs in the task stays.
    """
    task = episodes.tasks[episodes.of_frame[frames]]
    recorded = tokens[frames]

    def draw(rng: np.random.Generator) -> Tokens:
        shuffled = recorded.copy()
        for value in np.unique(task):
            chosen = np.flatnonzero(task == value)
            shuffled[chosen] = rng.permutation(recorded[chosen])
        return shuffled

    return draw


def stale_tokens(
    tokens: Int[np.ndarray, " N"],
    episodes: Episodes,
    frames: Int[np.ndarray, " M"],
    num_steps: int,
) -> Tokens:
    """Return w[t - num_steps]; before the episode's start its first token."""
    return tokens[np.maximum(frames - num_steps, episodes.starts[episodes.of_frame[frames]])]
