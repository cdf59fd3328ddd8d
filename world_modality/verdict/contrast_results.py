"""Comparisons of arms, corrected as a family, each with what would resolve it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from world_modality.arms import Contrast, contrasts_between
from world_modality.statistics.crossed_estimate import CrossedEstimate
from world_modality.statistics.holm import holm_adjusted
from world_modality.statistics.intervals import Interval
from world_modality.statistics.power import Resolution, resolution
from world_modality.statistics.proportions import mcnemar_p, paired_difference
from world_modality.verdict.comparison_group import ComparisonGroup
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import SUCCESS, Measure, paired_mean_difference

LEVEL = 0.05


@dataclass(frozen=True)
class PairedEpisodes:
    """What became of the episodes that two checkpoints of one seed share (McNemar's table)."""

    seed: int
    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int

    @property
    def p_value(self) -> float:
        """Exact."""
        return mcnemar_p(self.num_only_first, self.num_only_second)

    @property
    def difference(self) -> Interval:
        """Success rate of the first minus that of the second (Newcombe)."""
        return paired_difference(
            self.num_both, self.num_only_first, self.num_only_second, self.num_neither
        )


@dataclass(frozen=True)
class ContrastResult:
    """One comparison by one measure.

    Attributes:
        contrast: the arms.
        measure: what is compared.
        estimate: first minus second.
        seeds: that both arms have.
        pairs: for success, McNemar's table of each seed.
        holm_p: p value after correction for the family; None where nothing varies.
        family_size: comparisons that were corrected for.
    """

    contrast: Contrast
    measure: Measure
    estimate: CrossedEstimate
    seeds: tuple[int, ...]
    pairs: tuple[PairedEpisodes, ...] = ()
    holm_p: float | None = None
    family_size: int = 1

    @property
    def interval(self) -> Interval:
        """95 %, before correction; with one seed, success has Newcombe's."""
        if len(self.pairs) == 1:
            return self.pairs[0].difference
        return self.estimate.interval

    @property
    def p_value(self) -> float | None:
        """Before correction; with one seed, success has McNemar's."""
        if len(self.pairs) == 1:
            return self.pairs[0].p_value
        return self.estimate.p_value

    @property
    def is_identical(self) -> bool:
        """Whether the two arms did the same in every episode."""
        return self.estimate.value == 0 and self.estimate.p_value is None

    @property
    def direction(self) -> int:
        """1 where the first arm is better, -1 where it is worse, 0 where that is not resolved."""
        if self.holm_p is None or self.holm_p >= LEVEL:
            return 0
        side = self.interval.side()
        return -side if self.measure.lower_is_better else side

    @property
    def verdict(self) -> str:
        """In words; names what the resolution holds for."""
        if self.is_identical:
            return "identical in every episode"
        if self.direction == 0:
            return "not resolved"
        word = "better" if self.direction > 0 else "worse"
        limit = ", for this one seed" if len(self.seeds) == 1 else ""
        return f"{self.contrast.first} is {word}{limit}"

    @property
    def resolution(self) -> Resolution | None:
        """What would resolve it; None where nothing varies."""
        if self.estimate.p_value is None:
            return None
        return resolution(self.estimate, LEVEL / self.family_size)


def compare_arms(
    measure: Measure, evidence: Evidence, group: ComparisonGroup
) -> list[ContrastResult]:
    """Compare the arms of a group by a measure; p values are corrected over all of these."""
    results = []
    for contrast in contrasts_between(set(group.runs)):
        first, second = group.runs[contrast.first], group.runs[contrast.second]
        seeds = tuple(
            seed
            for seed in sorted(first.keys() & second.keys())
            if measure.scores(evidence, first[seed]) and measure.scores(evidence, second[seed])
        )
        if not seeds:
            continue
        runs = [first[seed] for seed in seeds], [second[seed] for seed in seeds]
        estimate = paired_mean_difference(measure, evidence, *runs)
        if estimate is not None:
            pairs = _pairs(evidence, *runs) if measure is SUCCESS else ()
            results.append(ContrastResult(contrast, measure, estimate, seeds, pairs))
    return _corrected(results)


def _corrected(results: list[ContrastResult]) -> list[ContrastResult]:
    tested = [(i, p) for i, one in enumerate(results) if (p := one.p_value) is not None]
    adjusted = dict(zip((i for i, _ in tested), holm_adjusted([p for _, p in tested]), strict=True))
    return [
        replace(result, holm_p=adjusted.get(i), family_size=max(len(tested), 1))
        for i, result in enumerate(results)
    ]


def _pairs(
    evidence: Evidence, first: Sequence[FinishedRun], second: Sequence[FinishedRun]
) -> tuple[PairedEpisodes, ...]:
    pairs = []
    for one, other in zip(first, second, strict=True):
        ours, theirs = SUCCESS.scores(evidence, one) or {}, SUCCESS.scores(evidence, other) or {}
        counts = {(a, b): 0 for a in (0.0, 1.0) for b in (0.0, 1.0)}
        for episode in ours.keys() & theirs.keys():
            counts[ours[episode][0], theirs[episode][0]] += 1
        pairs.append(
            PairedEpisodes(one.seed, counts[1, 1], counts[1, 0], counts[0, 1], counts[0, 0])
        )
    return tuple(pairs)
