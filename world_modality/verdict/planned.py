"""The contrasts that an experiment planned: their estimates look by look, and what is known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from world_modality.statistics.crossed_estimate import CrossedEstimate
from world_modality.statistics.design import Design, PlannedContrast
from world_modality.statistics.sequential import Course, Needed, SeedPlan, follow, needed_to_resolve
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import (
    ACTION_ERROR,
    SUCCESS,
    Measure,
    paired_log_ratio,
    paired_mean_difference,
)

MEASURES: dict[str, Measure] = {"success": SUCCESS, "action_error": ACTION_ERROR}
SeedRuns = list[tuple[FinishedRun, FinishedRun]]
"""The runs of the first and of the second arm, by seed from 0 on without a gap."""


@dataclass(frozen=True)
class PlannedResult:
    """What became of a planned contrast.

    Attributes:
        contrast: the arms, the measure, the margin.
        course: the looks at it.
        plan: how many seeds there may be.
        num_contrasts: that share the error.
        runs: of both arms, by seed, as many as there are.
        twin: the pair whose arms are the same policies to the last bit, so that both are one
            question; None where there is none.
        variants: arm and flags of each of the two that is a variant, by its label.
    """

    contrast: PlannedContrast
    course: Course
    plan: SeedPlan
    num_contrasts: int
    runs: SeedRuns
    twin: str | None
    variants: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_at_its_end(self) -> bool:
        """Whether no further look is to come."""
        is_closed = self.course.claim != "open"
        return is_closed or self.course.num_seeds == self.plan.max_seeds

    @property
    def needed(self) -> Needed:
        """What would probably close it, if the last estimate is right."""
        estimate = self.course.looks[-1].estimate
        return needed_to_resolve(self.plan, self.contrast.scale, estimate, self.num_contrasts)


def planned_results(
    design: Design, folder: Path, evidence: Evidence, num_looks: int | None = None
) -> list[PlannedResult]:
    """Take the looks of a design again, from the first one on.

    Args:
        design: what was planned.
        folder: that holds the design, and below it the cells.
        evidence: the runs and their rollouts.
        num_looks: takes no more than these, whatever else there is; None for all.
    """
    looks = design.plan.looks[:num_looks]
    found = {one.name: _seed_runs(one, folder, evidence) for one in design.contrasts}
    twins = _twins(design.contrasts, found, looks)
    asked = [one for one in design.contrasts if one.name not in twins]
    courses = follow(
        design.plan,
        {one.name: one.scale for one in asked},
        {one.name: _estimates(one, evidence, found[one.name], looks) for one in asked},
    )
    return [
        PlannedResult(
            contrast=one,
            course=courses[twins.get(one.name, one).name],
            plan=design.plan,
            num_contrasts=len(asked),
            runs=found[one.name],
            twin=twins[one.name].pair if one.name in twins else None,
            variants={
                label: design.variants[label]
                for label in (one.first, one.second)
                if label in design.variants
            },
        )
        for one in design.contrasts
    ]


def _seed_runs(contrast: PlannedContrast, folder: Path, evidence: Evidence) -> SeedRuns:
    by_folder = {run.folder.resolve(): run for run in evidence.sources.runs}
    measure = MEASURES[contrast.measure]
    found: SeedRuns = []
    while True:
        pair = tuple(
            by_folder.get((folder / cell.format(seed=len(found)) / "train").resolve())
            for cell in (contrast.first_cell, contrast.second_cell)
        )
        first, second = pair
        if first is None or second is None:
            return found
        if not (measure.scores(evidence, first) and measure.scores(evidence, second)):
            return found
        found.append((first, second))


def _estimates(
    contrast: PlannedContrast, evidence: Evidence, found: SeedRuns, looks: Sequence[int]
) -> list[CrossedEstimate]:
    """Return the estimate of each look that all seeds are there for."""
    estimate = paired_mean_difference if contrast.measure == "success" else paired_log_ratio
    estimates = []
    for count in looks:
        if count > len(found):
            break
        runs = [one for one, _ in found[:count]], [other for _, other in found[:count]]
        one = estimate(MEASURES[contrast.measure], evidence, *runs)
        if one is None:
            break
        estimates.append(one)
    return estimates


def _twins(
    contrasts: Sequence[PlannedContrast], found: dict[str, SeedRuns], looks: Sequence[int]
) -> dict[str, PlannedContrast]:
    """Return the contrasts that ask again what one before them asks, by their names.

    Two arms that make the same error to the last bit in every held-out episode of every seed of the
    first look are one policy, as B and C_no_world_input are where nothing is dropped.
    """
    twins: dict[str, PlannedContrast] = {}
    for index, contrast in enumerate(contrasts):
        for before in contrasts[:index]:
            is_alike = (before.measure, before.margin) == (contrast.measure, contrast.margin)
            pairs = found[before.name][: looks[0]], found[contrast.name][: looks[0]]
            if not is_alike or before.name in twins or len(pairs[0]) < looks[0]:
                continue
            if len(pairs[1]) == looks[0] and all(
                one.same_errors_as(other)
                for mine, theirs in zip(*pairs, strict=True)
                for one, other in zip(mine, theirs, strict=True)
            ):
                twins[contrast.name] = before
                break
    return twins
