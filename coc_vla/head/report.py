"""The report on explanations for a reader: as Markdown and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_modality.statistics.intervals import Interval
from world_modality.system.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1b6ca8", "#c97b1a", "#5b8c3a", "#a83a5b", "#8c8c8c", "#6b4fa0")
_GROUPS = ("all", "simulator", "motion", "sides", "lifted")


def markdown_report(report: dict[str, Any]) -> str:
    """Write an `EvalCocResult`, as plain values, for reading."""
    sections = (_header, _policy, _likelihood, _events, _examples)
    return "\n".join(line for section in sections for line in section(report)) + "\n"


def _header(report: dict[str, Any]) -> list[str]:
    run, labels = report["run"], report["labels"]
    lines = [
        f"# Explanations of {run['checkpoint']}",
        "",
        f"Model {run['model_type']} on {run['dataset_name']}: {labels['num_explained']} of "
        f"{run['num_val_episodes']} held-out episodes explained, each from "
        f"{len(report['eval_shares'])} of its frames (at "
        f"{', '.join(f'{share:g}' for share in report['eval_shares'])} of its length); 95 % "
        "intervals by bootstrap over episodes; one training seed.",
        f"Labels: {labels['path']} ({labels['num_val_labels']} of held-out episodes).",
    ]
    if not labels["is_training_file"]:
        lines.append("**These are not the labels that the checkpoint was trained on.**")
    if run["encoder_note"]:
        lines.append(f"Encoder: {run['encoder_note']}")
    return lines


def _policy(report: dict[str, Any]) -> list[str]:
    mse = _interval(report["actions"]["model"]["mse"])
    mean = _interval(report["actions"]["task_mean"]["mse"])
    lines = ["", "## Policy", "", f"- action MSE (training std²): {mse}; training mean: {mean}"]
    if report["world"] is None:
        return [*lines, "- world tokens: arm A predicts none"]
    first = report["world"]["all"][0]
    top1 = _interval(first["accuracy"]["model_top1"]).percent
    bigram = _interval(first["accuracy"]["bigram_top1"]).percent
    return [*lines, f"- world token top-1 at k = 1: {top1}; bigram: {bigram}"]


def _likelihood(report: dict[str, Any]) -> list[str]:
    rows = []
    for name, condition in report["conditions"].items():
        if condition["perplexity"] is not None:
            perplexity = _interval(condition["perplexity"]).with_decimals(4)
            nats = f"{condition['nats_per_trace']:.3g}"
            difference = "–" if name == "model" else str(_interval(condition["nats_minus_model"]))
            rows.append([name, perplexity, nats, difference])
    columns = ["condition", "perplexity per token", "nats per trace"]
    return [
        *("", "## How likely are the held-out labels?", ""),
        *_table([*columns, "nats per token minus the model's"], rows),
        "",
        "Paired by episode; positive: the condition explains worse than the model. An interval "
        "that spans 0 resolves nothing.",
    ]


def _events(report: dict[str, Any]) -> list[str]:
    against = {
        "recorder": "what the recorder knows to have happened",
        "labels": "what the labels claim (no --dataset_root was given)",
    }[report["truth"]]
    lines = ["", "## Events in the written explanations", "", f"Against {against}."]
    columns = ["condition", "precision", "recall", "F1", "recall minus the model's"]
    for group in (g for g in _GROUPS if g in report["conditions"]["model"]["scores"]):
        rows = []
        for name, condition in report["conditions"].items():
            score = condition["scores"][group]
            cells = [_interval(score[n]).percent for n in ("precision", "recall", "f1")]
            is_model = name == "model"
            change = "–" if is_model else _interval(condition["recall_minus_model"][group]).percent
            changed = "–" if is_model else f"{100 * condition['changed']:.1f} %"
            rows.append([name, *cells, change, changed])
        lines += ["", f"### {group}", "", *_table([*columns, "texts changed"], rows)]
    return lines


def _table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _examples(report: dict[str, Any]) -> list[str]:
    lines = ["", "## Examples", "", "From the middle frame, greedy."]
    for example in report["examples"]:
        lines += ["", f"### Episode {example['episode_index']}: {example['instruction']}"]
        for name in ("label", "model", "instruction only"):
            if name in example:
                lines += ["", f"{name}:", ""]
                lines += [
                    f"{number}. {step['what']}. {step['why']}."
                    for number, step in enumerate(example[name], 1)
                ] or ["(nothing)"]
    return lines


def _interval(values: dict[str, Any]) -> Interval:
    return Interval(**values)


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
