"""Means and ratios over seeds and episodes, with intervals that know that both are samples.

Every seed's policy is scored on the same episodes: seeds and episodes are crossed. A claim about an
arm is a claim about seeds that were not trained and episodes that were not recorded, so both are
random effects of a two-way model. Tasks are not: a fixed number of episodes is drawn of each, so
that only episodes of one task say how much episodes vary.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int

from world_modality.statistics.intervals import CONFIDENCE, Interval, defined_ratio

_SMALLEST_P = 1e-12
_MAX_LOG = 700.0
"""Ratios stop at e^±700: near there float64 ends, and a bound is neither 0 nor infinite."""


@dataclass(frozen=True)
class StandardError:
    """Of an estimate over seeds and episodes: two variances, each with its own freedom.

    Attributes:
        seeds: variance of the mean over seeds, what one seed in one episode varies by included; 0
            with one seed.
        episodes: what the choice of episodes adds to it; of one seed, all there is.
        seed_freedom: number of seeds less one.
        episode_freedom: number of episodes less one for each task (Satterthwaite, 1946, where the
            tasks differ in how much their episodes vary).
    """

    seeds: float
    episodes: float
    seed_freedom: int
    episode_freedom: float

    @property
    def value(self) -> float:
        """The standard error."""
        return math.sqrt(self.seeds + self.episodes)

    def reach(self, probability: float) -> float:
        """Return how far from the truth the estimate lies at most, with at least this probability.

        One-sided. No Student distribution is right for the sum of two mean squares; the root of
        the sum of each one's t² times its variance never covers less than it says (Banerjee, 1960,
        Sankhya 22:357-358), whichever of the two is large. What one seed in one episode varies by
        is in both mean squares; it is counted once, with the seeds, which are fewer.
        Welch-Satterthwaite covers 93 % where it is three seeds that matter.
        """
        variance = 0.0
        if self.seed_freedom > 0:
            variance += float(scipy.stats.t.ppf(probability, self.seed_freedom)) ** 2 * self.seeds
        if self.episode_freedom > 0:
            variance += (
                float(scipy.stats.t.ppf(probability, self.episode_freedom)) ** 2 * self.episodes
            )
        return math.sqrt(variance)

    def p_value(self, effect: float) -> float:
        """Two-sided p value of an estimate that lies so far from no effect."""
        away = abs(effect)
        if away == 0:
            return 1.0
        if away >= self.reach(1 - _SMALLEST_P / 2):
            return _SMALLEST_P

        def excess(p: float) -> float:
            return self.reach(1 - p / 2) - away

        return float(scipy.optimize.brentq(excess, _SMALLEST_P, 1.0, xtol=_SMALLEST_P))

    @property
    def freedom(self) -> float:
        """Welch-Satterthwaite degrees of freedom, for the shape of the noncentral t."""
        if self.seed_freedom == 0:
            return self.episode_freedom
        total = self.seeds + self.episodes
        parts = self.seeds**2 / self.seed_freedom + self.episodes**2 / self.episode_freedom
        return total**2 / parts


@dataclass(frozen=True)
class CrossedEstimate:
    """An estimate over S seeds and E episodes.

    Attributes:
        value: the estimate.
        seed_variance: of a single seed's estimate, between seeds; None with one seed.
        episode_variance: of a single episode's estimate, between episodes of its task.
        residual_variance: of one seed in one episode, beyond both.
        num_seeds: S.
        num_episodes: E.
        episode_freedom: degrees of freedom that the episodes' variance is known with.
        possible: least and largest value that there can be, 0 and 1 for a share.
    """

    value: float
    seed_variance: float | None
    episode_variance: float
    residual_variance: float
    num_seeds: int
    num_episodes: int
    episode_freedom: float
    possible: tuple[float, float] = (-math.inf, math.inf)

    def error_at(self, num_seeds: int, num_episodes: int) -> StandardError:
        """Return the standard error that so many seeds and episodes would have."""
        s, e = num_seeds, num_episodes
        residual = self.residual_variance / (s * e)
        episodes = self.episode_variance / e
        freedom = self.episode_freedom * e / self.num_episodes
        if self.seed_variance is None or s == 1:
            return StandardError(0.0, episodes + residual, 0, freedom)
        return StandardError(self.seed_variance / s + residual, episodes, s - 1, freedom)

    @property
    def error(self) -> StandardError:
        """Of the estimate."""
        return self.error_at(self.num_seeds, self.num_episodes)

    @property
    def interval(self) -> Interval:
        """95 % interval by Student's t; no bounds below two episodes.

        What of it lies outside of the possible values is cut off, as usual for proportions
        (Newcombe, 1998, Statistics in Medicine 17:857-872): it holds the truth as often as before,
        since the truth is possible, and where it ends inside nothing changes.
        """
        if self.num_episodes < 2:
            return Interval(self.value, None, None, self.num_episodes)
        reach = self.error.reach(0.5 + CONFIDENCE / 2)
        # NaN, an unknown spread, stays so: it is no bound that could be cut.
        low, high = (
            float(np.clip(end, *self.possible)) for end in (self.value - reach, self.value + reach)
        )
        return Interval(self.value, low, high, self.num_episodes)

    @property
    def p_value(self) -> float | None:
        """Two-sided, of an effect of 0; None where nothing varies: there is nothing to test."""
        if self.num_episodes < 2 or self.error.value == 0:
            return None
        return self.error.p_value(self.value)


def crossed_estimate(
    numerators: Float[np.ndarray, "S E"],
    denominators: Float[np.ndarray, "S E"],
    tasks: Sequence[Hashable] | None = None,
) -> CrossedEstimate:
    """Estimate sum(numerators) / sum(denominators) over seeds and episodes, on the linear scale.

    For means and differences; `ratio_estimate` is for ratios of two errors.

    Args:
        numerators: for a mean, sums of each seed in each episode; for a paired difference, the
            difference of two arms' sums.
        denominators: counts; 0 where there is nothing.
        tasks: of each episode, where a fixed number was drawn of each task.

    Raises:
        ValueError: nothing was counted, or an entry is not finite.
    """
    if not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise ValueError("cannot estimate from sums that are not finite")
    total = denominators.sum()
    if total <= 0:
        raise ValueError("nothing was counted")
    value = float(numerators.sum() / total)
    # A combined ratio's linear form (Cochran, 1977, Sampling Techniques, eq. 6.51): where all
    # counts are alike these are the cells themselves.
    cells = value + (numerators - value * denominators) * (numerators.size / total)
    return _analysis_of_variance(value, cells, tasks)


def _analysis_of_variance(
    value: float, cells: Float[np.ndarray, "S E"], tasks: Sequence[Hashable] | None
) -> CrossedEstimate:
    """Say how much of a mean's variance seeds and episodes contribute.

    Mean squares of the two-way layout of random seeds and random episodes, the latter drawn by
    task (Cornfield and Tukey, 1956, Annals of Mathematical Statistics 27:907-949; stratification as
    in Cochran, 1977, ch. 5). Nothing is resampled: the same cells always give the same interval.

    Args:
        value: the estimate.
        cells: what each seed in each episode adds to it; their mean is the estimate.
        tasks: of each episode; None where all are of one.
    """
    num_seeds, num_episodes = cells.shape
    of_task = _strata(tasks, num_episodes)
    counts = np.bincount(of_task)
    freedom = np.maximum(counts - 1, 1)
    around_task = cells - _means_of(of_task, counts, cells)[:, of_task]
    by_episode = around_task.mean(axis=0)
    squares = np.bincount(of_task, weights=by_episode**2)
    parts = counts * squares / freedom / num_episodes**2
    of_episodes = float(parts.sum())
    known_with = float((parts**2 / freedom).sum())
    episode_freedom = of_episodes**2 / known_with if known_with > 0 else float(freedom.sum())
    if num_seeds == 1:
        return CrossedEstimate(
            value, None, of_episodes * num_episodes, 0.0, 1, num_episodes, episode_freedom
        )
    of_seeds = float(cells.mean(axis=1).var(ddof=1)) / num_seeds
    beyond = np.bincount(of_task, weights=((around_task - by_episode) ** 2).sum(axis=0))
    per_cell = counts * beyond / ((num_seeds - 1) * freedom)
    # Each of the other two contains it; by chance it may come out larger than they do.
    residual = min(float(per_cell.sum()) / (num_seeds * num_episodes**2), of_seeds, of_episodes)
    return CrossedEstimate(
        value=value,
        seed_variance=(of_seeds - residual) * num_seeds,
        episode_variance=(of_episodes - residual) * num_episodes,
        residual_variance=residual * num_seeds * num_episodes,
        num_seeds=num_seeds,
        num_episodes=num_episodes,
        episode_freedom=episode_freedom,
    )


def _strata(tasks: Sequence[Hashable] | None, num_episodes: int) -> Int[np.ndarray, " E"]:
    """Number the tasks; those of a single episode, which says nothing of a spread, are one."""
    if tasks is None:
        return np.zeros(num_episodes, dtype=np.int64)
    names = list(dict.fromkeys(tasks))
    counts = {name: sum(task == name for task in tasks) for name in names}
    lone = [name for name in names if counts[name] == 1]
    if len(lone) == 1:
        others = [name for name in names if counts[name] > 1]
        lone += others and [min(others, key=lambda name: counts[name])]
    numbers = {name: 0 for name in lone}
    for name in names:
        numbers.setdefault(name, max(numbers.values(), default=-1) + 1)
    return np.array([numbers[task] for task in tasks], dtype=np.int64)


def _means_of(
    of_task: Int[np.ndarray, " E"], counts: Int[np.ndarray, " T"], cells: Float[np.ndarray, "S E"]
) -> Float[np.ndarray, "S T"]:
    """Return the mean of each seed in each task."""
    return np.stack([np.bincount(of_task, weights=row) / counts for row in cells])


@dataclass(frozen=True)
class RatioEstimate:
    """A ratio over S seeds and E episodes.

    Attributes:
        per_seed: each seed's ratio of its sums over all episodes; None where that is not defined.
        log: the mean over seeds of the logarithm, 0 without an effect; None where a seed's ratio is
            not defined, since to leave out the seeds that go to 0 or infinity would say too little.
        num_episodes: E.
    """

    per_seed: tuple[float | None, ...]
    log: CrossedEstimate | None
    num_episodes: int

    @property
    def interval(self) -> Interval:
        """Geometric mean over seeds, and the exponentiated 95 % interval of the mean logarithm."""
        if self.log is None:
            return Interval(None, None, None, self.num_episodes)
        on_log = self.log.interval
        value, low, high = map(_exponential, (on_log.value, on_log.low, on_log.high))
        return Interval(value, low, high, self.num_episodes)


def ratio_estimate(
    numerators: Float[np.ndarray, "S E"],
    denominators: Float[np.ndarray, "S E"],
    tasks: Sequence[Hashable] | None = None,
) -> RatioEstimate:
    """Estimate the ratio of two errors that every seed has in every episode, as a logarithm.

    A ratio of two positive figures is positive, and twice is as far from 1 as half: both hold on
    the logarithmic scale alone; on the linear one the interval of three seeds may reach below 0.
    The mean of the logarithms, exponentiated, is the geometric mean, the one mean of ratios that
    does not depend on which figure is the reference (Fleming and Wallace, 1986, How not to lie with
    statistics, Communications of the ACM 29:218-221).

    Within a seed the sums over episodes are divided, since the error is a mean over frames and an
    episode with next to none would rule a mean of episodes' logarithms; over seeds the logarithms
    are averaged. Variances and interval as in `crossed_estimate`; there is none where all the error
    of a seed lies in one episode, without which its logarithm would not be defined.

    Args:
        numerators: sums of each seed in each episode, say with a corrupted token.
        denominators: sums of the reference.
        tasks: of each episode, where a fixed number was drawn of each task.
    """
    num_episodes = numerators.shape[1]
    totals = numerators.sum(axis=1), denominators.sum(axis=1)
    per_seed = tuple(defined_ratio(top, bottom) for top, bottom in zip(*totals, strict=True))
    if None in per_seed:
        return RatioEstimate(per_seed, None, num_episodes)
    logs = np.log([ratio for ratio in per_seed if ratio is not None])
    # The logarithm's linear form: how an episode's share of each error moves it.
    parts = [
        sums / total[:, None]
        for sums, total in zip((numerators, denominators), totals, strict=True)
    ]
    cells = logs[:, None] + num_episodes * (parts[0] - parts[1])
    if max(part.max() for part in parts) == 1.0:
        cells = np.full_like(cells, math.nan)
    log = _analysis_of_variance(float(logs.mean()), cells, tasks)
    return RatioEstimate(per_seed, log, num_episodes)


def geometric_mean(ratios: Sequence[float | None]) -> float | None:
    """Return the mean of ratios; None where one of them is not defined."""
    known = [ratio for ratio in ratios if ratio is not None]
    return float(np.exp(np.log(known).mean())) if len(known) == len(ratios) else None


def _exponential(log: float | None) -> float | None:
    # NaN: the spread of the logarithm is not known.
    if log is None or math.isnan(log):
        return None
    return math.exp(min(max(log, -_MAX_LOG), _MAX_LOG))
