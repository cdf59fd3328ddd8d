"""Which frames stand for a world token."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class TokenSample:
    """The frames drawn for one token.

    Attributes:
        token: its id.
        num_frames: how many frames of the dataset have it.
        num_episodes: in how many episodes.
        frames: the global indices drawn.
    """

    token: int
    num_frames: int
    num_episodes: int
    frames: Int[np.ndarray, " N"]

    @property
    def file_name(self) -> str:
        """The grid's file."""
        return f"token_{self.token}.jpg"


def choose_tokens(
    world_tokens: Int[np.ndarray, " N"], num_codes: int, num_tokens: int, tokens: tuple[int, ...]
) -> list[int]:
    """Return the tokens to show: those asked for, or the most frequent, ties by id.

    Raises:
        InvalidInputError: a token outside the codebook, or one that no frame has.
    """
    counts = np.bincount(world_tokens, minlength=num_codes)
    for token in tokens:
        if not 0 <= token < num_codes:
            raise InvalidInputError(f"--tokens {token}: tokens lie between 0 and {num_codes - 1}")
        if counts[token] == 0:
            used = np.flatnonzero(counts)[:20].tolist()
            raise InvalidInputError(f"--tokens {token}: no frame has it; used are {used} …")
    if tokens:
        return list(tokens)
    if num_tokens < 1:
        raise InvalidInputError("--num_tokens must be at least 1")
    num_used = int((counts > 0).sum())
    if num_tokens > num_used:
        print(f"--num_tokens {num_tokens}, but only {num_used} of {num_codes} codes are used")
    return [int(t) for t in np.argsort(-counts, kind="stable")[: min(num_tokens, num_used)]]


def sample_frames(
    token: int,
    world_tokens: Int[np.ndarray, " N"],
    episode_of_frame: Int[np.ndarray, " N"],
    num_samples: int,
    rng: np.random.Generator,
) -> TokenSample:
    """Draw frames of a token: one from each episode before a second from any."""
    frames = rng.permutation(np.flatnonzero(world_tokens == token))
    episodes = episode_of_frame[frames]
    # The how-manieth frame of its episode each one is, in the random order.
    by_episode = np.argsort(episodes, kind="stable")
    starts = np.flatnonzero(np.diff(episodes[by_episode], prepend=-1))
    turn = np.empty(len(frames), dtype=np.int64)
    turn[by_episode] = np.arange(len(frames)) - np.repeat(
        starts, np.diff(np.append(starts, len(frames)))
    )
    chosen = frames[np.argsort(turn, kind="stable")[:num_samples]]
    return TokenSample(token, len(frames), len(starts), np.sort(chosen))
