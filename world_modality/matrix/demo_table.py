"""The demo's tables: what the stages' reports say of the four arms, side by side."""

from typing import Any

import numpy as np

from world_modality.arms import contrasts_between
from world_modality.statistics.intervals import Interval, ratio_interval


def offline_table(reports: dict[str, dict[str, Any]]) -> str:
    """Return the summary as Markdown: per arm, then the paired differences that test the claim."""
    first = reports["A"]["eval_offline"]
    lines = [
        f"{first['run']['num_val_episodes']} held-out episodes, {first['run']['num_val_frames']} "
        "frames; 95 % intervals by bootstrap over episodes; one seed.",
        f"Encoder: {first['run']['encoder_note']}.",
        "",
        "| arm | action MSE (training std²) | top-1 at k = 1 | top-5 at k = 1 "
        "| top-1 where the token changes | corrupted / clean |",
        "|---|---|---|---|---|---|",
    ]
    for arm, report in reports.items():
        error = _interval(report["eval_offline"]["actions"]["model"]["mse"])
        ratio = _interval(report["corrupt_world"]["corruptions"]["task_shuffle"]["ratio"])
        accuracies = _accuracies(report["eval_offline"]["world"], "model")
        lines.append(f"| {arm} | {error} | {accuracies} | {ratio} |")
    for name, label in (
        ("task_mean", "training mean of the task"),
        ("last_action", "last action held"),
    ):
        lines.append(f"| {label} | {_interval(first['actions'][name]['mse'])} | – | – | – | – |")
    world = reports["B"]["eval_offline"]["world"]
    for name, label in (
        ("copy", "copy of `w_t`"),
        ("bigram", "bigram"),
        ("change_bigram", "bigram told that the token changes"),
    ):
        lines.append(f"| {label} | – | {_accuracies(world, name)} | – |")
    lines += ["", *_comparisons(reports)]
    return "\n".join(lines)


def _accuracies(world: dict[str, Any] | None, predictor: str) -> str:
    """Return three cells: top-1 and top-5 on all frames, top-1 where the token changes."""
    if world is None:
        return "– | – | –"
    everywhere, changed = (world[subset][0]["accuracy"] for subset in ("all", "changed"))
    cells = [everywhere.get(f"{predictor}_{top}") for top in ("top1", "top5")]
    if predictor == "change_bigram":
        cells = [None, None]  # on frames where the token stays it has been told a falsehood
    cells.append(changed[f"{predictor}_top1"])
    return " | ".join("–" if cell is None else _interval(cell).percent for cell in cells)


