"""The tokens themselves: usage, meaning, and whether another codebook finds the same."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import scipy

from world_modality.cache.contract import Cache
from world_modality.statistics.intervals import CONFIDENCE, Interval
from world_modality.statistics.resolution import not_resolved, reading
from world_modality.system.errors import UserError
from world_modality.verdict.document import Block, Figure, Section, Text, table, table_of
from world_modality.verdict.drawing import line_styles, new_figure, svg_bytes
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.sources import Sources
from world_modality.verdict.wording import NONE, interval_text


def analysis_of(sources: Sources, run: FinishedRun) -> Mapping[str, Any] | None:
    """Return the token analysis of the cache that a run was trained on."""
    tokens = run.data.get("world_tokens")
    for _, analysis in sources.analyses:
        stored = analysis.get("world_tokens_sha256")
        if tokens is not None and stored is not None:
            if stored == tokens:
                return analysis
        elif (
            # Reports of an older version do not name the tokens.
            analysis["dataset_name"] == run.evaluation["run"]["dataset_name"]
            and analysis["encoder_name"] == run.evaluation["run"]["encoder"]
        ):
            return analysis
    return None


def probe_r2(sources: Sources, run: FinishedRun) -> float | None:
    """Return how well the cache's embeddings linearly tell the state (held-out R², mean)."""
    analysis = analysis_of(sources, run)
    probes = {} if analysis is None else analysis.get("probes") or {}
    source = probes.get("environment_states") or probes.get("states")
    return None if source is None else source["embedding"]["mean"]["value"]


def codebook_section(findings: Findings) -> Section | None:
    """Return None where no token analysis was given."""
    analyses = _by_slot(findings.evidence.sources.analyses)
    if not analyses:
        return None
    usage = table_of(
        "codebook",
        "Usage on training episodes; perplexity is the number of equally frequent codes with "
        "the same entropy. What the token tells of task and phase is the mutual information "
        "above that of shuffled labels, as a share of the label's entropy. Probe: held-out R² "
        "of a linear map to the robot's state, from the embedding and from the token alone.",
        analyses,
        {
            "analysis": lambda one: one[0].name,
            "encoder": lambda one: one[1]["encoder_name"],
            "codes": lambda one: str(one[1]["num_tokens"]),
            "used": lambda one: str(one[1]["train_usage"]["num_used"]),
            "perplexity": lambda one: f"{one[1]['train_usage']['perplexity']:.1f}",
            "frames a token stays": lambda one: _dwell(one[1]),
            "of the task (%)": lambda one: _share(one[1].get("task")),
            "of the phase (%)": lambda one: _share(one[1].get("phase")),
            "probe R²: embedding": lambda one: _r2(one[1], "embedding"),
            "token": lambda one: _r2(one[1], "token"),
        },
    )
    return Section("Codebook audit", (usage, _stability(findings)))


def _by_slot(
    analyses: Sequence[tuple[Path, Mapping[str, Any]]],
) -> list[tuple[Path, Mapping[str, Any]]]:
    """Return the analyses of single tokens: a frame's only one, or each of several slots."""
    return [
        (folder if one is analysis else folder.with_name(f"{folder.name}, slot {one['slot']}"), one)
        for folder, analysis in analyses
        for one in analysis.get("slots", [analysis])
    ]


def _dwell(analysis: Mapping[str, Any]) -> str:
    frames = analysis["train_dwell"]["frames"]["value"]
    return NONE if frames is None else f"{frames:.1f}"


def _share(information: Mapping[str, Any] | None) -> str:
    share = None if information is None else information["excess_share"]
    return NONE if share is None else f"{100 * share:.0f}"


def _r2(analysis: Mapping[str, Any], source: str) -> str:
    states = (analysis.get("probes") or {}).get("states") or {}
    value = (states.get(source) or {}).get("mean", {}).get("value")
    return NONE if value is None else f"{value:.3f}"


def _stability(findings: Findings) -> Block:
    """Compare the tokens that different caches give the same frames."""
    caches: dict[str, tuple[str, np.ndarray]] = {}
    for group in findings.evidence.groups:
        for _, _, run in group.all_runs():
            if run.fingerprint not in caches and run.data.get("dataset") is not None:
                tokens = _tokens(run)
                if tokens is not None:
                    caches[run.fingerprint] = (str(run.data["dataset"]), tokens)
    rows = [
        [one[:10], other[:10], f"{_agreement(tokens, others):.3f}"]
        for (one, (dataset, tokens)), (other, (same, others)) in itertools.combinations(
            caches.items(), 2
        )
        if dataset == same and len(tokens) == len(others)
    ]
    if not rows:
        return Text(
            "Stability over codebook seeds: not measured. It takes caches of one dataset with "
            "different codebooks, that can be read from here."
        )
    return table(
        "codebook_stability",
        "Agreement of the tokens that two caches give the same frames: adjusted mutual information "
        "(Vinh, Epps and Bailey, 2010), 1 for the same partition, 0 for chance.",
        ["cache", "other cache", "agreement"],
        rows,
    )


