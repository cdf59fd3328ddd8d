"""Figures as SVG: the same bytes for the same numbers."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from world_modality.arms import arm_order
from world_modality.statistics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#6b7680"
_COLOURS = {
    "A": "#6b7680",
    "B": "#c97b1a",
    "C": "#1b6ca8",
    "C_no_world_input": "#5b8c3a",
}
_OTHERS = ("#8e5ba6", "#b5423c", "#2a9d8f", "#a0792c", "#d0659a", "#4d5bb5")
_MARKERS = "os^Dv<>Pph"


def new_figure(width: float, height: float, columns: int = 1) -> tuple["Figure", list["Axes"]]:
    """Return a figure of so many panels in a row, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e3e8ec", linewidth=0.7)
        axis.set_axisbelow(True)
    return figure, list(axes)


def svg_bytes(figure: "Figure") -> bytes:
    """Return the drawing without its date."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Element ids are random otherwise.
    with mpl.rc_context({"svg.hashsalt": "world-modality"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def colours(arms: Iterable[str]) -> dict[str, str]:
    """Return one colour an arm, the same in every figure of a report."""
    others = [arm for arm in sorted(arms, key=arm_order) if arm not in _COLOURS]
    extra = {arm: _OTHERS[i % len(_OTHERS)] for i, arm in enumerate(others)}
    return {**_COLOURS, **extra}


def line_styles(arms: Sequence[str], marker_size: float | None = None) -> dict[str, dict[str, Any]]:
    """Return what `plot` draws each arm's points and line with.

    A marker an arm, for print without colour; where no size is given, in points, each is smaller
    than the one before: of two equal curves the lower one's markers show.
    """
    colour = colours(arms)
    return {
        arm: {
            "color": colour[arm],
            "marker": _MARKERS[i % len(_MARKERS)],
            "markersize": marker_size or max(7.0 - 0.9 * i, 3.0),
        }
        for i, arm in enumerate(arms)
    }


def scaled(interval: Interval | None, factor: float) -> tuple[Any, Any, Any]:
    """Return value, low and high times a factor; what is not known stays None."""
    if interval is None:
        return None, None, None
    value, low, high = (
        None if one is None else factor * one
        for one in (interval.value, interval.low, interval.high)
    )
    return value, low, high


def error_bar(axis: "Axes", numbers: tuple[Any, Any, Any], y: float, colour: str) -> None:
    """Draw a value with its horizontal interval, as `scaled` returns them."""
    value, low, high = numbers
    if low is not None and high is not None:
        axis.hlines(y, low, high, color=colour, linewidth=2)
    axis.plot([value], [y], "o", color=colour, markersize=5)


def figure_legend(figure: "Figure", **options: Any) -> None:
    """Draw one legend below all panels, with each label once."""
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", frameon=False, **options
    )
