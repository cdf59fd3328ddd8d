"""Means over seeds and paired differences between arms: of the main group, then of the others."""

from world_modality.arms import READING_ARM
from world_modality.statistics.intervals import Interval
from world_modality.statistics.resolution import NOT_RESOLVED
from world_modality.verdict.document import Block, Figure, Section, Table, Text, table, table_of
from world_modality.verdict.drawing import GREY, colours, error_bar, new_figure, scaled, svg_bytes
from world_modality.verdict.evidence import ComparisonGroup, Evidence
from world_modality.verdict.findings import ContrastResult, Findings, compare_arms
from world_modality.verdict.finished_run import FinishedRun
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
    contrast_reading,
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
        runs = findings.main.runs_of(arm)
        means = [estimate_text(arm_mean(one, evidence, runs), one) for one in _MEASURES]
        rows.append([arm, str(len(runs)), *means])
    actions = evidence.main.first_run.evaluation["actions"]
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
    if findings.planned:
        blocks.append(
            Text(
                "Intervals and p values as of a single look. Where seeds were added until a "
                "contrast was answered, that is too favourable: for these the answers above count."
            )
        )
    for measure, results in findings.families:
        blocks.append(_table(measure, results))
        blocks.append(_figure(measure, results))
        blocks.append(_resolution_table(measure, results))
    return Section("Paired differences", tuple(blocks))


def _table(measure: Measure, results: list[ContrastResult]) -> Table:
    better = "negative" if measure.lower_is_better else "positive"
    unit = "points" if measure.is_share else measure.unit
    return table_of(
        f"differences_{_slug(measure)}",
        f"{measure.title}, first minus second in the same seeds and episodes ({unit}; {better}: "
        f"the first is better), with 95 % intervals. p before and after Holm's correction for the "
        f"{results[0].family_size} comparisons of this table that vary.",
        results,
        {
            "pair": lambda result: result.contrast.name,
            "difference": difference_text,
            "n": sample_text,
            "p": lambda result: p_text(result.p_value),
            "Holm p": lambda result: p_text(result.holm_p),
            "verdict": contrast_reading,
        },
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
        f"these seeds) would find one as large as the estimate, where it is {NOT_RESOLVED}.",
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
        drawn = scaled(result.interval, factor)
        colour = GREY if result.direction == 0 else "#1b6ca8" if result.direction > 0 else "#b5423c"
        error_bar(axis, drawn, row, colour)
        numbers.append((result.contrast.name, *drawn, contrast_reading(result), len(result.seeds)))
    labels = [f"{r.contrast.name}  (n = {sample_text(r)})" for r in results]
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(results)), labels)
    axis.set_ylim(len(results) - 0.4, -0.6)
    unit = "percentage points" if measure.is_share else measure.unit
    better = "left" if measure.lower_is_better else "right"
    axis.set_xlabel(f"difference of {measure.name} ({unit})\n{better} of 0: the first is better")
    caption = (
        f"Paired differences of {measure.name} with 95 % intervals before correction. Blue: the "
        f"first arm is better, red: worse, grey: {NOT_RESOLVED} after Holm's correction."
    )
    header = ("pair", "difference", "low", "high", "verdict", "num_seeds")
    name = f"differences_{_slug(measure)}"
    return Figure(name, caption, svg_bytes(figure), header, tuple(numbers))


def settings_section(findings: Findings) -> Section | None:
    """Return None where all runs share their settings."""
    evidence = findings.evidence
    if not evidence.others:
        return None
    text = (
        "Runs whose cache or flags differ from those of the main comparison. Arms are compared "
        "within a group only; between groups, the held-out tokens, and with them the targets, "
        "may differ."
    )
    blocks: list[Block | None] = [
        Text(text),
        _groups_table(evidence),
        _contrasts(evidence),
        _codebook_figure(evidence),
    ]
    return Section("Other settings", tuple(block for block in blocks if block is not None))


def _label(evidence: Evidence, group: ComparisonGroup) -> str:
    return "main" if group is evidence.main else evidence.main.difference(group)


def _groups_table(evidence: Evidence) -> Table:
    rows = []
    for group in evidence.groups:
        for arm in group.arms:
            runs = group.runs_of(arm)
            means = [
                estimate_text(arm_mean(measure, evidence, runs), measure)
                for measure in (ACTION_ERROR, SUCCESS)
            ]
            rows.append([_label(evidence, group), arm, str(len(runs)), *means])
    return table(
        "settings",
        "Means of each group, as in the main table.",
        ["settings", "arm", "seeds", "action MSE (training std²)", "success rate (%)"],
        rows,
    )


def _contrasts(evidence: Evidence) -> Table | None:
    results = [
        (_label(evidence, group), result)
        for group in evidence.others
        for measure in (ACTION_ERROR, SUCCESS)
        for result in compare_arms(measure, evidence, group)
    ]
    if not results:
        return None
    return table_of(
        "settings_differences",
        "Paired differences within each group; Holm's correction is within a group and measure.",
        results,
        {
            "settings": lambda row: row[0],
            "pair": lambda row: row[1].contrast.name,
            "measure": lambda row: row[1].measure.name,
            "difference": lambda row: difference_text(row[1]),
            "n": lambda row: sample_text(row[1]),
            "Holm p": lambda row: p_text(row[1].holm_p),
            "verdict": lambda row: contrast_reading(row[1]),
        },
    )


def _codebook_figure(evidence: Evidence) -> Figure | None:
    """Draw the reading arm against the codebook's size, where that is all that differs."""
    sized: dict[int, list[FinishedRun]] = {}
    for group in evidence.groups:
        runs = group.runs_of(READING_ARM)
        size = runs[0].data.get("codebook_tokens") if runs else None
        if size is not None and dict(group.settings) == dict(evidence.main.settings):
            sized.setdefault(int(size), runs)
    if len(sized) < 2:
        return None
    for measure in (SUCCESS, ACTION_ERROR):
        found = {size: arm_mean(measure, evidence, runs) for size, runs in sized.items()}
        estimates = {size: one for size, one in found.items() if one is not None}
        if len(estimates) == len(sized):
            break
    figure, (axis,) = new_figure(7, 1.2 + 0.4 * len(sized))
    factor = 100 if measure.is_share else 1
    rows = []
    for position, (size, estimate) in enumerate(sorted(estimates.items())):
        drawn = scaled(estimate.interval, factor)
        error_bar(axis, drawn, position, colours([READING_ARM])[READING_ARM])
        rows.append((size, *drawn, estimate.num_seeds, estimate.num_episodes))
    labels = [f"{size} codes (n = {s} × {e})" for size, _, _, _, s, e in rows]
    axis.set_yticks(range(len(rows)), labels)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlabel(f"{measure.name} ({measure.unit}) of arm {READING_ARM}")
    return Figure(
        "codebook_size",
        f"{measure.title} of arm {READING_ARM} by codebook size, all else equal; 95 % intervals; n "
        "is seeds × episodes.",
        svg_bytes(figure),
        ("codes", "value", "low", "high", "num_seeds", "num_episodes"),
        tuple(rows),
    )
