"""Does what is measured offline tell success in closed loop?"""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from world_modality.statistics.intervals import CONFIDENCE, Interval
from world_modality.verdict.document import Block, Figure, Section, Text, table
from world_modality.verdict.drawing import colours, markers, new_figure, svg_bytes
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.sections.codebook import probe_r2
from world_modality.verdict.wording import interval_text

Pair = tuple[str, int, float, float]
_MIN_CHECKPOINTS = 4


def offline_online_section(findings: Findings) -> Section | None:
    """Rank correlations over all checkpoints that were rolled out; None below two."""
    evidence = findings.evidence
    rolled_out = []
    for group in evidence.groups:
        for arm, seed, run in group.all_runs():
            rollouts = evidence.rollouts_of(run)
            if rollouts is not None and rollouts.num_counted:
                rolled_out.append((arm, seed, run, rollouts.num_solved / rollouts.num_counted))
    if len(rolled_out) < 2:
        return None
    predictors: dict[str, Callable[[FinishedRun], float | None]] = {
        "action MSE": lambda run: run.evaluation["actions"]["model"]["mse"]["value"],
        "world-token top-1 at k = 1": _token_accuracy,
        "probe R² of the cache's embeddings": lambda run: probe_r2(evidence.sources, run),
    }
    rows = []
    error_pairs: list[Pair] = []
    for name, predictor in predictors.items():
        pairs = [
            (arm, seed, value, success)
            for arm, seed, run, success in rolled_out
            if (value := predictor(run)) is not None
        ]
        rows.append([name, str(len(pairs)), *_correlation(pairs)])
        error_pairs = error_pairs or pairs
    blocks: list[Block] = [
        Text(
            "Over all checkpoints that were rolled out, other settings included. Checkpoints of "
            "one arm resemble each other, so the interval is too narrow rather than too wide."
        ),
        table(
            "offline_online",
            "Spearman's rank correlation with the success rate; 95 % interval by Fisher's z with "
            "the variance of Bonett and Wright (2000).",
            ["measured offline", "checkpoints", "rank correlation", "reading"],
            rows,
        ),
        _figure(error_pairs),
    ]
    return Section("From offline to closed loop", tuple(blocks))


def rank_correlation(x: list[float], y: list[float]) -> Interval:
    """Spearman's rank correlation with its 95 % interval.

    Fisher's z with the variance of Bonett and Wright (2000, Psychometrika 65:23-28).
    Without bounds below four points, without a value where one of the two does not vary.
    """
    n = len(x)
    if n < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return Interval(None, None, None, n)
    rho = float(stats.spearmanr(x, y).statistic)
    if n < _MIN_CHECKPOINTS or abs(rho) > 1 - 1e-12:
        return Interval(rho, None, None, n)
    reach = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt((1 + rho**2 / 2) / (n - 3))
    centre = math.atanh(rho)
    return Interval(rho, math.tanh(centre - reach), math.tanh(centre + reach), n)


def _correlation(pairs: list[Pair]) -> tuple[str, str]:
    interval = rank_correlation([x for _, _, x, _ in pairs], [y for *_, y in pairs])
    if interval.value is None:
        return "–", "not defined: it takes two checkpoints that differ in both"
    if interval.low is None or interval.high is None:
        return interval_text(interval, signed=True), "not resolved: too few checkpoints"
    words = {-1: "success falls with it", 0: "not resolved", 1: "success rises with it"}
    return interval_text(interval, signed=True), words[interval.side()]


def _token_accuracy(run: FinishedRun) -> float | None:
    world = run.evaluation["world"]
    return None if world is None else world["all"][0]["accuracy"]["model_top1"]["value"]


def _figure(pairs: list[Pair]) -> Figure:
    arms = list(dict.fromkeys(arm for arm, *_ in pairs))
    colour, marker = colours(arms), markers(arms)
    figure, (axis,) = new_figure(7, 4)
    for arm in arms:
        own = [pair for pair in pairs if pair[0] == arm]
        axis.plot(
            [x for _, _, x, _ in own],
            [100 * y for *_, y in own],
            marker[arm],
            ls="",
            ms=6,
            color=colour[arm],
            label=arm,
        )
    highest = max(np.max([y for *_, y in pairs]) * 110, 5)
    axis.set_ylim(0, min(highest, 104))
    axis.set_xlabel("action MSE on held-out episodes (training std²)")
    axis.set_ylabel("success rate (%)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return Figure(
        "offline_online",
        f"Each point is one checkpoint (n = {len(pairs)}).",
        svg_bytes(figure),
        ("arm", "seed", "action_mse", "success_rate"),
        tuple(pairs),
    )
