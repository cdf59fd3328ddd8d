"""Did the instrument work? Arms that ought to be better, and arms that ought not to be."""

from collections.abc import Sequence
from dataclasses import dataclass

from world_modality.arms import ARMS, Contrast
from world_modality.statistics.design import Role, usual_role
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.findings import ContrastResult, compare
from world_modality.verdict.measures import ACTION_ERROR, SUCCESS
from world_modality.verdict.planned import PlannedResult


@dataclass(frozen=True)
class AssayCheck:
    """A positive control or a placebo beside its reference.

    Attributes:
        role: which of the two.
        result: the comparison: as planned, or as these data have it.
    """

    role: Role
    result: PlannedResult | ContrastResult

    @property
    def first_is_better(self) -> bool:
        """Whether the arm was found to be better than its reference."""
        if isinstance(self.result, PlannedResult):
            return self.result.course.claim == "better"
        return self.result.direction > 0


def assay_checks(evidence: Evidence, planned: Sequence[PlannedResult]) -> list[AssayCheck]:
    """Return the planned checks; where none was planned, those that the main group's arms allow."""
    found = [
        AssayCheck(one.contrast.role, one) for one in planned if one.contrast.role != "question"
    ]
    if found:
        return found
    contrasts = [
        Contrast(arm, reference, "does the assay fire?")
        for arm in evidence.main.arms
        if (reference := _reference(arm)) in evidence.main.runs and reference is not None
    ]
    results = [
        result
        for measure in (SUCCESS, ACTION_ERROR)
        for result in compare(measure, evidence, evidence.main, contrasts)
    ]
    return [AssayCheck(usual_role(one.contrast.first), one) for one in results]


def _reference(arm: str) -> str | None:
    """Return the arm that a control has to be compared with; None for an arm that is no control.

    A positive control reads a better token than its arm does. A placebo that reads a token is held
    against B, which reads none, one that predicts tokens against A, which predicts none.
    """
    if arm not in ARMS:
        return None
    role, row = usual_role(arm), ARMS[arm]
    if role == "positive control":
        return row.model_type
    if role == "placebo":
        return "B" if row.reads_world else "A"
    return None
