"""World-token accuracy per horizon, beside copying and counting."""

from typing import TYPE_CHECKING, Any

import numpy as np

from world_modality.intervals import Interval
from world_modality.verdict.document import Figure, Section, Table, Text, table
from world_modality.verdict.drawing import (
    GREY,
    colours,
    marker_sizes,
    markers,
    new_figure,
    svg_bytes,
)
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.wording import counted, interval_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = tuple[str, str, int, float | None, int]
_PANELS = {
    "all": ("all frames", {"bigram_top1": "bigram", "copy_top1": "copy of w_t"}),
    "changed": (
        "frames where the token changes",
        {"bigram_top1": "bigram", "change_bigram_top1": "bigram told of the change"},
    ),
}


def token_section(findings: Findings) -> Section | None:
    """Return None where no arm predicts tokens."""
    predicting = {
        arm: runs
        for arm in findings.evidence.main.arms
        if (runs := [r for r in findings.runs_of(arm) if r.evaluation["world"] is not None])
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
            _figure(predicting),
            _table(predicting),
        ),
    )


def _figure(predicting: dict[str, list[FinishedRun]]) -> Figure:
    figure, axes = new_figure(10, 4, columns=2)
    rows: list[Row] = []
    for axis, (subset, (title, baselines)) in zip(axes, _PANELS.items(), strict=True):
        rows += _panel(axis, predicting, subset, baselines)
        first = next(iter(predicting.values()))[0].evaluation["world"][subset][0]
        axis.set_title(f"{title} (n = {first['num_frames']} at k = 1)", fontsize=10)
        axis.set_xlabel("frames ahead")
        axis.set_ylabel("world-token top-1 accuracy (%)")
        axis.set_ylim(0, 100)
    handles = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        frameon=False,
        ncols=4,
        fontsize=9,
    )
    seeds = ", ".join(f"{arm} {len(runs)}" for arm, runs in predicting.items())
    return Figure(
        "token_accuracy",
        f"World-token accuracy per horizon, mean over seeds (n = {seeds} seeds); band: the span "
        "between the lowest and the highest seed. Grey: predictors that look at the present token "
        "alone.",
        svg_bytes(figure),
        ("subset", "predictor", "frames_ahead", "top1_percent", "num_seeds"),
        tuple(rows),
    )


def _panel(
    axis: "Axes",
    predicting: dict[str, list[FinishedRun]],
    subset: str,
    baselines: dict[str, str],
) -> list[Row]:
    arms = list(predicting)
    colour, marker, sizes = colours(arms), markers(arms), marker_sizes(arms)
    rows: list[Row] = []
    for arm, runs in predicting.items():
        ahead, values = _accuracies(runs, subset, "model_top1")
        mean = values.mean(axis=0)
        axis.plot(ahead, mean, marker=marker[arm], ms=sizes[arm], color=colour[arm], label=arm)
        axis.fill_between(
            ahead, values.min(axis=0), values.max(axis=0), color=colour[arm], alpha=0.15, lw=0
        )
        rows += [
            (subset, arm, int(k), _or_none(v), len(runs)) for k, v in zip(ahead, mean, strict=True)
        ]
    any_runs = next(iter(predicting.values()))[:1]
    for style, (name, label) in zip(("--", ":"), baselines.items(), strict=True):
        ahead, values = _accuracies(any_runs, subset, name)
        axis.plot(ahead, values[0], style, color=GREY, label=label)
        rows += [
            (subset, label, int(k), _or_none(v), 0) for k, v in zip(ahead, values[0], strict=True)
        ]
    return rows


def _accuracies(
    runs: list[FinishedRun], subset: str, predictor: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return frames ahead [K] and percent [S, K]; NaN where no frame counts."""
    horizons = [run.evaluation["world"][subset] for run in runs]
    values = [[_percent(row["accuracy"][predictor]["value"]) for row in one] for one in horizons]
    return np.array([row["frames_ahead"] for row in horizons[0]]), np.array(values, float)


def _table(predicting: dict[str, list[FinishedRun]]) -> Table:
    rows = []
    for arm, runs in predicting.items():
        for run in runs:
            world = run.evaluation["world"]
            everywhere, changed = world["all"][0], world["changed"][0]
            rows.append(
                [
                    arm,
                    str(run.seed),
                    *(_cell(everywhere["accuracy"][f"model_{top}"]) for top in ("top1", "top5")),
                    _cell(changed["accuracy"]["model_top1"]),
                    _cell(everywhere["model_minus_bigram"], signed=True),
                ]
            )
    world = next(iter(predicting.values()))[0].evaluation["world"]
    everywhere, changed = world["all"][0]["accuracy"], world["changed"][0]["accuracy"]
    rows += [
        ["copy of w_t", "–", _cell(everywhere["copy_top1"]), "–", _cell(changed["copy_top1"]), "–"],
        [
            *("bigram", "–"),
            *(_cell(everywhere[f"bigram_{top}"]) for top in ("top1", "top5")),
            _cell(changed["bigram_top1"]),
            "–",
        ],
        ["bigram told of the change", "–", "–", "–", _cell(changed["change_bigram_top1"]), "–"],
    ]
    episodes = counted(world["all"][0]["accuracy"]["model_top1"]["num_episodes"], "episode")
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


def _cell(stored: dict[str, Any], *, signed: bool = False) -> str:
    return interval_text(Interval(**stored), percent=True, signed=signed)


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
