"""Did the instrument work? Arms that ought to be better, and arms that ought not to be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from world_modality.arms import ARMS, CONTRASTS, HISTORY_KNOB, READING_ARM, Contrast
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

    @property
    def is_at_its_end(self) -> bool:
        """Whether no further seeds are to come."""
        return not isinstance(self.result, PlannedResult) or self.result.is_at_its_end


def assay_fired(checks: Sequence[AssayCheck]) -> bool | None:
    """Say whether a positive control is better and no placebo is; None where no control was run."""
    controls = [check for check in checks if check.role == "positive control"]
    placebos = [check for check in checks if check.role == "placebo"]
    if not controls:
        return None
    return any(one.first_is_better for one in controls) and not any(
        one.first_is_better for one in placebos
    )


def assay_checks(evidence: Evidence, planned: Sequence[PlannedResult]) -> list[AssayCheck]:
    """Return the planned checks; where none was planned, those that the main group's arms allow."""
    found = [
        AssayCheck(one.contrast.role, one) for one in planned if one.contrast.role != "question"
    ]
    if found:
        return found
    pairs = {
        Contrast(arm, reference, "does the assay fire?"): role
        for arm in evidence.main.arms
        for role, reference in _references(arm, evidence)
        if reference in evidence.main.runs
    }
    return [
        AssayCheck(pairs[result.contrast], result)
        for measure in (SUCCESS, ACTION_ERROR)
        for result in compare(measure, evidence, evidence.main, list(pairs))
    ]


def _references(arm: str, evidence: Evidence) -> Iterator[tuple[Role, str]]:
    """Yield what an arm is a check of, and the arm that it has to be compared with.

    A positive control is held against the arm that its contrast names. A placebo that reads a token
    is held against B, which reads none, one that predicts tokens against A, which predicts none.
    Where the recording shows a cue first and hides it then, the arm that remembers its tokens is a
    positive control itself: A sees nothing of the cue when it matters.
    """
    base, _, knobs = arm.partition(" (")
    if base not in ARMS:
        return
    role, row = usual_role(base), ARMS[base]
    if role == "positive control":
        reference = next(one.second for one in CONTRASTS if one.first == base)
        reads = ARMS[reference].reads_world and knobs
        yield role, f"{reference} ({knobs}" if reads else reference
    elif role == "placebo":
        yield role, "B" if row.reads_world else "A"
    elif base == READING_ARM and HISTORY_KNOB in knobs and _shows_a_cue(evidence):
        yield "positive control", "A"


def _shows_a_cue(evidence: Evidence) -> bool:
    return bool((evidence.main.first_run.data.get("rendering") or {}).get("cue"))
