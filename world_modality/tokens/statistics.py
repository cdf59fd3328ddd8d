"""What the stream of world tokens is like: usage, dwell, predictability, and what a token tells."""

from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

from world_modality.source.episodes import Episodes, Split
from world_modality.statistics.intervals import Interval, ratio_interval, sum_by_episode

# Rows of the V x V score table that are ranked at a time; 256 rows of V = 16,384 are 32 MB.
_ROWS_AT_A_TIME = 256
NUM_PHASES = 10
NUM_SHUFFLES = 20


def frames_with_future(episodes: Episodes, ids: list[int], steps: int) -> Int[np.ndarray, " M"]:
    """Return the frames t of these episodes whose frame t + steps is in the same episode."""
    frames = episodes.frames_of(ids)
    with_future: np.ndarray = frames[frames + steps < episodes.ends[episodes.of_frame[frames]]]
    return with_future


class BigramBaseline:
    """Predicts w[t+k] from w[t] by how often each successor was seen k frames later in training.

    Equal counts are ordered by: the token itself first (a copy), then the token more frequent in
    training. A token never seen in training therefore predicts itself.
    """

    def __init__(
        self, sources: Int[np.ndarray, " M"], targets: Int[np.ndarray, " M"], num_tokens: int
    ) -> None:
        ones = np.ones(len(sources), dtype=np.int64)
        shape = (num_tokens, num_tokens)
        self._counts = scipy.sparse.coo_matrix((ones, (sources, targets)), shape=shape).tocsr()
        marginal = np.bincount(targets, minlength=num_tokens)
        self._tie_break = 0.4 * marginal / max(1, marginal.sum())
        self._prior = (marginal + 1 / num_tokens) / (marginal.sum() + 1)

    @classmethod
    def fit(
        cls,
        tokens: Int[np.ndarray, " N"],
        episodes: Episodes,
        ids: list[int],
        steps: int,
        num_tokens: int,
        *,
        changed_only: bool = False,
    ) -> "BigramBaseline":
        """Count the pairs (w[t], w[t+steps]) of these episodes, none across an episode's end.

        With `changed_only` the pairs whose tokens differ: where to, given that the token changes.
        """
        frames = frames_with_future(episodes, ids, steps)
        sources, targets = tokens[frames], tokens[frames + steps]
        if changed_only:
            moved = sources != targets
            sources, targets = sources[moved], targets[moved]
        return cls(sources, targets, num_tokens)

    def top(self, tokens: Int[np.ndarray, " M"], num_best: int) -> Int[np.ndarray, "M R"]:
        """Return the R likeliest successors of each token, best first (R = min(num_best, V))."""
        num_best = min(num_best, self._counts.shape[1])
        distinct, position = np.unique(tokens, return_inverse=True)
        ranked = np.empty((len(distinct), num_best), dtype=np.int32)
        for start in range(0, len(distinct), _ROWS_AT_A_TIME):
            rows = distinct[start : start + _ROWS_AT_A_TIME]
            # Counts are whole numbers, so 0.5 and 0.4 only ever order what is equal.
            scores = self._counts[rows].toarray() + self._tie_break
            scores[np.arange(len(rows)), rows] += 0.5
            ranked[start : start + len(rows)] = np.argsort(-scores, axis=1, kind="stable")[
                :, :num_best
            ]
        return ranked[position]

    def nats(
        self, sources: Int[np.ndarray, " M"], targets: Int[np.ndarray, " M"]
    ) -> Float[np.ndarray, " M"]:
        """Return the cross-entropy of each target, given its source.

        Counts are smoothed towards the targets' own frequencies, which weigh as much as one pair,
        and these towards 1 / V (MacKay and Peto, 1995): a pair never seen in training is unlikely,
        not impossible.
        """
        of_source = np.asarray(self._counts.sum(axis=1)).ravel()
        of_pair = np.asarray(self._counts[sources, targets]).ravel()
        shares = (of_pair + self._prior[targets]) / (of_source[sources] + 1)
        nats: np.ndarray = -np.log(shares)
        return nats


@dataclass(frozen=True)
class Usage:
    """How much of the codebook a set of frames uses.

    Attributes:
        perplexity: 2 ** entropy_bits, the number of equally used codes with this entropy.
        entropy_share: entropy over log2 V; None for V = 1.
        counts: frames of each token.
    """

    num_frames: int
    num_used: int
    perplexity: float
    entropy_bits: float
    entropy_share: float | None
    counts: Int[np.ndarray, " V"]

    def most_frequent(self, num_best: int) -> list[tuple[int, float]]:
        """Return the commonest used tokens with their shares; the lower index first where equal."""
        order = np.argsort(-self.counts, kind="stable")[: min(num_best, self.num_used)]
        return [(int(token), float(self.counts[token] / self.num_frames)) for token in order]


