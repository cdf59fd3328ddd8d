"""The planned contrasts: what is known, how large they are, and what each look saw."""

from world_modality.statistics.design import UNITS
from world_modality.verdict.document import Block, Figure, Section, Table, Text, table_of
from world_modality.verdict.drawing import GREY, error_bar, new_figure, scaled, svg_bytes
from world_modality.verdict.findings import Findings
from world_modality.verdict.planned import PlannedResult
from world_modality.verdict.wording import (
    claim_text,
    counted,
    margin_text,
    needed_text,
    planned_difference_text,
    planned_interval,
)

_COLOURS = {"better": "#1b6ca8", "worse": "#b5423c", "equivalent": "#2a9d8f", "open": GREY}
Row = tuple[str, str, int, float | None, float | None, float | None, str]


def answers_table(planned: list[PlannedResult]) -> Table:
    """Return a row a contrast, the answer first."""
    variants = dict(sorted({k: v for one in planned for k, v in one.variants.items()}.items()))
    meaning = "".join(f" {label}: {text}." for label, text in variants.items())
    return table_of(
        "answers",
        "First arm minus second in the same seeds and layouts: points of success, or percent of "
        "action error, with the interval of the last look, which holds with those of all other "
        "looks together in 95 of 100 experiments; n is seeds × episodes." + meaning,
        planned,
        {
            "pair": _pair,
            "by": lambda one: one.contrast.measure.replace("_", " "),
            "answer": _answer,
            "difference": planned_difference_text,
            "margin": lambda one: margin_text(one.contrast),
            "n": _sizes,
        },
    )


def _sizes(one: PlannedResult) -> str:
    if not one.course.looks:
        return "–"
    estimate = one.course.looks[-1].estimate
    return f"{estimate.num_seeds} × {estimate.num_episodes}"


def _pair(one: PlannedResult) -> str:
    role = one.contrast.role
    return one.contrast.pair + ("" if role == "question" else f" ({role})")


def _answer(one: PlannedResult) -> str:
    if one.twin is None:
        return claim_text(one)
    return f"{claim_text(one)}, as {one.twin}, whose arms these are to the last bit"


def planned_section(findings: Findings) -> Section | None:
    """Return None where nothing was planned."""
    planned = [one for one in findings.planned if one.course.looks]
    if not planned:
        return None
    plan = planned[0].plan
    still_open = [one for one in planned if one.course.claim == "open" and one.twin is None]
    text = (
        f"Rounds of {plan.seeds_per_round} seeds, {plan.max_seeds} at most. After each round every "
        "open contrast is looked at, and closed as better, worse, or the same within its margin. "
        f"At most {100 * plan.error_share:g} of 100 experiments claim a difference that is not "
        f"there, and as many that arms are the same which are not, over all looks and "
        f"{counted(planned[0].num_contrasts, 'contrast')}."
    )
    blocks: list[Block] = [Text(text), _figure(planned), _looks_table(planned)]
    blocks += [Text(needed_text(one)) for one in still_open]
    return Section("The planned contrasts, look by look", tuple(blocks))


def _looks_table(planned: list[PlannedResult]) -> Table:
    rows = [(one, look) for one in planned for look in one.course.looks]
    return table_of(
        "looks",
        "What each look saw. The interval is as wide as the price of looking makes it: early ones "
        "are wider than 95 % of a single look would be.",
        rows,
        {
            "pair": lambda row: row[0].contrast.pair,
            "by": lambda row: row[0].contrast.measure.replace("_", " "),
            "seeds": lambda row: str(row[1].estimate.num_seeds),
            "difference": lambda row: planned_difference_text(row[0], row[1]),
            "claim": lambda row: row[1].claim,
        },
    )


def _figure(planned: list[PlannedResult]) -> Figure:
    """Draw the last look of each contrast; the band is its margin."""
    measures = list(dict.fromkeys(one.contrast.measure for one in planned))
    most = max(sum(one.contrast.measure == name for one in planned) for name in measures)
    figure, axes = new_figure(5.6 * len(measures), 1.4 + 0.42 * most, columns=len(measures))
    rows: list[Row] = []
    for axis, measure in zip(axes, measures, strict=True):
        own = [one for one in planned if one.contrast.measure == measure]
        for position, one in enumerate(own):
            found = planned_interval(one)
            numbers = scaled(found, 100)
            margin = one.contrast.margin
            axis.barh(position, 2 * margin, left=-margin, height=0.8, color="#eef1f3", zorder=0)
            error_bar(axis, numbers, position, _COLOURS[one.course.claim])
            rows.append(
                (one.contrast.pair, measure, one.course.num_seeds, *numbers, one.course.claim)
            )
        axis.axvline(0, color="black", linewidth=0.8)
        labels = [f"{one.contrast.pair} (n = {_sizes(one)})" for one in own]
        axis.set_yticks(range(len(own)), labels, fontsize=9)
        axis.set_ylim(len(own) - 0.4, -0.6)
        axis.set_xlabel(f"first minus second\n({UNITS[measure]})")
    return Figure(
        "answers",
        "The last look at each planned contrast, with its interval; grey band: the margin. Blue: "
        "the first arm is better, red: worse, green: the same within the margin, grey: open.",
        svg_bytes(figure),
        ("pair", "measure", "num_seeds", "difference", "low", "high", "claim"),
        tuple(rows),
    )
