"""Success rates of checkpoints over tasks, with Wilson intervals; errors are no failures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.rollouts.results import RolloutOrigin, RolloutResult
from world_modality.statistics.intervals import Interval
from world_modality.statistics.proportions import wilson_interval


@dataclass(frozen=True)
class Tally:
    """Episodes and what became of them.

    Attributes:
        success_rate: solved episodes among those without an error, with its Wilson interval.
        num_solved: solved episodes.
        num_episodes: episodes without an error.
        num_errors: episodes that ended in an error and say nothing about success.
        mean_steps_solved: steps to success; None where nothing was solved.
    """

    success_rate: Interval
    num_solved: int
    num_episodes: int
    num_errors: int
    mean_steps_solved: float | None

    def __str__(self) -> str:
        if not self.num_episodes:
            return "n/a"
        return f"{self.success_rate.percent} ({self.num_solved}/{self.num_episodes})"


@dataclass(frozen=True)
class GroupAverage:
    """Mean success rate of those of a group's tasks that were selected."""

    success_rate: float
    num_tasks: int


@dataclass(frozen=True)
class CheckpointSummary:
    """How one checkpoint did.

    Attributes:
        label: what it is called in tables and pictures.
        origin: what its results share.
        tasks: by task, in the order asked for.
        overall: all episodes together.
        task_average: mean of the tasks' success rates; None where no episode counts.
        groups: by group; those without a counting episode are left out.
        group_average: mean of the groups' means; None where there are no groups.
        steps_per_second: of one environment, waiting for the policy included.
    """

    label: str
    origin: RolloutOrigin
    tasks: dict[str, Tally]
    overall: Tally
    task_average: float | None
    groups: dict[str, GroupAverage]
    group_average: float | None
    steps_per_second: float | None

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def tally(results: Iterable[RolloutResult]) -> Tally:
    """Count episodes."""
    results = list(results)
    counted = [result for result in results if result.success is not None]
    steps = [result.num_steps for result in counted if result.success]
    return Tally(
        success_rate=wilson_interval(len(steps), len(counted)),
        num_solved=len(steps),
        num_episodes=len(counted),
        num_errors=len(results) - len(counted),
        mean_steps_solved=_mean(steps),
    )


def summarise(
    label: str,
    origin: RolloutOrigin,
    results: Sequence[RolloutResult],
    tasks: Sequence[str],
    groups: Mapping[str, Sequence[str]] | None,
) -> CheckpointSummary:
    """Summarise one checkpoint's results.

    Args:
        label: what the checkpoint is called.
        origin: what its results share.
        results: one for each episode.
        tasks: in the order of the table.
        groups: the suite's groups of tasks, if it has any; selected tasks or not.
    """
    by_task = {task: tally(r for r in results if r.task == task) for task in tasks}
    rates = {
        task: one.success_rate.value
        for task, one in by_task.items()
        if one.success_rate.value is not None
    }
    averages: dict[str, GroupAverage] = {}
    for name, members in (groups or {}).items():
        group_rates = [rates[task] for task in members if task in rates]
        mean = _mean(group_rates)
        if mean is not None:
            averages[name] = GroupAverage(mean, len(group_rates))
    counted = [result for result in results if result.success is not None]
    seconds = sum(result.seconds for result in counted)
    return CheckpointSummary(
        label=label,
        origin=origin,
        tasks=by_task,
        overall=tally(results),
        task_average=_mean(list(rates.values())),
        groups=averages,
        group_average=_mean([average.success_rate for average in averages.values()]),
        steps_per_second=sum(r.num_steps for r in counted) / seconds if seconds else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
