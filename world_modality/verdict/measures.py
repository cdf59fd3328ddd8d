"""What runs are scored by: sums and counts per episode, so that any mean over them is exact."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from world_modality.statistics.crossed_estimate import CrossedEstimate, crossed_estimate
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.finished_run import FinishedRun

_TOKEN_SUBSETS = {"all": "", "changed": "where it changes "}

Scores = dict[Hashable, tuple[float, float]]
"""By episode: what was added up, and how many terms it had; episodes without a term are absent."""


@dataclass(frozen=True)
class Measure:
    """A way to score a run.

    Attributes:
        name: what tables call it.
        unit: of a single value.
        lower_is_better: whether it is an error.
        is_share: whether it is given in percent.
        scores: of a run, by episode; None where the run has none.
    """

    name: str
    unit: str
    lower_is_better: bool
    is_share: bool
    scores: Callable[[Evidence, FinishedRun], Scores | None]

    @property
    def title(self) -> str:
        """Its name at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]


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
    return Measure(name, "%", False, True, scores)


def _success(evidence: Evidence, run: FinishedRun) -> Scores | None:
    rollouts = evidence.rollouts_of(run)
    if rollouts is None:
        return None
    return {
        episode: (float(outcome), 1.0)
        for episode, outcome in rollouts.outcomes.items()
        if outcome is not None
    }


ACTION_ERROR = Measure("action MSE", "training std²", True, False, _action_errors)
SUCCESS = Measure("success rate", "%", False, True, _success)
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
    return mean_of(known)


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
    return mean_of(pairs)


def mean_of(scores: Sequence[Scores]) -> CrossedEstimate:
    """Return the mean over seeds and episodes; an episode that a seed lacks counts nothing there.

    Args:
        scores: of each seed; an episode is there with at least one term, or not at all.
    """
    episodes = list(dict.fromkeys(episode for one in scores for episode in one))
    cells = np.array(
        [[one.get(episode, (0, 0)) for episode in episodes] for one in scores], dtype=np.float64
    )
    return crossed_estimate(cells[..., 0], cells[..., 1])
