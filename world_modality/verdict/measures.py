"""What runs are scored by: sums and counts per episode, so that any mean over them is exact."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from world_modality.statistics.crossed_estimate import (
    CrossedEstimate,
    crossed_estimate,
    ratio_estimate,
)
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.finished_run import FinishedRun

_TOKEN_SUBSETS = {"all": "", "changed": "where it changes "}

Scores = dict[Hashable, tuple[float, float]]
"""By episode: what was added up, and how many terms it had; episodes without a term are absent."""
TaskOf = Callable[[Hashable], Hashable]
"""The task of an episode: as many episodes were drawn of each as were asked for."""


@dataclass(frozen=True)
class Measure:
    """A way to score a run.

    Attributes:
        name: what tables call it.
        unit: of a single value.
        lower_is_better: whether it is an error.
        is_share: whether it is given in percent.
        scores: of a run, by episode; None where the run has none.
        task_of: the task of an episode, for runs that share their episodes.
    """

    name: str
    unit: str
    lower_is_better: bool
    is_share: bool
    scores: Callable[[Evidence, FinishedRun], Scores | None]
    task_of: Callable[[Sequence[FinishedRun]], TaskOf]

    @property
    def title(self) -> str:
        """Its name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]

    @property
    def possible(self) -> tuple[float, float]:
        """Least and largest value that there can be."""
        return 0.0, 1.0 if self.is_share else math.inf

    @property
    def possible_difference(self) -> tuple[float, float]:
        """Least and largest difference of two."""
        least, largest = self.possible
        return least - largest, largest - least


def _offline_task(runs: Sequence[FinishedRun]) -> TaskOf:
    """Return the tasks of held-out episodes; None for all where only older reports are there."""
    for run in runs:
        episodes = run.evaluation["episodes"]
        if "task_index" in episodes:
            return dict(zip(episodes["episode_index"], episodes["task_index"], strict=True)).get
    return lambda episode: None


def _rollout_task(runs: Sequence[FinishedRun]) -> TaskOf:
    return lambda episode: episode[0]  # type: ignore[index]


def _action_errors(evidence: Evidence, run: FinishedRun) -> Scores | None:
    episodes = run.evaluation["episodes"]
    sums, counts = episodes["squared_error_sum"], episodes["num_steps"]
    return dict(zip(episodes["episode_index"], zip(sums, counts, strict=True), strict=True))


def token_top1(subset: str, horizon: int) -> Measure:
    """Return the accuracy of the token at a horizon, counted from 1.

    Args:
        subset: `all` frames, or those where the token has `changed`.
        horizon: k.
    """

    def scores(evidence: Evidence, run: FinishedRun) -> Scores | None:
        episodes = run.evaluation["episodes"]
        if f"top1_hits_{subset}" not in episodes:
            return None
        hits = episodes[f"top1_hits_{subset}"][horizon - 1]
        frames = episodes[f"top1_frames_{subset}"][horizon - 1]
        pairs = zip(episodes["episode_index"], zip(hits, frames, strict=True), strict=True)
        return {episode: (float(hit), float(n)) for episode, (hit, n) in pairs if n > 0}

    name = f"world-token top-1 {_TOKEN_SUBSETS[subset]}at k = {horizon}"
    return Measure(name, "%", False, True, scores, _offline_task)


def _success(evidence: Evidence, run: FinishedRun) -> Scores | None:
    rollouts = evidence.rollouts_of(run)
    if rollouts is None:
        return None
    return {
        episode: (float(outcome), 1.0)
        for episode, outcome in rollouts.outcomes.items()
        if outcome is not None
    }


ACTION_ERROR = Measure("action MSE", "training std²", True, False, _action_errors, _offline_task)
SUCCESS = Measure("success rate", "%", False, True, _success, _rollout_task)
TOKEN_TOP1 = token_top1("all", 1)
TOKEN_TOP1_CHANGED = token_top1("changed", 1)


def arm_mean(
    measure: Measure, evidence: Evidence, runs: Sequence[FinishedRun]
) -> CrossedEstimate | None:
    """Return an arm's mean over its seeds and the episodes that all of them have."""
    scores = [measure.scores(evidence, run) for run in runs]
    known = [one for one in scores if one]
    if not known or len(known) < len(runs):
        return None
    return replace(mean_of(known, measure.task_of(runs)), possible=measure.possible)


def paired_mean_difference(
    measure: Measure,
    evidence: Evidence,
    first: Sequence[FinishedRun],
    second: Sequence[FinishedRun],
) -> CrossedEstimate | None:
    """Return the first arm's mean minus the second's, in the same seeds and episodes.

    Args:
        measure: what is compared.
        evidence: where rollouts are looked up.
        first: one run a seed.
        second: runs of the same seeds in the same order.
    """
    pairs = []
    for one, other in zip(first, second, strict=True):
        ours, theirs = measure.scores(evidence, one), measure.scores(evidence, other)
        if not ours or not theirs:
            return None
        shared = [episode for episode in ours if episode in theirs]
        pairs.append(
            {
                episode: (ours[episode][0] - theirs[episode][0], ours[episode][1])
                for episode in shared
                # Another count would be another set of frames.
                if ours[episode][1] == theirs[episode][1]
            }
        )
    if not all(pairs):
        return None
    found = mean_of(pairs, measure.task_of([*first, *second]))
    return replace(found, possible=measure.possible_difference)


def paired_log_ratio(
    measure: Measure,
    evidence: Evidence,
    first: Sequence[FinishedRun],
    second: Sequence[FinishedRun],
) -> CrossedEstimate | None:
    """Return the logarithm of the first arm's mean over the second's, for measures above 0.

    Args:
        measure: what is compared.
        evidence: where rollouts are looked up.
        first: one run a seed.
        second: runs of the same seeds in the same order.

    Returns:
        the estimate; None where a run has no score, or a seed's ratio is not defined.
    """
    found = [[measure.scores(evidence, run) or {} for run in runs] for runs in (first, second)]
    shared = set.intersection(*(set(one) for scores in found for one in scores))
    episodes = [episode for episode in found[0][0] if episode in shared]
    if not episodes:
        return None
    sums = [np.array([[one[e][0] for e in episodes] for one in scores]) for scores in found]
    task_of = measure.task_of([*first, *second])
    return ratio_estimate(sums[0], sums[1], [task_of(episode) for episode in episodes]).log


def mean_of(scores: Sequence[Scores], task_of: TaskOf) -> CrossedEstimate:
    """Return the mean over seeds and episodes; an episode that a seed lacks counts nothing there.

    Args:
        scores: of each seed; an episode is there with at least one term, or not at all.
        task_of: the task of each episode.
    """
    episodes = list(dict.fromkeys(episode for one in scores for episode in one))
    cells = np.array(
        [[one.get(episode, (0, 0)) for episode in episodes] for one in scores], dtype=np.float64
    )
    tasks = [task_of(episode) for episode in episodes]
    return crossed_estimate(cells[..., 0], cells[..., 1], tasks)
