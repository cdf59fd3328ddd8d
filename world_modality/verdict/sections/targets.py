"""What else may be predicted of the world: whether it helps, oracles first, and how well."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from world_modality.statistics.crossed_estimate import CrossedEstimate, ratio_estimate
from world_modality.statistics.intervals import Interval
from world_modality.verdict.document import Block, Section, Table, Text, table, table_of
from world_modality.verdict.evidence import ComparisonGroup, Evidence
from world_modality.verdict.findings import Findings, compare_arms
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import ACTION_ERROR, SUCCESS, Scores, mean_of
from world_modality.verdict.wording import (
    NONE,
    contrast_reading,
    difference_text,
    interval_text,
    sample_text,
)

_TITLES = {
    "embedding": "embedding (R² beyond staying as it is)",
    "embedding_change": "embedding_change (R² beyond no change)",
    "change_token": "change_token (top-1, %)",
}


def targets_section(findings: Findings) -> Section | None:
    """Return None where all runs predict the token alone, from episodes that all have labels."""
    evidence = findings.evidence
    varied = [
        group
        for group in evidence.groups
        if group.settings.get("world_target") not in (None, ["token"])
        or group.settings.get("labelled_fraction") not in (None, 1, 1.0)
    ]
    if not varied:
        return None
    text = (
        "Each target is compared within the runs that predict it. Oracles come first: where the "
        "true future does not help, neither can a predicted one."
    )
    blocks: list[Block | None] = [
        Text(text),
        _differences_table(evidence),
        _true_future_table(evidence),
        _fit_table(evidence),
    ]
    return Section("Targets and labels", tuple(block for block in blocks if block is not None))


def _cells(group: ComparisonGroup) -> list[str]:
    target = group.settings.get("world_target") or ["token"]
    share = group.settings.get("labelled_fraction")
    return [" + ".join(target), f"{100 * (1 if share is None else share):g} %"]


def _differences_table(evidence: Evidence) -> Table | None:
    rows = []
    for group in evidence.groups:
        for measure in (ACTION_ERROR, SUCCESS):
            results = compare_arms(measure, evidence, group)
            # A stable sort: else in the order of the contrasts.
            for result in sorted(results, key=lambda one: "oracle" not in one.contrast.first):
                shown = difference_text(result), sample_text(result), contrast_reading(result)
                rows.append([*_cells(group), result.contrast.name, measure.name, *shown])
    if not rows:
        return None
    return table(
        "targets",
        "Paired differences by target and by share of labelled episodes, with 95 % intervals "
        "(action MSE: negative is better; success: positive, in points). Holm's correction is "
        "within a group and measure.",
        ["target", "labelled", "pair", "measure", "difference", "n", "verdict"],
        rows,
    )


def _true_future_table(evidence: Evidence) -> Table | None:
    """Give the action error of policies that attend to the future, shown the true one."""
    rows = []
    for group in evidence.groups:
        for arm in group.arms:
            runs = group.runs_of(arm)
            sums = [run.evaluation["episodes"].get("true_future_squared_error_sum") for run in runs]
            if None in sums:
                continue
            own = [run.evaluation["episodes"]["squared_error_sum"] for run in runs]
            tasks = _tasks(runs)
            ratio = ratio_estimate(np.array(sums, float), np.array(own, float), tasks).interval
            rows.append([*_cells(group), arm, str(len(runs)), interval_text(ratio)])
    if not rows:
        return None
    return table(
        "true_future",
        "Action MSE of the same policy shown the true future, over that with its own prediction, "
        "with 95 % intervals: below 1, the actions could use a better prediction.",
        ["target", "labelled", "arm", "seeds", "ratio"],
        rows,
    )


def _fit_table(evidence: Evidence) -> Table | None:
    found = [
        (group, arm, target, row)
        for group in evidence.groups
        for arm in group.arms
        for target, rows in group.runs_of(arm)[0].evaluation.get("futures", {}).items()
        for row in dict.fromkeys(json.dumps(one) for one in (rows[0], rows[-1]))
    ]
    if not found:
        return None

    def fit(item: tuple[ComparisonGroup, str, str, str]) -> str:
        group, arm, target, row = item
        return _fit(group.runs_of(arm), target, json.loads(row)["horizon"])

    return table_of(
        "target_fits",
        "How well each target is predicted on held-out episodes, at the first and the last step: "
        "means over seeds with 95 % intervals over seeds and episodes, and the trivial predictors "
        "of the first seed.",
        found,
        {
            "settings": lambda one: ", ".join(_cells(one[0])),
            "arm": lambda one: one[1],
            "seeds": lambda one: str(len(one[0].runs_of(one[1]))),
            "target": lambda one: _TITLES[one[2]],
            "frames ahead": lambda one: str(json.loads(one[3])["frames_ahead"]),
            "policy": fit,
            "beside": lambda one: _beside(json.loads(one[3])),
        },
    )


def _fit(runs: Sequence[FinishedRun], target: str, horizon: int) -> str:
    names = ("hits", "frames") if target == "change_token" else ("squared", "trivial")
    index = 0 if target == "change_token" else horizon - 1
    sums = []
    for run in runs:
        episodes = run.evaluation["episodes"]
        if f"{target}_{names[0]}" not in episodes:
            return NONE
        sums.append([episodes[f"{target}_{name}"][index] for name in names])
    first, second = np.array(sums, float).swapaxes(0, 1)
    tasks = _tasks(runs)
    if target == "change_token":
        return interval_text(_share(runs, first, second).interval, percent=True)
    left = ratio_estimate(first, second, tasks).interval
    low, value, high = (
        None if one is None else 1 - one for one in (left.high, left.value, left.low)
    )
    return interval_text(Interval(value, low, high, left.num_episodes))


def _share(runs: Sequence[FinishedRun], hits: np.ndarray, counts: np.ndarray) -> CrossedEstimate:
    ids = runs[0].evaluation["episodes"]["episode_index"]
    scores: list[Scores] = [
        {i: (float(h), float(n)) for i, h, n in zip(ids, *pair, strict=True) if n > 0}
        for pair in zip(hits, counts, strict=True)
    ]
    return mean_of(scores, ACTION_ERROR.task_of(runs))


def _tasks(runs: Sequence[FinishedRun]) -> list[Any]:
    task_of = ACTION_ERROR.task_of(runs)
    return [task_of(episode) for episode in runs[0].evaluation["episodes"]["episode_index"]]


def _beside(row: dict[str, Any]) -> str:
    if "accuracy" not in row:
        cosines = [f"{row['cosine'][who]['value']:.2f}" for who in ("model", "trivial")]
        return "cosine {} (trivial {})".format(*cosines)
    names = {"most_frequent_top1": "most frequent", "bigram_top1": "bigram"}
    return ", ".join(
        f"{label} {interval_text(Interval(**row['accuracy'][name]), percent=True)}"
        for name, label in names.items()
    )
