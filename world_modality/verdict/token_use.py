"""Whether arms use the token that they read: corrupted against clean, offline and rolled out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from world_modality.statistics.crossed_estimate import CrossedEstimate, crossed_estimate
from world_modality.statistics.intervals import Interval, defined_ratio
from world_modality.statistics.ratio_estimate import geometric_mean, ratio_estimate
from world_modality.tokens.corruption import Corruption, read_corruption
from world_modality.verdict.comparison_group import ComparisonGroup
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.wording import counted


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
        num_episodes: held-out episodes.
    """

    arm: str
    corruption: Corruption
    ratio: Interval
    per_seed: tuple[float | None, ...]
    changed_tokens: float
    num_episodes: int

    @property
    def reading(self) -> str:
        """What the interval says."""
        if undefined := self.per_seed.count(None):
            return f"not defined: an error is 0 or not finite in {undefined} of {self._seeds}"
        if set(self.per_seed) == {1.0}:
            return "no effect at all"
        words = {-1: "lowers the error", 0: "not resolved", 1: "raises the error"}
        return words[self.ratio.side(1.0)]

    @property
    def _seeds(self) -> str:
        return counted(len(self.per_seed), "seed")


@dataclass(frozen=True)
class ClosedLoopEffect:
    """What one corruption does to an arm's success.

    Attributes:
        arm: whose token is corrupted.
        corruption: which.
        clean: success rate with its own token, over the shared seeds and episodes.
        corrupted: success rate without.
        difference: corrupted minus clean, in the same episodes.
    """

    arm: str
    corruption: Corruption
    clean: CrossedEstimate
    corrupted: CrossedEstimate
    difference: CrossedEstimate

    @property
    def reading(self) -> str:
        """What the interval says."""
        words = {-1: "lowers success", 0: "not resolved", 1: "raises success"}
        return words[self.difference.interval.side()]


def offline_effects(group: ComparisonGroup) -> list[OfflineEffect]:
    """Return each arm's response to each corruption, over the seeds that have the report."""
    effects = []
    for arm in group.arms:
        runs = [run for run in _of_arm(group, arm) if run.corruption is not None]
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
        estimate = ratio_estimate(corrupted, clean)
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
        num_episodes=ratio.num_episodes,
    )


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
        runs = _of_arm(group, arm)
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
    rows = []
    for run in runs:
        clean = evidence.rollouts_of(run)
        corrupted = evidence.rollouts_of(run, str(corruption))
        if clean is None or corrupted is None:
            continue
        own, wrong = clean.outcomes, corrupted.outcomes
        rows.append({k: (own[k], wrong[k]) for k in own if k in wrong})
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if not keys:
        return None
    counted = np.array([[_is_counted(row.get(key)) for key in keys] for row in rows], float)
    pairs = np.array([[row.get(key) or (0, 0) for key in keys] for row in rows])
    pairs = np.where(counted[..., None] > 0, pairs, 0).astype(float)
    if counted.sum() == 0:
        return None
    return ClosedLoopEffect(
        arm=arm,
        corruption=corruption,
        clean=crossed_estimate(pairs[..., 0], counted),
        corrupted=crossed_estimate(pairs[..., 1], counted),
        difference=crossed_estimate(pairs[..., 1] - pairs[..., 0], counted),
    )


def _is_counted(pair: tuple[bool | None, bool | None] | None) -> bool:
    return pair is not None and None not in pair


def _of_arm(group: ComparisonGroup, arm: str) -> list[FinishedRun]:
    return [run for _, run in sorted(group.runs[arm].items())]
