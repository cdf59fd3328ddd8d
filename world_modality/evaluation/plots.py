"""Pictures of the offline reports."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from world_modality.system.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ticks at 1, 2 and 5 alone would be too few below this span, as a factor.
_FEW_TICKS_SPAN = 3.0
_COLOURS = {
    **{"model": "#1b6ca8", "task_mean": "#8c8c8c", "last_action": "#c97b1a"},
    "true_future": "#5b8c3a",
}
_LABELS = {
    "model": "policy",
    "task_mean": "training mean of the task",
    "last_action": "last action held",
    "true_future": "policy, shown the future",
}
_TOKEN_LINES = {
    "model_top1": ("policy", "#1b6ca8", "-"),
    "bigram_top1": ("bigram", "#c97b1a", "--"),
    "copy_top1": ("copy", "#8c8c8c", ":"),
    "change_bigram_top1": ("bigram told of the change", "#5b8c3a", "-."),
}
_TOKEN_PANELS = {
    "all": ("all frames", ("model_top1", "bigram_top1", "copy_top1")),
    "changed": (
        "frames where the token changes",
        ("model_top1", "bigram_top1", "change_bigram_top1"),
    ),
}

_DARK_LINES = {
    "seen": ("nothing dark", "#8c8c8c"),
    "dark": ("dark", "#b5423c"),
    "true_token": ("dark, true token (oracle)", "#5b8c3a"),
    "own_prediction": ("dark, own prediction", "#1b6ca8"),
    "hold": ("dark, last token seen", "#c97b1a"),
}


def plot_eval(result: dict[str, Any], path: Path) -> None:
    """Draw action error per chunk step and, where there is any, token accuracy per horizon."""
    import matplotlib.pyplot as plt

    panels = 1 if result["world"] is None else 3
    figure, axes = plt.subplots(1, panels, figsize=(5.2 * panels, 4), squeeze=False)
    _action_panel(axes[0][0], result["actions"])
    if result["world"] is not None:
        for axis, subset in zip(axes[0][1:], _TOKEN_PANELS, strict=True):
            _token_panel(axis, result["world"][subset], subset)
    _finish(figure, result["run"], path)


def plot_corruption(result: dict[str, Any], path: Path) -> None:
    """Draw the ratio of corrupted to clean action error, with its interval, per corruption."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 0.5 * len(result["corruptions"]) + 1.8))
    for row, effect in enumerate(result["corruptions"].values()):
        ratio = effect["ratio"]
        if ratio["value"] is None:
            axis.text(1.01, row, "not defined", transform=axis.get_yaxis_transform())
            continue
        draws = [draw for draw in effect["ratio_per_draw"] if draw is not None]
        axis.scatter(draws, [row] * len(draws), color="#c9d8e6", s=18, zorder=1)
        if ratio["low"] is not None:
            axis.hlines(row, ratio["low"], ratio["high"], color="#1b6ca8", zorder=2)
        axis.plot(ratio["value"], row, "o", color="#1b6ca8", zorder=3)
        axis.text(1.01, row, f"{ratio['value']:.3f}", transform=axis.get_yaxis_transform())
    axis.axvline(1, color="#8c8c8c", linestyle=":")
    axis.set_yticks(range(len(result["corruptions"])), list(result["corruptions"]))
    axis.invert_yaxis()
    set_ratio_scale(axis, "x")
    axis.set_xlabel("action MSE, corrupted / clean (95 % interval over episodes; pale: one draw)")
    _finish(figure, result["run"], path)


def plot_outage(result: dict[str, Any], path: Path) -> None:
    """Draw the action error against the number of dark frames, with its intervals."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    outages = result["outages"]
    numbers = [one["num_dark"] for one in outages]
    for name, (label, colour) in _DARK_LINES.items():
        found = [one["seen"] if name == "seen" else one["dark"].get(name) for one in outages]
        if None in found:
            continue
        value, low, high = (
            np.array([interval[bound] for interval in found], float)
            for bound in ("value", "low", "high")
        )
        axis.plot(numbers, value, "o-", ms=3, color=colour, label=label)
        axis.fill_between(numbers, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("dark frames up to the one that is acted in")
    axis.set_ylabel("action MSE (training std²)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    _finish(figure, result["run"], path)


def set_ratio_scale(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Let twice and half be equally far from 1, with plain numbers at the ticks; call it last."""
    from matplotlib import ticker

    axes.set(**{f"{which}scale": "log"})
    axes.autoscale_view()
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    is_narrow = max(low, high) / min(low, high) < _FEW_TICKS_SPAN
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(
        ticker.MaxNLocator(6, steps=[1, 2, 5, 10])
        if is_narrow
        else ticker.LogLocator(subs=(1.0, 2.0, 5.0))
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def _action_panel(axis: "Axes", actions: dict[str, Any]) -> None:
    for name, metrics in actions.items():
        steps = range(1, len(metrics["mse_per_step"]) + 1)
        axis.plot(
            steps, metrics["mse_per_step"], "o-", ms=3, color=_COLOURS[name], label=_LABELS[name]
        )
    axis.set_xlabel("step of the action chunk")
    axis.set_ylabel("action MSE (training std²)")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _token_panel(axis: "Axes", rows: list[dict[str, Any]], subset: str) -> None:
    title, names = _TOKEN_PANELS[subset]
    ahead = [row["frames_ahead"] for row in rows]
    for name in names:
        label, colour, line = _TOKEN_LINES[name]
        intervals = [row["accuracy"][name] for row in rows]
        # What has no value is None, which an array of floats holds as not-a-number.
        value, low, high = (
            np.array([interval[bound] for interval in intervals], float)
            for bound in ("value", "low", "high")
        )
        axis.plot(ahead, value, line, marker="o", ms=3, color=colour, label=label)
        axis.fill_between(ahead, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_title(f"{title} (n = {rows[0]['num_frames']} at k = 1)", fontsize=10)
    axis.set_xlabel("frames ahead")
    axis.set_ylabel("world-token top-1 accuracy")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False)


def _finish(figure: "Figure", run: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    title = (
        f"model {run['model_type']}, {run['dataset_name']}, encoder {run['encoder']}, "
        f"{run['num_val_episodes']} held-out episodes ({run['num_val_frames']} frames)"
    )
    if run["encoder_note"]:
        title += f"\n{run['encoder_note']}"
    figure.suptitle(title, fontsize=9, wrap=True)
    figure.tight_layout()
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)
