"""Two checkpoints in the same episodes: which succeeds more often, as far as these tell."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.rollouts.results import RolloutResult
from world_modality.statistics.intervals import Interval
from world_modality.statistics.proportions import mcnemar_p, paired_difference
from world_modality.statistics.resolution import not_resolved, reading


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
        return mcnemar_p(self.num_only_first, self.num_only_second)

    @property
    def verdict(self) -> str:
        """What the interval says."""
        difference = self.difference
        if difference.low is None or difference.high is None:
            return not_resolved("no episode in common")
        second, first = f"{self.second} is better", f"{self.first} is better"
        return reading(difference, second, first, with_reason=True)

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


def _by_episode(results: Iterable[RolloutResult]) -> dict[tuple[str, int, int], bool | None]:
    return {(r.task, r.episode, r.initial_state): r.success for r in results}
