"""The analysis of several world tokens a frame: one row a slot, as text, as JSON and as one figure.

The whole analysis of a slot is that of `analysis_report`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.statistics.intervals import Interval
from world_modality.system.atomic import replacing
from world_modality.tokens.analysis import Analysis, advice
from world_modality.tokens.analysis_report import TARGET_LABELS, heading, report_json
from world_modality.tokens.linear_probe import ProbeResult

_MAX_NAMED = 8


def slots_advice(analyses: Sequence[Analysis]) -> list[tuple[str, str]]:
    """Return (rule name, sentence) for all rules that apply to any slot, and to which they do.

    The numbers of a sentence are those of the first of them.
    """
    given: dict[str, list[tuple[int, str]]] = {}
    for analysis in analyses:
        for rule, sentence in advice(analysis):
            given.setdefault(rule, []).append((analysis.slot or 0, sentence))
    fine = given.pop("fine", [])
    if not given:
        return [("fine", fine[0][1])]
    return [
        (rule, f"{_named([slot for slot, _ in found], len(analyses))}: {found[0][1]}")
        for rule, found in given.items()
    ]


def _named(slots: list[int], num_slots: int) -> str:
    """Say which slots a sentence is about, and whose figures it has."""
    if len(slots) == 1:
        return f"slot {slots[0]}"
    more = len(slots) - _MAX_NAMED
    names = ", ".join(map(str, slots[:_MAX_NAMED])) + (f" and {more} more" if more > 0 else "")
    named = "all slots" if len(slots) == num_slots else f"slots {names}"
    return f"{named} (the figures are those of slot {slots[0]})"


def _value(interval: Interval) -> float:
    return math.nan if interval.value is None else interval.value


def _probe(analysis: Analysis) -> ProbeResult | None:
    return analysis.probes.get("environment_states") or analysis.probes.get("states")


def _probed(name: str) -> Callable[[Analysis], float]:
    def value(analysis: Analysis) -> float:
        probe = _probe(analysis)
        return math.nan if probe is None else _value(getattr(probe, name).mean)

    return value


def _told(name: str) -> Callable[[Analysis], float]:
    def value(analysis: Analysis) -> float:
        share = getattr(analysis, name).excess_share
        return math.nan if share is None else float(share)

    return value


# By title: format, and the figure of one slot.
_COLUMNS: dict[str, tuple[str, Callable[[Analysis], float]]] = {
    "used": ("d", lambda a: a.train_usage.num_used),
    "perplexity": (".1f", lambda a: a.train_usage.perplexity),
    "dwell": (".1f", lambda a: _value(a.train_dwell.frames)),
    "copy": (".3f", lambda a: _value(a.horizons[0].all_pairs["copy"])),
    "bigram": (".3f", lambda a: _value(a.horizons[0].all_pairs["bigram_top1"])),
    "marginal": (".3f", lambda a: _value(a.horizons[0].all_pairs["marginal"])),
    "task told": (".2f", _told("task")),
    "phase told": (".2f", _told("phase")),
    "R² emb.": (".2f", _probed("embedding")),
    "R² token": (".2f", _probed("token")),
    "in task: emb.": (".2f", _probed("embedding_within_task")),
    "in task: token": (".2f", _probed("token_within_task")),
}


def slots_text(analyses: Sequence[Analysis], sentences: list[tuple[str, str]]) -> str:
    """Return the printed report: a table with one row a slot, then the advice."""
    first = analyses[0]
    probed = "environment_states" if first.probes.get("environment_states") else "states"
    lines = [
        f"{_title(analyses)}; {first.num_train_episodes} training episodes, "
        f"{first.num_val_episodes} validation episodes"
    ]
    if first.encoder_note:
        lines += ["", f"NOTE: {first.encoder_note}"]
    widths = {title: max(9, len(title) + 2) for title in _COLUMNS}
    lines += [
        "",
        "By slot: codes used, perplexity and frames between changes in training; accuracy of "
        "w[t+1] without a",
        "model on validation episodes; what the token tells of task and phase; linear probe of "
        f"the {TARGET_LABELS[probed]},",
        "over all tasks and within a task, from the slot's own vector and from its token",
        f"  {'slot':>4}" + "".join(f"{title:>{width}}" for title, width in widths.items()),
    ]
    for analysis in analyses:
        cells = ""
        for title, (spec, figure) in _COLUMNS.items():
            value = figure(analysis)
            cells += f"{'n/a' if math.isnan(value) else format(value, spec):>{widths[title]}}"
        lines.append(f"  {analysis.slot:>4}{cells}")
    lines += ["", "Advice", *(f"  - {sentence}" for _, sentence in sentences)]
    lines += ["", "All tables of one slot: the same command with --slot"]
    return "\n".join(lines)


def _title(analyses: Sequence[Analysis]) -> str:
    title = heading(analyses[0]).replace(f" (slot {analyses[0].slot})", "")
    return f"{title}, {len(analyses)} world tokens a frame"


def slots_json(analyses: Sequence[Analysis], sentences: list[tuple[str, str]]) -> dict[str, Any]:
    """Return all analyses as JSON holds them: what they share, and a list by slot."""
    by_slot = [report_json(one, advice(one)) for one in analyses]
    shared = ("dataset_name", "fps", "encoder_name", "encoder_note", "num_tokens")
    return {
        **{name: by_slot[0][name] for name in shared},
        "num_slots": len(analyses),
        "slots": by_slot,
        "advice": [{"rule": rule, "text": sentence} for rule, sentence in sentences],
    }


def save_slots_plot(analyses: Sequence[Analysis], path: Path) -> None:
    """Draw the figure and write it atomically as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "Codes that training frames use": ("used", "perplexity"),
        "Predicting w[t+1] without a model": ("copy", "bigram", "marginal"),
        "What the token tells, as a share of what there is": ("task told", "phase told"),
        "Linear probe, R² (below −1 drawn as −1)": (
            *("R² emb.", "R² token"),
            *("in task: emb.", "in task: token"),
        ),
    }
    places = np.arange(len(analyses))
    figure, axes = plt.subplots(2, 2, figsize=(15, 9), layout="constrained")
    note = analyses[0].encoder_note
    figure.suptitle(_title(analyses) + (f"\n{note}" if note else ""), fontsize=13)
    for axis, (title, columns) in zip(axes.flat, panels.items(), strict=True):
        width = 0.8 / len(columns)
        for number, column in enumerate(columns):
            values = np.array([_COLUMNS[column][1](one) for one in analyses], float)
            shift = width * (number - (len(columns) - 1) / 2)
            axis.bar(places + shift, np.maximum(values, -1), width, label=column)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xticks(places, [str(one.slot) for one in analyses])
        axis.set_xlabel("slot")
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.11))
    try:
        with replacing(path) as partial:
            figure.savefig(partial, format="png", dpi=110)
    finally:
        plt.close(figure)
