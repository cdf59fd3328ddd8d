"""Two checkpoints in the same episodes: which succeeds more often, as far as these tell."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scipy import stats

from benchmarks.rollouts.results import RolloutResult
from world_modality.intervals import CONFIDENCE, Interval


@dataclass(frozen=True)
class Comparison:
    """What became of the episodes that two checkpoints share.

    Attributes:
        first: label of one checkpoint.
        second: label of the other.
        num_both: episodes that both solved.
        num_only_first: episodes that only the first solved.
        num_only_second: episodes that only the second solved.
        num_neither: episodes that neither solved.
        num_errors: shared episodes that ended in an error for one or both; they are left out.
    """

    first: str
    second: str
    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int
    num_errors: int

    @property
    def num_episodes(self) -> int:
        """Pairs that count."""
        return self.num_both + self.num_only_first + self.num_only_second + self.num_neither

    @property
    def difference(self) -> Interval:
        """Success rate of the first minus that of the second."""
        return paired_difference(
            self.num_both, self.num_only_first, self.num_only_second, self.num_neither
        )

    @property
    def mcnemar_p(self) -> float:
        """Exact two-sided McNemar test: the pairs that differ as tosses of a fair coin."""
        num_differing = self.num_only_first + self.num_only_second
        if num_differing == 0:
            return 1.0
        return float(stats.binomtest(self.num_only_first, num_differing, 0.5).pvalue)

    @property
    def verdict(self) -> str:
        """What the interval says."""
        difference = self.difference
        if difference.low is None or difference.high is None:
            return "not resolved: no episode in common"
        if difference.low > 0:
            return f"{self.first} is better"
        if difference.high < 0:
            return f"{self.second} is better"
        return "not resolved: the interval spans 0"

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {**vars(self)} | {
            "num_episodes": self.num_episodes,
            "difference": vars(self.difference),
            "mcnemar_p": self.mcnemar_p,
            "verdict": self.verdict,
        }


def compare(
    first: str,
    first_results: Iterable[RolloutResult],
    second: str,
    second_results: Iterable[RolloutResult],
) -> Comparison:
    """Pair two checkpoints' results by task, episode and initial state.

    Args:
        first: label of one checkpoint.
        first_results: its results, one for each episode.
        second: label of the other.
        second_results: its results.
    """
    firsts, seconds = _by_episode(first_results), _by_episode(second_results)
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    num_errors = 0
    for episode in firsts.keys() & seconds.keys():
        one, other = firsts[episode], seconds[episode]
        if one is None or other is None:
            num_errors += 1
        else:
            counts[one, other] += 1
    return Comparison(
        first=first,
        second=second,
        num_both=counts[True, True],
        num_only_first=counts[True, False],
        num_only_second=counts[False, True],
        num_neither=counts[False, False],
        num_errors=num_errors,
    )


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


def wilson_bounds(num_successes: int, num_episodes: int) -> tuple[float, float]:
    """Return the bounds of the 95 % interval of a success rate (Wilson, 1927); needs an episode."""
    interval = stats.binomtest(num_successes, num_episodes).proportion_ci(CONFIDENCE, "wilson")
    return float(interval.low), float(interval.high)


def _square_and_add(one: float, other: float, phi: float) -> float:
    return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))


def _by_episode(results: Iterable[RolloutResult]) -> dict[tuple[str, int, int], bool | None]:
    return {(r.task, r.episode, r.initial_state): r.success for r in results}
