"""Success rates and paired differences of them: intervals and exact tests."""

import math

import scipy

from world_modality.statistics.intervals import CONFIDENCE, Interval


def wilson_bounds(num_successes: int, num_episodes: int) -> tuple[float, float]:
    """Return the bounds of the 95 % interval of a success rate (Wilson, 1927); needs an episode."""
    interval = scipy.stats.binomtest(num_successes, num_episodes).proportion_ci(
        CONFIDENCE, "wilson"
    )
    return float(interval.low), float(interval.high)


def wilson_interval(num_successes: int, num_episodes: int) -> Interval:
    """Return a success rate with its Wilson interval; without episodes all of it is None."""
    if num_episodes == 0:
        return Interval(None, None, None, 0)
    rate = num_successes / num_episodes
    return Interval(rate, *wilson_bounds(num_successes, num_episodes), num_episodes)


def mcnemar_p(num_only_first: int, num_only_second: int) -> float:
    """Exact two-sided McNemar test: the pairs that differ as tosses of a fair coin."""
    num_differing = num_only_first + num_only_second
    if num_differing == 0:
        return 1.0
    return float(scipy.stats.binomtest(num_only_first, num_differing, 0.5).pvalue)


def paired_difference(
    num_both: int, num_only_first: int, num_only_second: int, num_neither: int
) -> Interval:
    """Estimate the difference of two success rates in the same episodes, first minus second.

    Newcombe (1998, Statistics in Medicine 17:2635-2650), method 10: the Wilson intervals of the
    two rates, squared and added, less their covariance, whose correlation phi is corrected for
    continuity. Unlike the textbook interval it does not shrink to a point when few episodes differ.
    """
    n = num_both + num_only_first + num_only_second + num_neither
    if n == 0:
        return Interval(None, None, None, 0)
    num_first, num_second = num_both + num_only_first, num_both + num_only_second
    one, other = num_first / n, num_second / n
    one_low, one_high = wilson_bounds(num_first, n)
    other_low, other_high = wilson_bounds(num_second, n)
    margins = num_first * (n - num_first) * num_second * (n - num_second)
    covariance: float = num_both * num_neither - num_only_first * num_only_second
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(margins) if margins else 0.0
    down = _square_and_add(one - one_low, other_high - other, phi)
    up = _square_and_add(one_high - one, other - other_low, phi)
    return Interval(one - other, one - other - down, one - other + up, n)


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


class PairedOutcomes:
    """What became of the episodes that two policies share (McNemar's table).

    A dataclass that inherits this declares the counts.

    Attributes:
        num_both: episodes that both solved.
        num_only_first: episodes that only the first solved.
        num_only_second: episodes that only the second solved.
        num_neither: episodes that neither solved.
    """

    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """The pairs: solved by both, only the first, only the second, neither."""
        return self.num_both, self.num_only_first, self.num_only_second, self.num_neither

    @property
    def rates(self) -> tuple[Interval, Interval]:
        """Success rates of the first and of the second (Wilson)."""
        n = sum(self.counts)
        return (
            wilson_interval(self.num_both + self.num_only_first, n),
            wilson_interval(self.num_both + self.num_only_second, n),
        )

    @property
    def difference(self) -> Interval:
        """Success rate of the first minus that of the second (Newcombe)."""
        return paired_difference(*self.counts)

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: the pairs that differ as tosses of a fair coin."""
        return mcnemar_p(self.num_only_first, self.num_only_second)