def entropy_bits(counts: Int[np.ndarray, "..."]) -> float:
    """Return the entropy of the empirical distribution, in bits (plug-in estimate)."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum() + 0.0)


def codebook_usage(tokens: Int[np.ndarray, " M"], num_tokens: int) -> Usage:
    """Count the tokens of some frames (at least one)."""
    counts = np.bincount(tokens, minlength=num_tokens)
    entropy = entropy_bits(counts)
    return Usage(
        num_frames=len(tokens),
        num_used=int((counts > 0).sum()),
        perplexity=float(2**entropy),
        entropy_bits=entropy,
        entropy_share=entropy / float(np.log2(num_tokens)) if num_tokens > 1 else None,
        counts=counts,
    )


@dataclass(frozen=True)
class Dwell:
    """How long a token lasts.

    Attributes:
        change_rate: share of frame pairs (t, t + 1) of one episode whose tokens differ.
        frames: mean frames from one change to the next, 1 / change_rate, so that runs which an
            episode's end cuts short do not shorten it; no value where nothing changes.
    """

    change_rate: Interval
    frames: Interval


def token_dwell(
    tokens: Int[np.ndarray, " N"], episodes: Episodes, ids: list[int], seed: int = 0
) -> Dwell:
    """Estimate how often the token changes in these episodes."""
    frames = frames_with_future(episodes, ids, 1)
    rate = _share_interval(tokens[frames] != tokens[frames + 1], frames, episodes, seed)
    if not rate.value:
        return Dwell(rate, Interval(None, None, None, rate.num_episodes))
    high = 1 / rate.low if rate.low else None
    low = 1 / rate.high if rate.high and high else None
    return Dwell(rate, Interval(1 / rate.value, low, high, rate.num_episodes))


@dataclass(frozen=True)
class HorizonScores:
    """What predictors of w[t+k] without a model achieve on validation episodes.

    Attributes:
        num_pairs: validation pairs (t, t + k), k = `steps`, none across an episode's end.
        num_changed: those with w[t] != w[t+k].
        chance: accuracy of a uniform guess, 1 / V.
        all_pairs: accuracy by predictor on all pairs.
        changed_pairs: the same on the changed pairs, where `copy` is 0 by construction.
    """

    steps: int
    num_pairs: int
    num_changed: int
    chance: float
    all_pairs: dict[str, Interval]
    changed_pairs: dict[str, Interval]


def horizon_scores(
    tokens: Int[np.ndarray, " N"],
    episodes: Episodes,
    split: Split,
    steps: int,
    num_tokens: int,
    seed: int = 0,
) -> HorizonScores:
    """Fit the predictors on training pairs and score them on validation pairs.

    `copy` predicts w[t]; `bigram_top1` and `bigram_top5` the commonest successors of w[t] in
    training; `marginal` the commonest target in training. `change_bigram_*` counts the changed
    training pairs alone: it knows where the token goes but not when, and is the baseline to beat
    on changed pairs.
    """
    fitted = tokens, episodes, split.train, steps, num_tokens
    bigram = BigramBaseline.fit(*fitted)
    change_bigram = BigramBaseline.fit(*fitted, changed_only=True)
    targets = tokens[frames_with_future(episodes, split.train, steps) + steps]
    commonest = int(np.bincount(targets, minlength=num_tokens).argmax())

    frames = frames_with_future(episodes, split.val, steps)
    now, target = tokens[frames], tokens[frames + steps]
    hits = {
        "copy": now == target,
        **_top_hits("bigram", bigram, now, target),
        **_top_hits("change_bigram", change_bigram, now, target),
        "marginal": target == commonest,
    }
    changed = now != target
    return HorizonScores(
        steps=steps,
        num_pairs=len(frames),
        num_changed=int(changed.sum()),
        chance=1 / num_tokens,
        all_pairs={
            name: _share_interval(hit, frames, episodes, seed)
            for name, hit in hits.items()
            if not name.startswith("change_")
        },
        changed_pairs={
            name: _share_interval(hit[changed], frames[changed], episodes, seed)
            for name, hit in hits.items()
        },
    )


def _top_hits(
    name: str, bigram: BigramBaseline, now: np.ndarray, target: np.ndarray
) -> dict[str, np.ndarray]:
    hits = bigram.top(now, 5) == target[:, None]
    return {f"{name}_top1": hits[:, 0], f"{name}_top5": hits.any(axis=1)}


def _share_interval(
    hits: np.ndarray, frames: np.ndarray, episodes: Episodes, seed: int
) -> Interval:
    positions = episodes.of_frame[frames]
    return ratio_interval(
        sum_by_episode(hits.astype(np.float64), positions, len(episodes)),
        sum_by_episode(np.ones(len(frames)), positions, len(episodes)),
        seed,
    )


@dataclass(frozen=True)
class Dependence:
    """Mutual information of the token with a label of the frame, in bits.

    Attributes:
        information_bits: plug-in estimate; biased upward, the more so the larger V is.
        shuffled_bits: mean of the same under shuffles that keep the tokens' own structure.
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

    The control deals the tasks out to the episodes again: frames of one episode resemble each
    other, so that shuffling single frames would understate the bias.
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
    starts, lengths = (
        np.repeat(of, episodes.lengths) for of in (episodes.starts, episodes.lengths)
    )
    position = np.arange(episodes.num_frames) - starts
    shuffles = []
    for _ in range(NUM_SHUFFLES):
        steps = np.repeat(rng.integers(0, episodes.lengths), episodes.lengths)
        turned = tokens[starts + (position + steps) % lengths]
        shuffles.append(mutual_information_bits(turned[frames], labels[frames], num_tokens))
    return _dependence(tokens[frames], labels[frames], shuffles, num_tokens)


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
