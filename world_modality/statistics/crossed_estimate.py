"""Means and ratios over seeds and episodes, with intervals that know that both are samples.

Every seed's policy is scored on the same episodes: seeds and episodes are crossed. A claim about an
arm is a claim about seeds that were not trained and episodes that were not recorded, so both are
resampled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from world_modality.statistics.intervals import CONFIDENCE, NUM_RESAMPLES, Interval, defined_ratio

_SMALLEST_P = 1e-12
_MAX_LOG = 700.0
"""Ratios stop at e^±700: near there float64 ends, and a bound is neither 0 nor infinite."""


@dataclass(frozen=True)
class StandardError:
    """Of an estimate over seeds and episodes: two mean squares, each with its own freedom.

    Attributes:
        seeds: variance of the mean over seeds; 0 with one seed.
        episodes: variance of the mean over episodes.
        residual: what both of these contain, counted once.
        seed_freedom: number of seeds less one.
        episode_freedom: number of episodes less one.
    """

    seeds: float
    episodes: float
    residual: float
    seed_freedom: int
    episode_freedom: int

    @property
    def value(self) -> float:
        """The standard error."""
        return math.sqrt(self.seeds + self.episodes - self.residual)

    def reach(self, probability: float) -> float:
        """Return how far from the truth the estimate lies at most, with at least this probability.

        One-sided. No Student distribution is right for the sum of two mean squares; the root of
        the sum of each one's t² times its variance never covers less than it says (Banerjee, 1960,
        Sankhya 22:357-358), whichever of the two is large. The residual is left in both, which
        errs to the same side. Welch-Satterthwaite covers 93 % where it is three seeds that matter.
        """
        episodes = float(stats.t.ppf(probability, self.episode_freedom)) ** 2 * self.episodes
        if self.seed_freedom == 0:
            return math.sqrt(episodes)
        seeds = float(stats.t.ppf(probability, self.seed_freedom)) ** 2 * self.seeds
        return math.sqrt(seeds + episodes)

    def p_value(self, effect: float) -> float:
        """Two-sided p value of an estimate that lies so far from no effect."""
        away = abs(effect)
        if away == 0:
            return 1.0
        if away >= self.reach(1 - _SMALLEST_P / 2):
            return _SMALLEST_P

        def excess(p: float) -> float:
            return self.reach(1 - p / 2) - away

        return float(optimize.brentq(excess, _SMALLEST_P, 1.0, xtol=_SMALLEST_P))

    @property
    def freedom(self) -> float:
        """Welch-Satterthwaite degrees of freedom, for the shape of the noncentral t."""
        if self.seed_freedom == 0:
            return self.episode_freedom
        total = self.seeds + self.episodes
        parts = self.seeds**2 / self.seed_freedom + self.episodes**2 / self.episode_freedom
        return total**2 / parts


Resampled = Callable[
    [Float[np.ndarray, "B S"], Float[np.ndarray, "B E"]],
    Float[np.ndarray, " B"],
]
"""From how often seeds and episodes were drawn, in each resample, to the resample's estimate."""


@dataclass(frozen=True)
class CrossedEstimate:
    """An estimate over S seeds and E episodes.

    Attributes:
        value: the estimate.
        seed_variance: of a single seed's estimate, between seeds; None with one seed.
        episode_variance: of a single episode's estimate, between episodes.
        residual_variance: of one seed in one episode, beyond both.
        num_seeds: S.
        num_episodes: E.
    """

    value: float
    seed_variance: float | None
    episode_variance: float
    residual_variance: float
    num_seeds: int
    num_episodes: int

    def error_at(self, num_seeds: int, num_episodes: int) -> StandardError:
        """Return the standard error that so many seeds and episodes would have."""
        s, e = num_seeds, num_episodes
        residual = self.residual_variance / (s * e)
        episodes = self.episode_variance / e + residual
        if self.seed_variance is None or s == 1:
            return StandardError(0.0, episodes, 0.0, 0, e - 1)
        return StandardError(self.seed_variance / s + residual, episodes, residual, s - 1, e - 1)

    @property
    def error(self) -> StandardError:
        """Of the estimate."""
        return self.error_at(self.num_seeds, self.num_episodes)

    @property
    def interval(self) -> Interval:
        """95 % interval by Student's t; no bounds below two episodes."""
        if self.num_episodes < 2:
            return Interval(self.value, None, None, self.num_episodes)
        reach = self.error.reach(0.5 + CONFIDENCE / 2)
        return Interval(self.value, self.value - reach, self.value + reach, self.num_episodes)

    @property
    def p_value(self) -> float | None:
        """Two-sided, of an effect of 0; None where nothing varies: there is nothing to test."""
        if self.num_episodes < 2 or self.error.value == 0:
            return None
        return self.error.p_value(self.value)


def crossed_estimate(
    numerators: Float[np.ndarray, "S E"],
    denominators: Float[np.ndarray, "S E"],
    *,
    seed: int = 0,
) -> CrossedEstimate:
    """Estimate sum(numerators) / sum(denominators) over seeds and episodes, on the linear scale.

    For means and differences; `ratio_estimate` is for ratios of two errors.

    Args:
        numerators: for a mean, sums of each seed in each episode; for a paired difference, the
            difference of two arms' sums.
        denominators: counts; 0 where there is nothing.
        seed: of the resampling.

    Raises:
        ValueError: nothing was counted, or an entry is not finite.
    """
    if not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise ValueError("cannot estimate from sums that are not finite")
    total = denominators.sum()
    if total <= 0:
        raise ValueError("nothing was counted")
    value = float(numerators.sum() / total)
    num_seeds, num_episodes = numerators.shape
    resampled = partial(_resampled, numerators, denominators)
    return with_variances(value, resampled, num_seeds, num_episodes, seed)


