"""All comparisons of a report, made once and read by its sections."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from world_modality.arms import Contrast, contrasts_between
from world_modality.statistics.crossed_estimate import (
    CrossedEstimate,
    geometric_mean,
    ratio_estimate,
)
from world_modality.statistics.design import read_design
from world_modality.statistics.intervals import Interval, defined_ratio
from world_modality.statistics.proportions import PairedOutcomes
from world_modality.statistics.resolution import Resolution, holm_adjusted, resolution
from world_modality.tokens.corruption import Corruption, read_corruption
from world_modality.verdict.evidence import ComparisonGroup, Evidence
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import (
    ACTION_ERROR,
    SUCCESS,
    Measure,
    Scores,
    mean_of,
    paired_mean_difference,
)
from world_modality.verdict.planned import PlannedResult, planned_results
from world_modality.verdict.rollout_file import EpisodeKey

LEVEL = 0.05
_SAME_AS = ("B", "C_no_world_input")
"""Where nothing is dropped the second is the first, to the last bit."""
Outcomes = Mapping[EpisodeKey, bool | None]


@dataclass(frozen=True)
class PairedEpisodes(PairedOutcomes):
    """What became of the episodes that two checkpoints of one seed share (McNemar's table)."""

    seed: int
    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int

    @classmethod
    def of(cls, seed: int, first: Outcomes, second: Outcomes) -> "PairedEpisodes":
        """Count the episodes that both have; one that ended in an error counts as none of these."""
        both = Counter(
            (first[episode], second[episode]) for episode in first.keys() & second.keys()
        )
        counts = (both[True, True], both[True, False], both[False, True], both[False, False])
        return cls(seed, *counts)


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
        is_identity_check: whether it asks again what C − B asks, through C's code path: no
            hypothesis of its own, so that no correction counts it.
        identical_arms: of an identity check, whether the two references agree to the last bit.
    """

    contrast: Contrast
    measure: Measure
    estimate: CrossedEstimate
    seeds: tuple[int, ...]
    pairs: tuple[PairedEpisodes, ...] = ()
    holm_p: float | None = None
    family_size: int = 1
    is_identity_check: bool = False
    identical_arms: bool = False

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
    def resolution(self) -> Resolution | None:
        """What would resolve it; None where nothing varies."""
        if self.estimate.p_value is None:
            return None
        return resolution(self.estimate, LEVEL / self.family_size)


def compare_arms(
    measure: Measure, evidence: Evidence, group: ComparisonGroup
) -> list[ContrastResult]:
    """Compare the arms of a group by a measure; p values are corrected over all of these."""
    return compare(measure, evidence, group, contrasts_between(set(group.runs)))


def compare(
    measure: Measure, evidence: Evidence, group: ComparisonGroup, contrasts: Sequence[Contrast]
) -> list[ContrastResult]:
    """Compare these arms of a group by a measure; p values are corrected over all of these."""
    results = []
    for contrast in contrasts:
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
            pairs = tuple(
                PairedEpisodes.of(one.seed, _outcomes(evidence, one), _outcomes(evidence, other))
                for one, other in zip(*runs, strict=True)
                if measure is SUCCESS
            )
            result = ContrastResult(contrast, measure, estimate, seeds, pairs)
            results.append(_with_identity(result, group))
    return _corrected(results)


def _with_identity(result: ContrastResult, group: ComparisonGroup) -> ContrastResult:
    """Mark the comparison with B under another name, where B itself is there, too."""
    other = group.runs.get(_SAME_AS[0], {})
    if result.contrast.second.split(" (")[0] != _SAME_AS[1] or not other:
        return result
    own = group.runs[result.contrast.second]
    alike = all(seed in other and own[seed].same_errors_as(other[seed]) for seed in result.seeds)
    return replace(result, is_identity_check=True, identical_arms=alike)


def _corrected(results: list[ContrastResult]) -> list[ContrastResult]:
    tested = {
        one.contrast: p
        for one in results
        if not one.is_identity_check and (p := one.p_value) is not None
    }
    adjusted = dict(zip(tested, holm_adjusted(list(tested.values())), strict=True))
    size = max(len(tested), 1)
    return [replace(one, holm_p=adjusted.get(one.contrast), family_size=size) for one in results]


def _outcomes(evidence: Evidence, run: FinishedRun) -> Outcomes:
    rollouts = evidence.rollouts_of(run)
    return {} if rollouts is None else rollouts.outcomes


@dataclass(frozen=True)
class OfflineEffect:
    """What one corruption does to an arm's action error.

    Attributes:
        arm: whose token is corrupted.
        corruption: which.
        ratio: corrupted over clean, the geometric mean over seeds with an interval made on the
            logarithmic scale (`ratio_estimate` says why); no value where a seed's is not defined.
        per_seed: the ratio of each seed alone; None where an error is 0 or not finite.
        changed_tokens: share of frames whose token the corruption really changed.
    """

    arm: str
    corruption: Corruption
    ratio: Interval
    per_seed: tuple[float | None, ...]
    changed_tokens: float


@dataclass(frozen=True)
class ClosedLoopEffect:
    """What one corruption does to an arm's success.

    Attributes:
        arm: whose token is corrupted.
        corruption: which.
        clean: success rate with its own token, over the shared seeds and episodes; of one seed,
            with Wilson's interval.
        corrupted: success rate without.
        difference: corrupted minus clean, in the same episodes; of one seed, with Newcombe's.
        num_seeds: that were rolled out both ways.
    """

    arm: str
    corruption: Corruption
    clean: Interval
    corrupted: Interval
    difference: Interval
    num_seeds: int


def offline_effects(group: ComparisonGroup) -> list[OfflineEffect]:
    """Return each arm's response to each corruption, over the seeds that have the report."""
    effects = []
    for arm in group.arms:
        runs = [run for run in group.runs_of(arm) if run.corruption is not None]
        names = [list((run.corruption or {})["corruptions"]) for run in runs]
        for name in names[0] if names else []:
            having = [run for run, own in zip(runs, names, strict=True) if name in own]
            effects.append(_offline_effect(arm, name, having))
    return effects


def _offline_effect(arm: str, name: str, runs: Sequence[FinishedRun]) -> OfflineEffect:
    reports = [run.corruption or {} for run in runs]
    stored = [report["corruptions"][name] for report in reports]
    if all("episodes" in report for report in reports):
        clean = np.array([report["episodes"]["clean"] for report in reports], dtype=float)
        corrupted = np.array([report["episodes"][name] for report in reports], dtype=float)
        estimate = ratio_estimate(corrupted, clean, _tasks(runs, clean.shape[1]))
        ratio, per_seed = estimate.interval, estimate.per_seed
    else:
        per_seed = tuple(defined_ratio(one["ratio"]["value"] or 0.0, 1.0) for one in stored)
        ratio = _stored_ratio([Interval(**one["ratio"]) for one in stored], per_seed)
    return OfflineEffect(
        arm=arm,
        corruption=read_corruption(name, f"the corruption report of {arm}:"),
        ratio=ratio,
        per_seed=per_seed,
        changed_tokens=float(np.mean([one["changed_tokens"] for one in stored])),
    )


def _tasks(runs: Sequence[FinishedRun], num_episodes: int) -> list[Hashable] | None:
    """Return the tasks of the held-out episodes, which corruption reports list in their order."""
    episodes = runs[0].evaluation["episodes"]["episode_index"]
    if len(episodes) != num_episodes:
        return None
    task_of = ACTION_ERROR.task_of(runs)
    return [task_of(episode) for episode in episodes]


def _stored_ratio(stored: Sequence[Interval], per_seed: Sequence[float | None]) -> Interval:
    """Return what can be said from reports of an older version, which keep no sums by episode."""
    if len(stored) == 1 and per_seed[0] is not None:
        return stored[0]
    # The seeds share their episodes, so the intervals of each cannot be put together.
    return Interval(geometric_mean(per_seed), None, None, stored[0].num_episodes)


def closed_loop_effects(evidence: Evidence, group: ComparisonGroup) -> list[ClosedLoopEffect]:
    """Return each arm's success under each corruption that its seeds were rolled out with."""
    effects = []
    for arm in group.arms:
        runs = group.runs_of(arm)
        names = {name for run in runs for name in evidence.rollouts.get(run.folder, {})}
        corruptions = [read_corruption(name, "rollouts with") for name in names - {"none"}]
        for corruption in sorted(corruptions, key=lambda one: one.severity):
            effect = _closed_loop_effect(evidence, arm, corruption, runs)
            if effect is not None:
                effects.append(effect)
    return effects


def _closed_loop_effect(
    evidence: Evidence, arm: str, corruption: Corruption, runs: Sequence[FinishedRun]
) -> ClosedLoopEffect | None:
    rows, pairs = [], []
    for run in runs:
        clean, corrupted = evidence.rollouts_of(run), evidence.rollouts_of(run, str(corruption))
        if clean is None or corrupted is None:
            continue
        pairs.append(PairedEpisodes.of(run.seed, corrupted.outcomes, clean.outcomes))
        rows.append(
            {
                episode: (before, after)
                for episode, before in clean.outcomes.items()
                if before is not None and (after := corrupted.outcomes.get(episode)) is not None
            }
        )
    if not any(rows):
        return None
    if len(pairs) == 1:
        wrong_rate, own_rate = pairs[0].rates
        return ClosedLoopEffect(arm, corruption, own_rate, wrong_rate, pairs[0].difference, 1)

    def combined(own: float, wrong: float, possible: tuple[float, float]) -> Interval:
        scores: list[Scores] = [
            {key: (own * before + wrong * after, 1.0) for key, (before, after) in row.items()}
            for row in rows
        ]
        return replace(mean_of(scores, SUCCESS.task_of(runs)), possible=possible).interval

    share, difference = SUCCESS.possible, SUCCESS.possible_difference
    rates = combined(1, 0, share), combined(0, 1, share), combined(-1, 1, difference)
    return ClosedLoopEffect(arm, corruption, *rates, num_seeds=len(rows))


def _planned(evidence: Evidence, design_path: Path | None) -> list[PlannedResult]:
    if design_path is None:
        return []
    return planned_results(read_design(design_path), design_path.parent, evidence)


@dataclass(frozen=True)
class Findings:
    """The main group's comparisons.

    Attributes:
        evidence: what they are made from.
        action_error: paired differences of the action error.
        success: paired differences of the success rate.
        offline: effects of corrupted tokens on the action error.
        closed_loop: effects of corrupted tokens on success.
        planned: the contrasts that the experiment planned; empty where it planned none.
    """

    evidence: Evidence
    action_error: list[ContrastResult]
    success: list[ContrastResult]
    offline: list[OfflineEffect]
    closed_loop: list[ClosedLoopEffect]
    planned: list[PlannedResult]

    @classmethod
    def of(cls, evidence: Evidence, design_path: Path | None = None) -> "Findings":
        """Compare.

        Raises:
            MissingFileError, InvalidInputError: there is no such design, or it is damaged.
        """
        return cls(
            evidence=evidence,
            action_error=compare_arms(ACTION_ERROR, evidence, evidence.main),
            success=compare_arms(SUCCESS, evidence, evidence.main),
            offline=offline_effects(evidence.main),
            closed_loop=closed_loop_effects(evidence, evidence.main),
            planned=_planned(evidence, design_path),
        )

    @property
    def main(self) -> ComparisonGroup:
        """The runs that the verdict is about."""
        return self.evidence.main

    @property
    def families(self) -> list[tuple[Measure, list[ContrastResult]]]:
        """The measures that were compared, each a family of its own for Holm's correction."""
        both = [(ACTION_ERROR, self.action_error), (SUCCESS, self.success)]
        return [(measure, results) for measure, results in both if results]

    def contrasts(self, first: str, second: str) -> list[ContrastResult]:
        """Return the results of one pair of arms, by every measure."""
        return [
            result
            for _, results in self.families
            for result in results
            if (result.contrast.first, result.contrast.second) == (first, second)
        ]
