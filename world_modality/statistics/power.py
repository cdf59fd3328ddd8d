"""How much more data would resolve what the data did not."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats

from world_modality.statistics.crossed_estimate import CrossedEstimate

POWER = 0.8
MAX_NUMBER = 100_000
"""Numbers above this are not given: the effect is as good as none."""


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
    effect = abs(estimate.value)

    def resolves(num_seeds: int, num_episodes: int) -> bool:
        return effect > 0 and _power(estimate, effect, num_seeds, num_episodes, level) >= POWER

    seeds, episodes = estimate.num_seeds, estimate.num_episodes
    more_seeds = None
    if estimate.seed_variance is not None:
        more_seeds = _smallest(lambda n: resolves(n, episodes), seeds)
    return Resolution(
        detectable=_detectable(estimate, level),
        num_seeds=more_seeds,
        num_episodes=_smallest(lambda n: resolves(seeds, n), episodes),
    )


def _power(estimate: CrossedEstimate, effect: float, s: int, e: int, level: float) -> float:
    error = estimate.error_at(s, e)
    if error.value == 0:
        return 1.0
    away = effect / error.value
    if away > 37:
        return 1.0  # where scipy's noncentral t runs out of precision
    return float(stats.nct.sf(error.reach(1 - level / 2) / error.value, error.freedom, away))


def _detectable(estimate: CrossedEstimate, level: float) -> float:
    error = estimate.error
    return error.reach(1 - level / 2) + error.reach(POWER)


def _smallest(is_enough: Callable[[int], bool], present: int) -> int | None:
    """Return the smallest number from the present one on that is enough, by bisection."""
    low, high = max(present, 2), max(present, 2)
    while not is_enough(high):
        if high >= MAX_NUMBER:
            return None
        low, high = high, min(high * 2, MAX_NUMBER)
    while low < high:
        middle = math.floor((low + high) / 2)
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high
