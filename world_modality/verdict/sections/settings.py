"""Groups with other settings: each compared within itself, and side by side."""

from world_modality.arms import READING_ARM
from world_modality.verdict.comparison_group import ComparisonGroup
from world_modality.verdict.contrast_results import compare_arms
from world_modality.verdict.document import Block, Figure, Section, Table, Text, table
from world_modality.verdict.drawing import colours, error_bar, new_figure, svg_bytes
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import ACTION_ERROR, SUCCESS, Measure, arm_mean
from world_modality.verdict.wording import difference_text, estimate_text, p_text, sample_text


def settings_section(findings: Findings) -> Section | None:
    """Return None where all runs share their settings."""
    evidence = findings.evidence
    if not evidence.others:
        return None
    blocks: list[Block] = [
        Text(
            "Runs whose cache or flags differ from those of the main comparison. Arms are compared "
            "within a group only; between groups, the held-out tokens, and with them the targets, "
            "may differ."
        ),
        _groups_table(evidence),
        *_contrasts(evidence),
    ]
    figure = _codebook_figure(evidence)
    if figure is not None:
        blocks.append(figure)
    return Section("Other settings", tuple(blocks))


def _label(evidence: Evidence, group: ComparisonGroup) -> str:
    return "main" if group is evidence.main else evidence.main.difference(group)


def _groups_table(evidence: Evidence) -> Table:
    rows = []
    for group in evidence.groups:
        for arm in group.arms:
            runs = [run for _, run in sorted(group.runs[arm].items())]
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


def _contrasts(evidence: Evidence) -> list[Block]:
    rows = []
    for group in evidence.others:
        for measure in (ACTION_ERROR, SUCCESS):
            rows += [
                [
                    _label(evidence, group),
                    result.contrast.name,
                    measure.name,
                    difference_text(result),
                    sample_text(result),
                    p_text(result.holm_p),
                    result.verdict,
                ]
                for result in compare_arms(measure, evidence, group)
            ]
    if not rows:
        return []
    return [
        table(
            "settings_differences",
            "Paired differences within each group; Holm's correction is within a group and "
            "measure.",
            ["settings", "pair", "measure", "difference", "n", "Holm p", "verdict"],
            rows,
        )
    ]


def _codebook_figure(evidence: Evidence) -> Figure | None:
    """Draw the reading arm against the codebook's size, where that is all that differs."""
    sized: dict[int, list[FinishedRun]] = {}
    for group in evidence.groups:
        runs = [run for _, run in sorted(group.runs.get(READING_ARM, {}).items())]
        size = runs[0].data.get("codebook_tokens") if runs else None
        if size is not None and dict(group.settings) == dict(evidence.main.settings):
            sized.setdefault(int(size), runs)
    if len(sized) < 2:
        return None
    measure: Measure = SUCCESS
    estimates = {size: arm_mean(measure, evidence, runs) for size, runs in sized.items()}
    if any(estimate is None for estimate in estimates.values()):
        measure = ACTION_ERROR
        estimates = {size: arm_mean(measure, evidence, runs) for size, runs in sized.items()}
    figure, (axis,) = new_figure(7, 1.2 + 0.4 * len(sized))
    factor = 100 if measure.is_share else 1
    rows = []
    for position, (size, estimate) in enumerate(sorted(estimates.items())):
        if estimate is None:
            continue
        interval = estimate.interval
        low, high = (None if b is None else factor * b for b in (interval.low, interval.high))
        value = factor * estimate.value
        error_bar(axis, value, position, low, high, colours([READING_ARM])[READING_ARM])
        rows.append((size, value, low, high, estimate.num_seeds, estimate.num_episodes))
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
