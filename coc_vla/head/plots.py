"""Picture of the report on explanations."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_modality.system.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1b6ca8", "#c97b1a", "#5b8c3a", "#a83a5b", "#8c8c8c", "#6b4fa0")


def plot_explanations(report: dict[str, Any], path: Path) -> None:
    """Draw perplexity and event recall over the episode, and recall differences with intervals."""
    import matplotlib.pyplot as plt

    greedy = {
        name: condition
        for name, condition in report["conditions"].items()
        if condition["perplexity"] is not None
    }
    colours = dict(zip(greedy, _COLOURS, strict=False))
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
    for name, condition in greedy.items():
        style = {"marker": "o", "ms": 4, "color": colours[name], "label": name}
        axes[0].plot(report["eval_shares"], condition["perplexity_by_share"], **style)
        axes[1].plot(report["eval_shares"], condition["recall_by_share"], **style)
    axes[0].set_ylabel("perplexity per token of the label")
    axes[1].set_ylabel("recall of events in greedy text")
    for axis in axes[:2]:
        axis.set_xlabel("frame that is explained from, share of the episode")
    _differences(axes[2], greedy, colours)
    run = report["run"]
    title = (
        f"model {run['model_type']}, {run['dataset_name']}, encoder {run['encoder']}, "
        f"{report['labels']['num_explained']} held-out episodes, events against the "
        f"{report['truth']}"
    )
    figure.suptitle(title, fontsize=9)
    handles, names = axes[0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.legend(handles, names, loc="lower center", ncols=3, frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    plt.close(figure)


def _differences(axis: "Axes", greedy: dict[str, Any], colours: dict[str, str]) -> None:
    others = [name for name in greedy if name != "model"]
    for row, name in enumerate(others):
        difference = greedy[name]["nats_minus_model"]
        if difference["low"] is not None:
            axis.hlines(row, difference["low"], difference["high"], color=colours[name])
        axis.plot(difference["value"], row, "o", color=colours[name])
    axis.axvline(0, color="#8c8c8c", linestyle=":")
    axis.set_yticks(range(len(others)), [name.replace(" of ", "\nof ", 1) for name in others])
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.locator_params(axis="x", nbins=4)
    axis.set_xlabel("nats per token minus the model's (95 % interval)")
