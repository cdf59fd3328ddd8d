"""All comparisons of a report, made once and read by its sections."""

from dataclasses import dataclass

from world_modality.verdict.contrast_results import ContrastResult, compare_arms
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import ACTION_ERROR, SUCCESS, Measure
from world_modality.verdict.token_use import (
    ClosedLoopEffect,
    OfflineEffect,
    closed_loop_effects,
    offline_effects,
)


@dataclass(frozen=True)
class Findings:
    """The main group's comparisons.

    Attributes:
        evidence: what they are made from.
        action_error: paired differences of the action error.
        success: paired differences of the success rate.
        offline: effects of corrupted tokens on the action error.
        closed_loop: effects of corrupted tokens on success.
    """

    evidence: Evidence
    action_error: list[ContrastResult]
    success: list[ContrastResult]
    offline: list[OfflineEffect]
    closed_loop: list[ClosedLoopEffect]

    @classmethod
    def of(cls, evidence: Evidence) -> "Findings":
        """Compare."""
        return cls(
            evidence=evidence,
            action_error=compare_arms(ACTION_ERROR, evidence, evidence.main),
            success=compare_arms(SUCCESS, evidence, evidence.main),
            offline=offline_effects(evidence.main),
            closed_loop=closed_loop_effects(evidence, evidence.main),
        )

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

    def runs_of(self, arm: str) -> list[FinishedRun]:
        """Return an arm's runs in the main group, by seed."""
        return [run for _, run in sorted(self.evidence.main.runs.get(arm, {}).items())]
