"""What was learned: curves over epochs, and world tokens ahead beside copying and counting."""

from typing import TYPE_CHECKING, Any

import numpy as np

from world_modality.statistics.intervals import Interval
from world_modality.verdict.document import Figure, Section, Table, Text, table
from world_modality.verdict.drawing import (
    GREY,
    figure_legend,
    line_styles,
    new_figure,
    scaled,
    svg_bytes,
)
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import arm_mean, token_top1
from world_modality.verdict.wording import NONE, counted, interval_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = tuple[str, str, int, float | None, float | None, float | None, int]
_PANELS = {
    "all": ("all frames", {"bigram_top1": "bigram", "copy_top1": "copy of w_t"}),
    "changed": (
        "frames where the token changes",
        {"bigram_top1": "bigram", "change_bigram_top1": "bigram told of the change"},
    ),
}
_CURVES = (
    ("val_action_mse", "action MSE, held-out (training std²)", 1.0),
    ("val_world_top1", "world-token top-1, held-out (%)", 100.0),
)
_BASELINE_STYLES = {"bigram": "--", "copy of w_t": ":", "bigram told of the change": "-."}


def token_section(findings: Findings) -> Section | None:
    """Return None where no arm predicts tokens."""
    predicting = {
        arm: runs
        for arm in findings.main.arms
        if (runs := [r for r in findings.main.runs_of(arm) if r.evaluation["world"] is not None])
    }
    if not predicting:
        return None
    return Section(
        "World tokens ahead",
        (
            Text(
                "Top-1 accuracy of each arm's world head on held-out episodes. Copying is wrong by "
                "construction where the token changes; the bigram is counted on training episodes, "
                "and the one that is told of the change knows what no arm is told."
            ),
            _figure(findings.evidence, predicting),
            _horizon_table(findings.evidence, predicting),
            _table(predicting),
        ),
    )


def _figure(evidence: Evidence, predicting: dict[str, list[FinishedRun]]) -> Figure:
    figure, axes = new_figure(10, 4, columns=2)
    rows: list[Row] = []
    for axis, (subset, (title, baselines)) in zip(axes, _PANELS.items(), strict=True):
        arms = _arm_rows(evidence, predicting, subset)
        first = next(iter(predicting.values()))[0].evaluation["world"][subset]
        told = _baseline_rows(first, subset, baselines)
        _draw_panel(axis, arms, told)
        rows += arms + told
        axis.set_title(f"{title} (n = {first[0]['num_frames']} at k = 1)", fontsize=10)
        axis.set_xlabel("frames ahead")
        axis.set_ylabel("world-token top-1 accuracy (%)")
        axis.set_ylim(0, 100)
    figure_legend(figure, ncols=4, fontsize=9)
    seeds = ", ".join(f"{arm} {len(runs)}" for arm, runs in predicting.items())
    return Figure(
        "token_accuracy",
        f"World-token accuracy per horizon, mean over seeds (n = {seeds} seeds); band: 95 % "
        "interval over seeds and episodes. Grey: predictors that look at the present token alone.",
        svg_bytes(figure),
        ("subset", "predictor", "frames_ahead", "top1_percent", "low", "high", "num_seeds"),
        tuple(rows),
    )


def _arm_rows(
    evidence: Evidence, predicting: dict[str, list[FinishedRun]], subset: str
) -> list[Row]:
    rows: list[Row] = []
    for arm, runs in predicting.items():
        for stored in runs[0].evaluation["world"][subset]:
            estimate = arm_mean(token_top1(subset, stored["horizon"]), evidence, runs)
            found = None if estimate is None else estimate.interval
            rows.append((subset, arm, stored["frames_ahead"], *scaled(found, 100), len(runs)))
    return rows


def _baseline_rows(
    horizons: list[dict[str, Any]], subset: str, baselines: dict[str, str]
) -> list[Row]:
    return [
        (subset, label, row["frames_ahead"], *scaled(Interval(**row["accuracy"][name]), 100), 0)
        for name, label in baselines.items()
        for row in horizons
    ]


def _draw_panel(axis: "Axes", arms: list[Row], baselines: list[Row]) -> None:
    for arm, style in line_styles(list(dict.fromkeys(row[1] for row in arms))).items():
        ahead, mean, low, high = _columns(arms, arm)
        axis.plot(ahead, mean, label=arm, **style)
        axis.fill_between(ahead, low, high, color=style["color"], alpha=0.15, lw=0)
    for label in dict.fromkeys(row[1] for row in baselines):
        ahead, mean, _, _ = _columns(baselines, label)
        axis.plot(ahead, mean, _BASELINE_STYLES[label], color=GREY, label=label)


def _columns(rows: list[Row], predictor: str) -> np.ndarray:
    """Return frames ahead, value, low and high as rows; NaN where no frame counts."""
    return np.array([row[2:6] for row in rows if row[1] == predictor], dtype=float).T


