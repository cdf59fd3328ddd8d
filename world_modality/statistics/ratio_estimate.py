"""Ratios of two errors over seeds and episodes, on the logarithmic scale.

A ratio of two positive figures is positive, and twice is as far from 1 as half: both hold on the
logarithmic scale alone. On the linear one the interval of three seeds may reach below 0. The mean
of the logarithms, exponentiated, is the geometric mean, the one mean of ratios that does not depend
on which of the two figures is the reference (Fleming and Wallace, 1986, How not to lie with
statistics, Communications of the ACM 29:218-221).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float

from world_modality.statistics.crossed_estimate import CrossedEstimate, with_variances
from world_modality.statistics.intervals import Interval, defined_ratio

_MAX_LOG = 700.0
"""Ratios stop at e^±700: near there float64 ends, and a bound is neither 0 nor infinite."""


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
    """Estimate the ratio of two errors that every seed has in every episode.

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
    resampled = partial(_resampled, numerators, denominators)
    with np.errstate(divide="ignore", invalid="ignore"):
        log = with_variances(value, resampled, num_seeds, num_episodes, seed)
    return RatioEstimate(per_seed, log, num_episodes)


def geometric_mean(ratios: Sequence[float | None]) -> float | None:
    """Return the mean of ratios; None where one of them is not defined."""
    known = [ratio for ratio in ratios if ratio is not None]
    return float(np.exp(np.log(known).mean())) if len(known) == len(ratios) else None


def _resampled(
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