def with_variances(
    value: float, resampled: Resampled, num_seeds: int, num_episodes: int, seed: int
) -> CrossedEstimate:
    """Say how much of an estimate's variance seeds and episodes contribute.

    Hierarchical bootstrap of the crossed layout (Owen, 2007, The pigeonhole bootstrap, Annals of
    Applied Statistics 1:386-411): seeds, episodes, and both are drawn with replacement, and the
    spread of the resampled estimates gives the variance that each contributes. Unlike there, each
    is corrected for the number drawn from, n / (n - 1), and the interval is Student's (see
    `StandardError`): the percentiles of three resampled seeds cover about 70 %, not 95.

    Args:
        value: the estimate from everything, once.
        resampled: the estimator.
        num_seeds: S.
        num_episodes: E.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    seeds = _resampled_counts(rng, num_seeds)
    episodes = _resampled_counts(rng, num_episodes)
    ones_s, ones_e = np.ones_like(seeds), np.ones_like(episodes)

    of_episodes = resampled(ones_s, episodes)
    by_episode = float(of_episodes.var()) * _unbias(num_episodes)
    if num_seeds == 1:
        return CrossedEstimate(value, None, by_episode * num_episodes, 0.0, 1, num_episodes)
    of_seeds = resampled(seeds, ones_e)
    by_seed = float(of_seeds.var()) * _unbias(num_seeds)
    # What the two together do beyond the sum of what each does: their interaction.
    beyond = resampled(seeds, episodes) - of_seeds - of_episodes
    residual = float(beyond.var()) * _unbias(num_seeds) * _unbias(num_episodes)
    residual = min(residual, by_seed, by_episode)
    return CrossedEstimate(
        value=value,
        seed_variance=(by_seed - residual) * num_seeds,
        episode_variance=(by_episode - residual) * num_episodes,
        residual_variance=residual * num_seeds * num_episodes,
        num_seeds=num_seeds,
        num_episodes=num_episodes,
    )


def _resampled(
    numerators: Float[np.ndarray, "S E"],
    denominators: Float[np.ndarray, "S E"],
    seeds: Float[np.ndarray, "B S"],
    episodes: Float[np.ndarray, "B E"],
) -> Float[np.ndarray, " B"]:
    """Return the estimates where seeds and episodes count as often as they were drawn."""
    top = np.einsum("bs,se,be->b", seeds, numerators, episodes, optimize=True)
    bottom = np.einsum("bs,se,be->b", seeds, denominators, episodes, optimize=True)
    value = numerators.sum() / denominators.sum()
    # Without a counted episode a resample says nothing.
    return np.divide(top, bottom, out=np.full(len(top), value), where=bottom > 0)


def _resampled_counts(rng: np.random.Generator, size: int) -> Float[np.ndarray, "B n"]:
    shares = np.full(size, 1 / size)
    return rng.multinomial(size, shares, size=NUM_RESAMPLES).astype(np.float64)


def _unbias(size: int) -> float:
    return size / (size - 1) if size > 1 else 1.0


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
    numerators: Float[np.ndarray, "S E"], denominators: Float[np.ndarray, "S E"], *, seed: int = 0
) -> RatioEstimate:
    """Estimate the ratio of two errors that every seed has in every episode, as a logarithm.

    A ratio of two positive figures is positive, and twice is as far from 1 as half: both hold on
    the logarithmic scale alone; on the linear one the interval of three seeds may reach below 0.
    The mean of the logarithms, exponentiated, is the geometric mean, the one mean of ratios that
    does not depend on which figure is the reference (Fleming and Wallace, 1986, How not to lie with
    statistics, Communications of the ACM 29:218-221).

    Within a seed the sums over episodes are divided, since the error is a mean over frames and an
    episode with next to none would rule a mean of episodes' logarithms; over seeds the logarithms
    are averaged. Variances and interval as in `with_variances`.

    Args:
        numerators: sums of each seed in each episode, say with a corrupted token.
        denominators: sums of the reference.
        seed: of the resampling.
    """
    num_seeds, num_episodes = numerators.shape
    per_seed = tuple(
        defined_ratio(top, bottom)
        for top, bottom in zip(numerators.sum(axis=1), denominators.sum(axis=1), strict=True)
    )
    if None in per_seed:
        return RatioEstimate(per_seed, None, num_episodes)
    value = float(np.log([ratio for ratio in per_seed if ratio is not None]).mean())
    resampled = partial(_resampled_logs, numerators, denominators)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = with_variances(value, resampled, num_seeds, num_episodes, seed)
    return RatioEstimate(per_seed, log, num_episodes)


def geometric_mean(ratios: Sequence[float | None]) -> float | None:
    """Return the mean of ratios; None where one of them is not defined."""
    known = [ratio for ratio in ratios if ratio is not None]
    return float(np.exp(np.log(known).mean())) if len(known) == len(ratios) else None


def _resampled_logs(
    numerators: Float[np.ndarray, "S E"],
    denominators: Float[np.ndarray, "S E"],
    seeds: Float[np.ndarray, "B S"],
    episodes: Float[np.ndarray, "B E"],
) -> Float[np.ndarray, " B"]:
    """Return mean logarithms; infinite or NaN where the drawn episodes have no error at all."""
    logs = np.log(episodes @ numerators.T) - np.log(episodes @ denominators.T)
    return (seeds * logs).sum(axis=1) / seeds.sum(axis=1)


def _exponential(log: float | None) -> float | None:
    # NaN: some resamples hold no error, so that the spread of the logarithm is not known.
    if log is None or math.isnan(log):
        return None
    return math.exp(min(max(log, -_MAX_LOG), _MAX_LOG))
