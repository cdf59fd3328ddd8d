"""Dose and response: the token made ever more wrong, offline and in closed loop."""

import math
from typing import TYPE_CHECKING

from world_modality.arms import arm_order
from world_modality.evaluation.plots import set_ratio_scale
from world_modality.tokens.corruption import Corruption, read_corruption
from world_modality.verdict.document import Block, Figure, Section, Table, Text, table, table_of
from world_modality.verdict.drawing import (
    GREY,
    figure_legend,
    line_styles,
    new_figure,
    scaled,
    svg_bytes,
)
from world_modality.verdict.findings import ClosedLoopEffect, Findings, OfflineEffect
from world_modality.verdict.wording import (
    closed_loop_reading,
    counted,
    interval_text,
    offline_reading,
    one_ratio_text,
    ratio_text,
    sizes_text,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = tuple[str, str, Corruption, float | None, float | None, float | None, int, int]


def corruption_section(findings: Findings) -> Section | None:
    """Return None where no token was corrupted."""
    if not findings.offline and not findings.closed_loop:
        return None
    seen = {e.corruption for e in findings.offline} | {e.corruption for e in findings.closed_loop}
    meanings = [one.meaning for one in sorted(seen, key=lambda one: one.severity)]
    blocks: list[Block] = [
        Text(
            f"The token is replaced by {', '.join(dict.fromkeys(meanings))}. An arm that acts on "
            "its token acts otherwise then; an arm that reads none stays exactly where it is."
        )
    ]
    blocks.append(_figure(findings))
    if findings.offline:
        blocks.append(_offline_table(findings.offline))
    if findings.closed_loop:
        blocks.append(_closed_loop_table(findings.closed_loop))
    return Section("Corrupted tokens", tuple(blocks))


def _figure(findings: Findings) -> Figure:
    arms = list(
        dict.fromkeys([e.arm for e in findings.offline] + [e.arm for e in findings.closed_loop])
    )
    panels = [bool(findings.offline), bool(findings.closed_loop)]
    figure, axes = new_figure(5.2 * sum(panels), 4, columns=sum(panels))
    rows: list[Row] = []
    if findings.offline:
        rows += _offline_panel(axes[0], findings.offline, arms)
    if findings.closed_loop:
        rows += _closed_loop_panel(axes[-1], findings.closed_loop, arms)
    figure_legend(figure, ncols=4)
    undefined = _num_undefined(findings.offline)
    return Figure(
        "corruption",
        "Response to a wrong token with 95 % intervals; n in the titles."
        + (" Offline: geometric means over seeds, logarithmic axis." if findings.offline else "")
        + (f" Not drawn, since not defined: {counted(undefined, 'ratio')}." if undefined else ""),
        svg_bytes(figure),
        ("where", "arm", "corruption", "value", "low", "high", "num_seeds", "num_episodes"),
        tuple((*row[:2], row[2].label, *row[3:]) for row in rows),
    )


def _offline_panel(axis: "Axes", effects: list[OfflineEffect], arms: list[str]) -> list[Row]:
    rows: list[Row] = []
    for arm in arms:
        for effect in (one for one in effects if one.arm == arm):
            sizes = len(effect.per_seed), effect.ratio.num_episodes
            rows.append(("offline", arm, effect.corruption, *scaled(effect.ratio, 1), *sizes))
    axis.axhline(1, color="black", linewidth=0.8)
    _draw(axis, rows, arms)
    set_ratio_scale(axis, "y")
    axis.set_ylabel("action MSE, corrupted / clean")
    axis.set_title(f"offline (n = {_sizes(rows)})", fontsize=10)
    return rows


def _closed_loop_panel(axis: "Axes", effects: list[ClosedLoopEffect], arms: list[str]) -> list[Row]:
    rows: list[Row] = []
    for arm in arms:
        own = [e for e in effects if e.arm == arm]
        steps = [(read_corruption("none", "clean"), own[0].clean)] if own else []
        steps += [(e.corruption, e.corrupted) for e in own]
        for step, rate in steps:
            value, *bounds = scaled(rate, 100)
            low, high = (None if one is None else min(max(one, 0.0), 100.0) for one in bounds)
            sizes = own[0].num_seeds, rate.num_episodes
            rows.append(("closed loop", arm, step, value, low, high, *sizes))
    _draw(axis, rows, arms)
    axis.set_ylim(0, 100)
    axis.set_ylabel("success rate (%)")
    axis.set_title(f"closed loop (n = {_sizes(rows)})", fontsize=10)
    return rows


def _draw(axis: "Axes", rows: list[Row], arms: list[str]) -> None:
    steps = sorted({row[2] for row in rows}, key=lambda one: one.severity)
    for index, (arm, style) in enumerate(line_styles(arms, 4).items()):
        own = sorted((row for row in rows if row[1] == arm), key=lambda row: row[2].severity)
        if not own:
            continue
        offset = (index - (len(arms) - 1) / 2) * 0.5 / len(arms)
        x = [steps.index(row[2]) + offset for row in own]
        # NaN breaks the line where a ratio is not defined.
        y = [math.nan if row[3] is None else row[3] for row in own]
        axis.plot(x, y, linewidth=1, label=arm, **style)
        for position, row in zip(x, own, strict=True):
            if row[4] is not None and row[5] is not None:
                axis.vlines(position, row[4], row[5], color=style["color"], linewidth=1.6)
    axis.set_xlim(-0.5, len(steps) - 0.5)
    axis.set_xticks(
        range(len(steps)), [s.label for s in steps], rotation=30, ha="right", fontsize=9
    )
    axis.set_xlabel("token that the policy is given", color=GREY)


def _sizes(rows: list[Row]) -> str:
    seeds, episodes = {row[6] for row in rows}, {row[7] for row in rows}
    return f"{_span(seeds)} seeds × {_span(episodes)} episodes".replace("1 seeds", "1 seed")


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _offline_table(effects: list[OfflineEffect]) -> Table:
    inert = {arm for arm in {e.arm for e in effects} if _is_inert(arm, effects)}
    undefined = _num_undefined(effects)
    rows = [
        [
            effect.arm,
            str(effect.corruption),
            ratio_text(effect.ratio),
            ", ".join(one_ratio_text(ratio) for ratio in effect.per_seed),
            f"{100 * effect.changed_tokens:.1f}",
            offline_reading(effect),
        ]
        for effect in effects
        if effect.arm not in inert
    ]
    rows += [
        [arm, "each of them", "1 exactly", "–", "–", "no effect at all"]
        for arm in sorted(inert, key=arm_order)
    ]
    return table(
        "corruption_offline",
        "Action MSE with a wrong token over that with its own: 1 is no effect. Geometric mean over "
        "seeds, with an interval made on the logarithmic scale: twice and half are equally far "
        "from 1 there, and no bound reaches 0. Not corrected for the number of rows."
        + (f" Not defined: {undefined} of {counted(len(effects), 'ratio')}." if undefined else ""),
        ["arm", "corruption", "ratio", "seed by seed", "tokens changed (%)", "reading"],
        rows,
    )


def _is_inert(arm: str, effects: list[OfflineEffect]) -> bool:
    return all(set(effect.per_seed) == {1.0} for effect in effects if effect.arm == arm)


def _num_undefined(effects: list[OfflineEffect]) -> int:
    return sum(effect.ratio.value is None for effect in effects)


def _closed_loop_table(effects: list[ClosedLoopEffect]) -> Table:
    return table_of(
        "corruption_closed_loop",
        "Success with its own token and with a wrong one, in the same episodes (percent; the "
        "difference in points). Not corrected for the number of rows.",
        effects,
        {
            "arm": lambda effect: effect.arm,
            "corruption": lambda effect: str(effect.corruption),
            "own token": lambda effect: interval_text(effect.clean, percent=True),
            "wrong token": lambda effect: interval_text(effect.corrupted, percent=True),
            "difference": lambda effect: interval_text(
                effect.difference, percent=True, signed=True
            ),
            "n": lambda effect: sizes_text(effect.num_seeds, effect.difference.num_episodes),
            "reading": closed_loop_reading,
        },
    )