def _horizon_table(evidence: Evidence, predicting: dict[str, list[FinishedRun]]) -> Table:
    """Give every horizon: at the first one copying is nearly all there is to learn."""
    stored = next(iter(predicting.values()))[0].evaluation["world"]["all"]
    rows = [[arm, *_means_ahead(evidence, runs)] for arm, runs in predicting.items()]
    for label, name in (("copy of w_t", "copy_top1"), ("bigram", "bigram_top1")):
        found = [Interval(**row["accuracy"][name]).value for row in stored]
        rows.append([label, *(_percent(value) for value in found)])
    for arm, runs in predicting.items():
        leads = [
            [Interval(**row["model_minus_bigram"]).value for row in run.evaluation["world"]["all"]]
            for run in runs
        ]
        rows.append([f"{arm} minus bigram", *map(_mean_lead, zip(*leads, strict=True))])
    return table(
        "token_horizons",
        "Top-1 accuracy by horizon on all frames, in percent, means over seeds; below, the lead "
        "over the bigram in points. The figure has the intervals.",
        ["predictor", *(f"k = {row['horizon']}" for row in stored)],
        rows,
    )


def _means_ahead(evidence: Evidence, runs: list[FinishedRun]) -> list[str]:
    estimates = [
        arm_mean(token_top1("all", row["horizon"]), evidence, runs)
        for row in runs[0].evaluation["world"]["all"]
    ]
    return [NONE if one is None else _percent(one.value) for one in estimates]


def _percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def _mean_lead(leads: tuple[float | None, ...]) -> str:
    known = [one for one in leads if one is not None]
    if len(known) < len(leads):
        return NONE
    return interval_text(Interval(float(np.mean(known)), None, None, 0), percent=True, signed=True)


def _table(predicting: dict[str, list[FinishedRun]]) -> Table:
    rows = []
    for arm, runs in predicting.items():
        for run in runs:
            world = run.evaluation["world"]
            everywhere, changed = world["all"][0]["accuracy"], world["changed"][0]["accuracy"]
            cells = [everywhere["model_top1"], everywhere["model_top5"], changed["model_top1"]]
            gain = _cell(world["all"][0]["model_minus_bigram"], signed=True)
            rows.append([arm, str(run.seed), *map(_cell, cells), gain])
    world = next(iter(predicting.values()))[0].evaluation["world"]
    everywhere, changed = world["all"][0]["accuracy"], world["changed"][0]["accuracy"]
    for label, cells in (
        ("copy of w_t", [everywhere["copy_top1"], None, changed["copy_top1"]]),
        ("bigram", [everywhere["bigram_top1"], everywhere["bigram_top5"], changed["bigram_top1"]]),
        ("bigram told of the change", [None, None, changed["change_bigram_top1"]]),
    ):
        rows.append([label, NONE, *map(_cell, cells), NONE])
    episodes = counted(everywhere["model_top1"]["num_episodes"], "episode")
    return table(
        "token_accuracy",
        f"World tokens at k = 1, in percent with 95 % intervals over {episodes}, seed by seed; "
        "last column in points, paired.",
        [
            *("predictor", "seed", "top-1, all frames", "top-5, all frames"),
            *("top-1 where the token changes", "top-1 minus bigram"),
        ],
        rows,
    )


def _cell(stored: dict[str, Any] | None, *, signed: bool = False) -> str:
    found = None if stored is None else Interval(**stored)
    return interval_text(found, percent=True, signed=signed)


def curves_section(findings: Findings) -> Section:
    """Held-out action error and token accuracy after each epoch."""
    main = findings.main
    figure, axes = new_figure(10, 4, columns=len(_CURVES))
    rows: list[tuple[str, int, int, str, float]] = []
    for axis, (name, label, factor) in zip(axes, _CURVES, strict=True):
        for arm, style in line_styles(main.arms).items():
            curves = []
            for run in main.runs_of(arm):
                points = [(r["epoch"] + 1, factor * r[name]) for r in run.curve if name in r]
                rows += [(arm, run.seed, epoch, name, value) for epoch, value in points]
                if points:
                    axis.plot(*zip(*points, strict=True), color=style["color"], alpha=0.3, lw=0.8)
                    curves.append([value for _, value in points])
            if curves:
                mean = np.mean(curves, axis=0)
                axis.plot(range(1, len(mean) + 1), mean, label=arm, **style)
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
    axes[0].set_yscale("log")
    for which in (axes[0].yaxis.set_major_formatter, axes[0].yaxis.set_minor_formatter):
        which("{x:g}")
    figure_legend(figure, ncols=5, fontsize=9)
    seeds = ", ".join(f"{arm} {len(main.runs[arm])}" for arm in main.arms)
    drawn = Figure(
        "learning_curves",
        f"Held-out episodes after each epoch; thin: one seed, thick: their mean (n = {seeds} "
        "seeds). The left axis is logarithmic. The last epoch is what every table reports, "
        "whichever was best.",
        svg_bytes(figure),
        ("arm", "seed", "epoch", "metric", "value"),
        tuple(rows),
    )
    return Section("Learning curves", (drawn,))