def _comparisons(reports: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["action MSE, paired by episode (negative: the first is better):"]
    for contrast in contrasts_between(set(reports)):
        arm, reference = contrast.first, contrast.second
        difference = paired_difference(
            reports[arm]["eval_offline"]["episodes"], reports[reference]["eval_offline"]["episodes"]
        )
        verdict = _verdict(difference, f"{arm} is better", f"{arm} is worse")
        lines.append(f"- {arm} minus {reference}: {difference} ({verdict})")
    gain = _interval(reports["C"]["eval_offline"]["world"]["all"][0]["model_minus_bigram"])
    lines.append(f"- top-1 at k = 1, C's world head minus bigram: {gain.percent}")
    ratio = reports["C"]["corrupt_world"]["corruptions"]["task_shuffle"]["ratio"]
    lines.append(
        f"- C's action MSE with another frame's token of the same task, over its own: "
        f"{_interval(ratio)}"
    )
    return lines


def closed_loop_table(rollouts: dict[str, Any], corrupted: dict[str, Any]) -> str:
    """Return success per task and arm, and the paired comparisons, as Markdown."""
    arms = rollouts["checkpoints"]
    num_episodes = arms[0]["overall"]["num_episodes"]
    names = [arm["origin"]["model_type"] for arm in arms]
    rows = [["success in closed loop", *names, "C, another frame's token of the task"]]
    rows.append(["---"] * len(rows[0]))
    columns = [*arms, *corrupted["checkpoints"]]
    for task in arms[0]["tasks"]:
        tallies = [column["tasks"][task] for column in columns]
        rows.append([task, *(f"{one['num_solved']}/{one['num_episodes']}" for one in tallies)])
    overall = [_interval(column["overall"]["success_rate"]).percent for column in columns]
    rows.append(["all", *overall])
    errors = sum(column["overall"]["num_errors"] for column in columns)
    lines = [
        f"Rollouts in the simulator, {num_episodes} an arm, in layouts that no demonstration has, "
        f"the same for every arm; Wilson intervals; {errors} ended in an error.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        "success rate, paired by episode (positive: the first is better):",
    ]
    named = {arm["label"]: arm["origin"]["model_type"] for arm in arms}
    for pair in rollouts["comparisons"]:
        first, second = named[pair["first"]], named[pair["second"]]
        verdict = pair["verdict"].replace(pair["first"], first).replace(pair["second"], second)
        lines.append(
            f"- {first} minus {second}: {_interval(pair['difference']).percent} "
            f"(McNemar p {pair['mcnemar_p']:.2g}; {verdict}, for this one seed)"
        )
    return "\n".join(lines)


def explanation_table(report: dict[str, Any]) -> str:
    """Return how well held-out episodes are explained, beside the controls, and one of them."""
    lines = [
        f"Explanations of {report['labels']['num_explained']} held-out episodes, labels by rules; "
        "against the same decoder that reads the instruction only; intervals by episode.",
        "",
        "| decoder reads | perplexity per token | nats a token minus the model's | event recall "
        "| recall minus the model's |",
        "|---|---|---|---|---|",
    ]
    for name, condition in report["conditions"].items():
        if condition["perplexity"] is None:
            continue
        perplexity = _interval(condition["perplexity"]).with_decimals(4)
        recall = _interval(condition["scores"]["all"]["recall"]).percent
        minus = [
            str(_interval(condition["nats_minus_model"])),
            _interval(condition["recall_minus_model"]["all"]).percent,
        ]
        change, fall = ("–", "–") if name == "model" else minus
        lines.append(f"| {name} | {perplexity} | {change} | {recall} | {fall} |")
    control = report["conditions"]["instruction only"]
    likelihood = _interval(control["nats_minus_model"])
    events = _interval(control["recall_minus_model"]["all"])
    lines += [
        "",
        "the decoder that reads the instruction only, against the model, paired by episode:",
        f"- nats a token: {likelihood} "
        f"({_verdict(likelihood, 'the model explains worse', 'the model explains better')})",
        f"- event recall: {events.percent} "
        f"({_verdict(events, 'the model explains better', 'the model explains worse')})",
    ]
    example = report["examples"][0]
    lines += [
        "",
        f"Episode {example['episode_index']}, {example['instruction']!r}, the model says:",
    ]
    lines += [
        f"{number}. {step['what']}: {step['why']}."
        for number, step in enumerate(example["model"], 1)
    ] or ["(nothing)"]
    return "\n".join(lines)


def paired_difference(first: dict[str, Any], second: dict[str, Any]) -> Interval:
    """Return the difference of two arms' action MSE, from their episodes' sums."""
    sums = np.array(first["squared_error_sum"]) - np.array(second["squared_error_sum"])
    return ratio_interval(sums, np.array(first["num_steps"]))


def _verdict(difference: Interval, negative: str, positive: str) -> str:
    """Say what a difference means, where its interval tells its sign."""
    if difference.low is None or difference.high is None:
        return "not resolved: there is no interval"
    words = {-1: negative, 0: "not resolved: the interval spans 0", 1: positive}
    return f"{words[difference.side()]}, for this one seed"


def _interval(stored: dict[str, Any]) -> Interval:
    return Interval(**stored)
