"""Confidence intervals over episodes: these are independent, frames of one episode are not."""

import math
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float, Int, Num, Shaped

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; the bounds are None below two episodes."""

    value: float | None
    low: float | None
    high: float | None
    num_episodes: int

    def __str__(self) -> str:
        return self._text(1, ".3g", "")

    def side(self, null: float = 0.0) -> int:
        """Return 1 or -1 where all of it lies above or below `null`; 0 where nothing is resolved.

        Args:
            null: no effect: 0 for a difference, 1 for a ratio.
        """
        if self.low is None or self.high is None:
            return 0
        return int(self.low > null) - int(self.high < null)

    @property
    def percent(self) -> str:
        """The estimate and its interval in percent, for shares."""
        return self._text(100, ".1f", " %")

    def with_decimals(self, count: int) -> str:
        """Return the estimate and its interval with so many decimals: a perplexity near 1."""
        return self._text(1, f".{count}f", "")

    def _text(self, factor: float, number: str, unit: str) -> str:
        if self.value is None:
            return "n/a"
        estimate = f"{factor * self.value:{number}}{unit}"
        if self.low is None or self.high is None:
            return f"{estimate} [no interval: {self.num_episodes} episode]"
        return f"{estimate} [{factor * self.low:{number}}, {factor * self.high:{number}}]"


def sum_by_episode(
    values: Shaped[np.ndarray, " N"], positions: Int[np.ndarray, " N"], num_episodes: int
) -> Float[np.ndarray, " E"]:
    """Add up per-frame values within each episode, in float64."""
    sums = np.bincount(positions, weights=values.astype(np.float64), minlength=num_episodes)
    return sums.astype(np.float64)  # numpy returns integers where there are no values


def defined_ratio(numerator: float, denominator: float) -> float | None:
    """Return the ratio, or None where it or its logarithm is no finite number."""
    if not (numerator > 0 and denominator > 0):
        return None
    ratio = float(numerator) / float(denominator)
    return ratio if 0 < ratio < math.inf else None


def ratio_interval(
    numerators: Float[np.ndarray, " E"], denominators: Num[np.ndarray, " E"], seed: int = 0
) -> Interval:
    """Estimate sum(numerators) / sum(denominators) with a bootstrap over episodes.

    With sums of squared errors over counts this is the exact mean over frames; with the errors of
    two conditions it is their paired ratio, since each resample draws an episode's two sums
    together. Percentile bootstrap (Efron and Tibshirani, 1993, ch. 13), `scipy.stats.bootstrap`.

    Args:
        numerators: one sum per episode.
        denominators: one sum per episode; episodes where it is 0 carry no information and are left
            out.
        seed: of the resampling.

    Raises:
        ValueError: an entry is not finite.
    """
    if not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise ValueError("cannot bootstrap sums that are not finite")
    seen = denominators > 0
    numerators, denominators = numerators[seen], denominators[seen]
    num_episodes = int(seen.sum())
    if num_episodes == 0:
        return Interval(None, None, None, 0)
    value = float(numerators.sum() / denominators.sum())
    if num_episodes == 1:
        return Interval(value, None, None, 1)
    result = scipy.stats.bootstrap(
        (numerators, denominators),
        lambda top, bottom, axis: top.sum(axis=axis) / bottom.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=NUM_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(value, float(low), float(high), num_episodes)
