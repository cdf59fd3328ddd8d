"""What a world token tells about its task and about the phase of its episode."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from world_modality.source.episodes import Episodes
from world_modality.tokens.statistics import entropy_bits

NUM_PHASES = 10
NUM_SHUFFLES = 20


@dataclass(frozen=True)
class Dependence:
    """Mutual information of the token with a label of the frame, in bits.

    Attributes:
        information_bits: plug-in estimate; biased upward, the more so the larger V is.
        shuffled_bits: mean of the same under shuffles that keep the tokens' own structure.
        excess_bits: the difference of the two.
        label_bits: entropy of the label, the most that could be told.
        excess_share: excess over label entropy; None where the label is constant.
    """

    information_bits: float
    shuffled_bits: float
    excess_bits: float
    label_bits: float
    excess_share: float | None


def mutual_information_bits(
    tokens: Int[np.ndarray, " M"], labels: Int[np.ndarray, " M"], num_tokens: int
) -> float:
    """Return the plug-in estimate of the mutual information, in bits.

    I(token; label) = H(token) + H(label) - H(token, label) (Cover and Thomas, 2006, eq. 2.45).
    """
    joint = np.bincount(labels.astype(np.int64) * num_tokens + tokens)
    separate = entropy_bits(np.bincount(tokens)) + entropy_bits(np.bincount(labels))
    return max(0.0, separate - entropy_bits(joint))


def episode_phase(episodes: Episodes, num_phases: int = NUM_PHASES) -> Int[np.ndarray, " N"]:
    """Return each frame's position in its episode, in `num_phases` bins of equal length."""
    position = np.arange(episodes.num_frames) - np.repeat(episodes.starts, episodes.lengths)
    phase: np.ndarray = position * num_phases // np.repeat(episodes.lengths, episodes.lengths)
    return phase


def task_dependence(
    tokens: Int[np.ndarray, " N"],
    episodes: Episodes,
    ids: list[int],
    num_tokens: int,
    seed: int = 0,
) -> Dependence:
    """Estimate what the token tells about the task of these episodes.

    The control deals the tasks out to the episodes anew: frames of one episode resemble each other,
    so that shuffling single frames would understate the bias.
    """
    positions = episodes.positions_of(ids)
    frames = episodes.frame_mask(ids)
    _, tasks = np.unique(episodes.tasks[positions], return_inverse=True)
    lengths = episodes.lengths[positions]
    rng = np.random.default_rng(seed)
    shuffles = [
        mutual_information_bits(
            tokens[frames], np.repeat(rng.permutation(tasks), lengths), num_tokens
        )
        for _ in range(NUM_SHUFFLES)
    ]
    labels = np.repeat(tasks, lengths)
    return _dependence(tokens[frames], labels, shuffles, num_tokens)


def phase_dependence(
    tokens: Int[np.ndarray, " N"],
    episodes: Episodes,
    ids: list[int],
    num_tokens: int,
    seed: int = 0,
) -> Dependence:
    """Estimate what the token tells about how far these episodes have come.

    The control turns each episode's tokens round by a random number of frames, which keeps its
    runs.
    """
    labels = episode_phase(episodes)
    frames = episodes.frame_mask(ids)
    rng = np.random.default_rng(seed)
    shuffles = []
    for _ in range(NUM_SHUFFLES):
        turned = tokens[_turned_frames(episodes, rng)]
        shuffles.append(mutual_information_bits(turned[frames], labels[frames], num_tokens))
    return _dependence(tokens[frames], labels[frames], shuffles, num_tokens)


def _turned_frames(episodes: Episodes, rng: np.random.Generator) -> np.ndarray:
    """Return for each frame another of its episode, all of an episode turned by the same number."""
    position = np.arange(episodes.num_frames) - np.repeat(episodes.starts, episodes.lengths)
    turned = position + np.repeat(rng.integers(0, episodes.lengths), episodes.lengths)
    turned %= np.repeat(episodes.lengths, episodes.lengths)
    frames: np.ndarray = turned + np.repeat(episodes.starts, episodes.lengths)
    return frames


def _dependence(
    tokens: np.ndarray, labels: np.ndarray, shuffles: list[float], num_tokens: int
) -> Dependence:
    information = mutual_information_bits(tokens, labels, num_tokens)
    shuffled = float(np.mean(shuffles))
    label_bits = entropy_bits(np.bincount(labels))
    excess = information - shuffled
    return Dependence(
        information_bits=information,
        shuffled_bits=shuffled,
        excess_bits=excess,
        label_bits=label_bits,
        excess_share=excess / label_bits if label_bits > 0 else None,
    )


def phase_histogram(
    tokens: Int[np.ndarray, " M"], phases: Int[np.ndarray, " M"], num_tokens: int
) -> Int[np.ndarray, "V G"]:
    """Count frames by token and phase of the episode."""
    cells = tokens.astype(np.int64) * NUM_PHASES + phases
    return np.bincount(cells, minlength=num_tokens * NUM_PHASES).reshape(num_tokens, NUM_PHASES)
