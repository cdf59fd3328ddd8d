"""What a comparison resolves: the words for it, Holm's correction, and how much data it takes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import scipy

from world_modality.statistics.crossed_estimate import CrossedEstimate
from world_modality.statistics.intervals import Interval

NOT_RESOLVED = "not resolved"
NOT_RESOLVED_MEANS = (
    f"“{NOT_RESOLVED.capitalize()}” means that the interval spans no effect, or does so once it is "
    "corrected for the number of comparisons: it is no evidence that there is none."
)
POWER = 0.8
MAX_NUMBER = 100_000
"""Numbers above this are not given: the effect is as good as none."""


def not_resolved(reason: str) -> str:
    """Say why nothing is resolved."""
    return f"{NOT_RESOLVED}: {reason}"


def reading(
    interval: Interval, below: str, above: str, *, null: float = 0.0, with_reason: bool = False
) -> str:
    """Say what an interval shows, and no more than that.

    Args:
        interval: of a difference or a ratio.
        below: what it means that all of it lies below `null`.
        above: what it means that all of it lies above `null`.
        null: no effect: 0 for a difference, 1 for a ratio.
        with_reason: whether to say why it is not resolved.
    """
    side = interval.side(null)
    if side == 0 and with_reason:
        has_bounds = interval.low is not None and interval.high is not None
        return not_resolved(
            f"the interval spans {null:g}" if has_bounds else "there is no interval"
        )
    return {-1: below, 0: NOT_RESOLVED, 1: above}[side]


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p values that keep the family-wise error below the level they are read at.

    Step-down Bonferroni (Holm, 1979, Scandinavian Journal of Statistics 6:65-70): the i-th smallest
    of m is multiplied by m - i + 1, and none falls below a smaller one's.

    Raises:
        ValueError: a value is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"expected probabilities, got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Resolution:
    """What would resolve an effect as large as the estimate.

    Attributes:
        detectable: smallest effect that the present seeds and episodes resolve with the power.
        num_seeds: seeds that would, with the present episodes; None: no number up to MAX_NUMBER, or
            unknown from one seed.
        num_episodes: episodes that would, with the present seeds; None likewise.
    """

    detectable: float
    num_seeds: int | None
    num_episodes: int | None


def resolution(estimate: CrossedEstimate, level: float) -> Resolution:
    """Return what would resolve the estimated effect in 80 of 100 repetitions.

    The test is two-sided at `level`; its power is that of the noncentral t distribution (Cohen,
    1988, ch. 2), the standard error that of the two-way random model at the other size. The
    estimated effect is itself uncertain, and so are these numbers.

    Args:
        estimate: with variances that are taken for the true ones.
        level: after correction for the number of comparisons, say 0.05 / 4.
    """
    effect, error = abs(estimate.value), estimate.error

    def resolves(num_seeds: int, num_episodes: int) -> bool:
        return effect > 0 and _power(estimate, effect, num_seeds, num_episodes, level) >= POWER

    seeds, episodes = estimate.num_seeds, estimate.num_episodes
    more_seeds = None
    if estimate.seed_variance is not None:
        more_seeds = smallest_enough(lambda n: resolves(n, episodes), seeds)
    return Resolution(
        detectable=error.reach(1 - level / 2) + error.reach(POWER),
        num_seeds=more_seeds,
        num_episodes=smallest_enough(lambda n: resolves(seeds, n), episodes),
    )


def _power(estimate: CrossedEstimate, effect: float, s: int, e: int, level: float) -> float:
    error = estimate.error_at(s, e)
    if error.value == 0:
        return 1.0
    away = effect / error.value
    if away > 37:
        return 1.0  # where scipy's noncentral t runs out of precision
    return float(scipy.stats.nct.sf(error.reach(1 - level / 2) / error.value, error.freedom, away))


def smallest_enough(is_enough: Callable[[int], bool], present: int) -> int | None:
    """Return the smallest number from the present one on that is enough, by bisection."""
    low = high = max(present, 2)
    while not is_enough(high):
        if high >= MAX_NUMBER:
            return None
        low, high = high, min(high * 2, MAX_NUMBER)
    while low < high:
        middle = math.floor((low + high) / 2)
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high
