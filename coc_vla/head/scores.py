"""Claimed events against recorded ones, and what traces of other episodes would score.

Within a group of types the order counts: what is right is the longest common subsequence of the
claimed and the recorded events. Of a single type the number counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Num

from coc_vla.events.recorded import MOTION_EVENTS, SIDE_EVENTS, SIMULATOR_EVENTS, EventType
from world_modality.statistics.intervals import Interval, ratio_interval


@dataclass(frozen=True)
class EventCounts:
    """How many events of one group each of E episodes has; means where there are several traces.

    Those that are right are claimed in the recorded order.
    """

    right: Num[np.ndarray, " E"]
    claimed: Num[np.ndarray, " E"]
    recorded: Num[np.ndarray, " E"]


@dataclass(frozen=True)
class EventScore:
    """How well traces tell events: precision of those claimed, recall of those recorded, and F1."""

    precision: Interval
    recall: Interval
    f1: Interval
    num_recorded: float

    @classmethod
    def of(cls, counts: EventCounts, seed: int) -> "EventScore":
        """Add up over episodes, with intervals over episodes."""
        total = counts.claimed + counts.recorded
        return cls(
            precision=ratio_interval(counts.right, counts.claimed, seed),
            recall=ratio_interval(counts.right, counts.recorded, seed),
            f1=ratio_interval(2 * counts.right, total, seed),
            num_recorded=float(counts.recorded.sum()),
        )


@dataclass(frozen=True)
class GroupScore:
    """The scores of one group of event types, beside the same traces on other episodes.

    There each episode has the trace of another one of its task, or of one of another task; the
    gains are the labels' own recall minus that, paired.
    """

    labels: EventScore
    within_task: EventScore
    across_tasks: EventScore
    recall_gain_within_task: Interval
    recall_gain_across_tasks: Interval


def score_group(
    claimed: Sequence[Sequence[EventType]],
    recorded: Sequence[Sequence[EventType]],
    tasks: Int[np.ndarray, " E"],
    kinds: Sequence[EventType],
    num_shuffles: int,
    seed: int,
) -> GroupScore:
    """Score the events of these types in E traces, in their order, against those of the episodes.

    Args:
        claimed: by each trace.
        recorded: in each episode.
        tasks: a number for each episode's task.
        kinds: the group.
        num_shuffles: draws of each control, over which it is averaged.
        seed: of the draws and the bootstrap.
    """
    own = count_events(claimed, recorded, kinds)
    within: list[EventCounts] = []
    across: list[EventCounts] = []
    for draw in range(num_shuffles):
        rng = np.random.default_rng([seed, draw])
        for partners, counts in ((partners_within_task, within), (partners_across_tasks, across)):
            others = [claimed[i] for i in partners(tasks, rng)]
            counts.append(count_events(others, recorded, kinds))
    same_task, other_task = mean_counts(within), mean_counts(across)
    return GroupScore(
        labels=EventScore.of(own, seed),
        within_task=EventScore.of(same_task, seed),
        across_tasks=EventScore.of(other_task, seed),
        recall_gain_within_task=recall_difference(own, same_task, seed),
        recall_gain_across_tasks=recall_difference(own, other_task, seed),
    )


def event_groups(known: Sequence[EventType]) -> dict[str, tuple[EventType, ...]]:
    """Return what is scored of the types that a recording can tell: groups, and each alone."""
    groups: dict[str, tuple[EventType, ...]] = {
        "all": tuple(known),
        "simulator": tuple(k for k in known if k in SIMULATOR_EVENTS),
        "motion": tuple(k for k in known if k in MOTION_EVENTS),
        "sides": tuple(k for k in known if k in SIDE_EVENTS),
        **{kind: (kind,) for kind in known},
    }
    return {name: kinds for name, kinds in groups.items() if kinds}


def count_events(
    claimed: Sequence[Sequence[EventType]],
    recorded: Sequence[Sequence[EventType]],
    kinds: Sequence[EventType],
) -> EventCounts:
    """Compare the traces of E episodes with what happened in them, as far as these types go."""
    said, happened = (
        [[kind for kind in events if kind in kinds] for events in all_events]
        for all_events in (claimed, recorded)
    )
    right = [common_subsequence(*events) for events in zip(said, happened, strict=True)]
    lengths = ([len(events) for events in all_events] for all_events in (said, happened))
    return EventCounts(*(np.array(counts, dtype=np.float64) for counts in (right, *lengths)))


def mean_counts(draws: Sequence[EventCounts]) -> EventCounts:
    """Average each episode's counts over several traces of it."""
    names = ("right", "claimed", "recorded")
    columns = ([getattr(counts, name) for counts in draws] for name in names)
    return EventCounts(*(np.mean(column, axis=0) for column in columns))


def recall_difference(first: EventCounts, second: EventCounts, seed: int) -> Interval:
    """Return the first's recall minus the second's, paired by episode.

    Raises:
        ValueError: they were not compared with the same recording.
    """
    if not np.array_equal(first.recorded, second.recorded):
        raise ValueError("recalls of different recordings cannot be paired")
    return ratio_interval(first.right - second.right, first.recorded, seed)


def common_subsequence(first: Sequence[object], second: Sequence[object]) -> int:
    """Return the length of the longest common subsequence (Wagner and Fischer, 1974)."""
    row = [0] * (len(second) + 1)
    for item in first:
        before = row
        row = [0]
        for column, other in enumerate(second):
            same = before[column] + 1
            row.append(same if item == other else max(row[column], before[column + 1]))
    return row[-1]


def partners_within_task(
    tasks: Int[np.ndarray, " E"], rng: np.random.Generator
) -> Int[np.ndarray, " E"]:
    """Give each episode another one of its task; its own only where the task has no other."""
    partners = np.arange(len(tasks))
    for task in np.unique(tasks):
        chosen = rng.permutation(np.flatnonzero(tasks == task))
        partners[chosen] = np.roll(chosen, 1)
    return partners


def partners_across_tasks(
    tasks: Int[np.ndarray, " E"], rng: np.random.Generator
) -> Int[np.ndarray, " E"]:
    """Give each episode one of another task, as far as no task has more than half of them all."""
    order = rng.permutation(len(tasks))
    order = order[np.argsort(tasks[order], kind="stable")]
    partners = np.empty_like(order)
    # In the order of tasks, a step as long as the largest task leaves every task.
    partners[order] = np.roll(order, int(np.unique(tasks, return_counts=True)[1].max()))
    return partners
