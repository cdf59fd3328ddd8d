"""The main table over seeds and the paired differences between arms."""

from world_modality.statistics.intervals import Interval
from world_modality.verdict.contrast_results import ContrastResult
from world_modality.verdict.document import Block, Figure, Section, Table, table
from world_modality.verdict.drawing import GREY, error_bar, new_figure, svg_bytes
from world_modality.verdict.findings import Findings
from world_modality.verdict.measures import (
    ACTION_ERROR,
    SUCCESS,
    TOKEN_TOP1,
    TOKEN_TOP1_CHANGED,
    Measure,
    arm_mean,
)
from world_modality.verdict.wording import (
    NONE,
    difference_text,
    estimate_text,
    interval_text,
    p_text,
    resolution_cells,
    sample_text,
)

_MEASURES = (ACTION_ERROR, SUCCESS, TOKEN_TOP1, TOKEN_TOP1_CHANGED)


def main_section(findings: Findings) -> Section:
    """One line an arm, and the predictors that look at nothing."""
    evidence = findings.evidence
    header = ["arm", "seeds", *(f"{one.name} ({one.unit})" for one in _MEASURES)]
    rows = []
    for arm in evidence.main.arms:
        runs = findings.runs_of(arm)
        means = [estimate_text(arm_mean(one, evidence, runs), one) for one in _MEASURES]
        rows.append([arm, str(len(runs)), *means])
    actions = evidence.main.all_runs()[0][2].evaluation["actions"]
    for name, label in (
        ("task_mean", "training mean of the task"),
        ("last_action", "last action held"),
    ):
        mean = interval_text(Interval(**actions[name]["mse"]))
        rows.append([label, NONE, mean, *[NONE] * (len(_MEASURES) - 1)])
    caption = (
        "Means over seeds and episodes, with 95 % intervals for another seed and another episode "
        "(one seed: another episode only). Action MSE is in units of the training standard "
        "deviation squared: 1 is about a constant prediction."
    )
    return Section("Main table", (table("main", caption, header, rows),))


def contrast_section(findings: Findings) -> Section:
    """The paired differences, with Holm's correction, and what would resolve the rest."""
    blocks: list[Block] = []
    for measure, results in findings.families:
        blocks.append(_table(measure, results))
        blocks.append(_figure(measure, results))
        blocks.append(_resolution_table(measure, results))
    return Section("Paired differences", tuple(blocks))


def _table(measure: Measure, results: list[ContrastResult]) -> Table:
    rows = [
        [
            result.contrast.name,
            difference_text(result),
            sample_text(result),
            p_text(result.p_value),
            p_text(result.holm_p),
            result.verdict,
        ]
        for result in results
    ]
    better = "negative" if measure.lower_is_better else "positive"
    unit = "points" if measure.is_share else measure.unit
    return table(
        f"differences_{_slug(measure)}",
        f"{measure.title}, first minus second in the same seeds and episodes ({unit}; {better}: "
        f"the first is better), with 95 % intervals. p before and after Holm's correction for the "
        f"{results[0].family_size} comparisons of this table that vary.",
        ["pair", "difference", "n", "p", "Holm p", "verdict"],
        rows,
    )


def _resolution_table(measure: Measure, results: list[ContrastResult]) -> Table:
    rows = [
        [result.contrast.name, result.contrast.question, *resolution_cells(result)]
        for result in results
    ]
    return table(
        f"resolution_{_slug(measure)}",
        f"{measure.title}: what each pair asks, the smallest difference that these data would find "
        "in 80 of 100 repetitions, and how many seeds (with these episodes) or episodes (with "
        "these seeds) would find one as large as the estimate, where it is not resolved.",
        ["pair", "question", "detectable now", "seeds needed", "episodes needed"],
        rows,
    )


def _slug(measure: Measure) -> str:
    return "success" if measure is SUCCESS else "action_mse"


def _figure(measure: Measure, results: list[ContrastResult]) -> Figure:
    figure, (axis,) = new_figure(8.5, 1.3 + 0.36 * len(results))
    factor = 100 if measure.is_share else 1
    numbers = []
    for row, result in enumerate(results):
        interval = result.interval
        value = factor * (interval.value or 0.0)
        low, high = (
            None if bound is None else factor * bound for bound in (interval.low, interval.high)
        )
        colour = GREY if result.direction == 0 else "#1b6ca8" if result.direction > 0 else "#b5423c"
        error_bar(axis, value, row, low, high, colour)
        numbers.append((result.contrast.name, value, low, high, result.verdict, len(result.seeds)))
    labels = [f"{r.contrast.name}  (n = {sample_text(r)})" for r in results]
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(results)), labels)
    axis.set_ylim(len(results) - 0.4, -0.6)
    unit = "percentage points" if measure.is_share else measure.unit
    better = "left" if measure.lower_is_better else "right"
    axis.set_xlabel(f"difference of {measure.name} ({unit})\n{better} of 0: the first is better")
    caption = (
        f"Paired differences of {measure.name} with 95 % intervals before correction. Blue: the "
        "first arm is better, red: worse, grey: not resolved after Holm's correction."
    )
    header = ("pair", "difference", "low", "high", "verdict", "num_seeds")
    name = f"differences_{_slug(measure)}"
    return Figure(name, caption, svg_bytes(figure), header, tuple(numbers))
