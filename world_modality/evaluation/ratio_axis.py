"""An axis of ratios: logarithmic, so that twice and half are equally far from 1."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 3.0
"""Below this span, as a factor, ticks at 1, 2 and 5 alone would be too few."""


def set_ratio_scale(axes: "Axes", which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic with plain numbers at its ticks; call it when all is drawn."""
    from matplotlib import ticker

    axes.set(**{f"{which}scale": "log"})
    axes.autoscale_view()
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    is_narrow = max(low, high) / min(low, high) < _FEW
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(
        ticker.MaxNLocator(6, steps=[1, 2, 5, 10])
        if is_narrow
        else ticker.LogLocator(subs=(1.0, 2.0, 5.0))
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())