def _tokens(run: FinishedRun) -> np.ndarray | None:
    config = run.config
    try:
        cache = Cache(Path(config["cache_dir"]), config["dataset_name"], config["split"])
        if cache.manifest["arrays"]["world_tokens"]["sha256"] != run.data.get("world_tokens"):
            return None  # made again since the training
        return np.array(cache.load("world_tokens")).ravel()  # of several slots, frame by frame
    except UserError:
        return None  # on another machine, or removed: the text says that it was not measured


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(one, other))


Pair = tuple[str, int, float, float]
_MIN_VALUES = 5


def offline_online_section(findings: Findings) -> Section | None:
    """Rank correlations over all checkpoints that were rolled out; None below two."""
    evidence = findings.evidence
    rolled_out = _rolled_out(findings)
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
        scored = [(one, value) for one in rolled_out if (value := predictor(one.run)) is not None]
        means = _means(scored)
        rows.append([name, str(len(scored)), str(len(means)), *_correlation(means)])
        error_pairs = error_pairs or [
            (one.arm, one.run.seed, value, one.success) for one, value in scored
        ]
    blocks: list[Block] = [
        Text(
            "Over all checkpoints that were rolled out, other settings included, each counted "
            "once: an arm that is another one to the last bit is that one. Checkpoints of one arm "
            "and settings resemble each other, so their means are correlated. This is about what "
            "predicts success among such means; it says of no arm that it is better."
        ),
        table(
            "offline_online",
            "Spearman's rank correlation with the success rate; 95 % interval by Fisher's z with "
            f"the variance of Bonett and Wright (2000), from {_MIN_VALUES} distinct values on.",
            ["measured offline", "checkpoints", "means", "rank correlation", "reading"],
            rows,
        ),
        _figure(error_pairs),
    ]
    return Section("From offline to closed loop", tuple(blocks))


@dataclass(frozen=True)
class RolledOut:
    """A checkpoint with its success rate.

    Attributes:
        group: number of its settings.
        arm: its arm.
        run: its training.
        success: share of the episodes that counted.
    """

    group: int
    arm: str
    run: FinishedRun
    success: float


def _rolled_out(findings: Findings) -> list[RolledOut]:
    """Return each checkpoint once, though arm A is in several groups and one arm may be another."""
    evidence = findings.evidence
    found: list[RolledOut] = []
    for number, group in enumerate(evidence.groups):
        for arm, _, run in group.all_runs():
            rollouts = evidence.rollouts_of(run)
            if rollouts is None or not rollouts.num_counted:
                continue
            one = RolledOut(number, arm, run, rollouts.num_solved / rollouts.num_counted)
            if not any(_is_same_policy(one, before) for before in found):
                found.append(one)
    return found


def _is_same_policy(one: RolledOut, other: RolledOut) -> bool:
    """Say whether two checkpoints are one, in two groups or under two names."""
    return (
        one.run.seed == other.run.seed
        and one.success == other.success
        and one.run.same_errors_as(other.run)
    )


def _means(scored: list[tuple[RolledOut, float]]) -> list[tuple[float, float]]:
    """Return the mean of predictor and success of each arm and settings, over seeds."""
    groups: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for one, value in scored:
        groups.setdefault((one.group, one.arm), []).append((value, one.success))
    return [(mean(x for x, _ in pairs), mean(y for _, y in pairs)) for pairs in groups.values()]


def rank_correlation(x: list[float], y: list[float]) -> Interval:
    """Spearman's rank correlation with its 95 % interval.

    Fisher's z with the variance of Bonett and Wright (2000, Psychometrika 65:23-28).
    Without bounds below five distinct values of either, without a value where one does not vary.
    """
    n = len(x)
    if n < 2 or len(set(x)) == 1 or len(set(y)) == 1:
        return Interval(None, None, None, n)
    rho = float(scipy.stats.spearmanr(x, y).statistic)
    if min(len(set(x)), len(set(y))) < _MIN_VALUES or abs(rho) > 1 - 1e-12:
        return Interval(rho, None, None, n)
    reach = float(scipy.stats.norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt(
        (1 + rho**2 / 2) / (n - 3)
    )
    centre = math.atanh(rho)
    return Interval(rho, math.tanh(centre - reach), math.tanh(centre + reach), n)


def _correlation(means: list[tuple[float, float]]) -> tuple[str, str]:
    interval = rank_correlation([x for x, _ in means], [y for _, y in means])
    if interval.value is None:
        return "–", "not defined: it takes two means that differ in both"
    if interval.low is None or interval.high is None:
        return interval_text(interval, signed=True), not_resolved("too few distinct values")
    words = reading(interval, "success falls with it", "success rises with it")
    return interval_text(interval, signed=True), words


def _token_accuracy(run: FinishedRun) -> float | None:
    world = run.evaluation["world"]
    return None if world is None else world["all"][0]["accuracy"]["model_top1"]["value"]


def _figure(pairs: list[Pair]) -> Figure:
    figure, (axis,) = new_figure(7, 4)
    for arm, style in line_styles(list(dict.fromkeys(arm for arm, *_ in pairs)), 6).items():
        points = [(x, 100 * y) for name, _, x, y in pairs if name == arm]
        axis.plot(*zip(*points, strict=True), linestyle="", label=arm, **style)
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
