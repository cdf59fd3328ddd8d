"""Success rates of checkpoints, compared in the same episodes: `summary.json`, `.md` and `.png`.

An episode that ended in an error says nothing about success: it is counted apart, and left out of
rates and comparisons.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rollouts.results import RolloutOrigin, RolloutResult
from world_modality.statistics.intervals import Interval
from world_modality.statistics.proportions import PairedOutcomes, wilson_interval
from world_modality.statistics.resolution import not_resolved, reading
from world_modality.system.atomic import replacing, write_json

_COLOURS = ("#1b6ca8", "#c97b1a", "#5b8c3a", "#8e5ba6", "#b5423c", "#6b6b6b")
_NONE = "–"


@dataclass(frozen=True)
class Tally:
    """Episodes and what became of them.

    Attributes:
        success_rate: solved episodes among those without an error, with its Wilson interval.
        num_solved: solved episodes.
        num_episodes: episodes without an error.
        num_errors: episodes that ended in an error.
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


@dataclass(frozen=True)
class Comparison(PairedOutcomes):
    """What became of the episodes that two checkpoints share.

    Attributes:
        first: label of one checkpoint.
        second: label of the other.
        num_both: episodes that both solved.
        num_only_first: episodes that only the first solved.
        num_only_second: episodes that only the second solved.
        num_neither: episodes that neither solved.
        num_errors: shared episodes that ended in an error for one or both.
    """

    first: str
    second: str
    num_both: int
    num_only_first: int
    num_only_second: int
    num_neither: int
    num_errors: int

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if not any(self.counts):
            return not_resolved("no episode in common")
        second, first = f"{self.second} is better", f"{self.first} is better"
        return reading(self.difference, second, first, with_reason=True)

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self) | {
            "num_episodes": sum(self.counts),
            "difference": asdict(self.difference),
            "mcnemar_p": self.p_value,
            "verdict": self.verdict,
        }


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
    groups: Mapping[str, Sequence[str]],
) -> CheckpointSummary:
    """Summarise one checkpoint's results, one of each episode; groups may name other tasks, too."""
    by_task = {task: tally(r for r in results if r.task == task) for task in tasks}
    rates = {
        task: one.success_rate.value
        for task, one in by_task.items()
        if one.success_rate.value is not None
    }
    averages: dict[str, GroupAverage] = {}
    for name, members in groups.items():
        group_rates = [rates[task] for task in members if task in rates]
        if (mean := _mean(group_rates)) is not None:
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


def compare(
    first: str,
    first_results: Iterable[RolloutResult],
    second: str,
    second_results: Iterable[RolloutResult],
) -> Comparison:
    """Pair two labelled checkpoints' results by task, episode and initial state."""
    firsts, seconds = _by_episode(first_results), _by_episode(second_results)
    pairs = Counter((firsts[episode], seconds[episode]) for episode in firsts.keys() & seconds)
    return Comparison(
        first=first,
        second=second,
        num_both=pairs[True, True],
        num_only_first=pairs[True, False],
        num_only_second=pairs[False, True],
        num_neither=pairs[False, False],
        num_errors=sum(number for pair, number in pairs.items() if None in pair),
    )


def _by_episode(results: Iterable[RolloutResult]) -> dict[tuple[str, int, int], bool | None]:
    return {(r.task, r.episode, r.initial_state): r.success for r in results}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


@dataclass(frozen=True)
class Report:
    """What an evaluation came to.

    Attributes:
        suite: name of the suite.
        notes: what a reader has to know before the numbers.
        checkpoints: in the order they were given.
        comparisons: of each pair.
        throughput: of the episodes that were run now: steps, seconds, steps_per_second, env_num.
        outage: its length and where it may begin; None where there is none.
    """

    suite: str
    notes: tuple[str, ...]
    checkpoints: tuple[CheckpointSummary, ...]
    comparisons: tuple[Comparison, ...]
    throughput: dict[str, Any]
    outage: dict[str, object] | None = None

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "suite": self.suite,
            "notes": list(self.notes),
            **({} if self.outage is None else {"outage": self.outage}),
            "checkpoints": [asdict(checkpoint) for checkpoint in self.checkpoints],
            "comparisons": [comparison.record() for comparison in self.comparisons],
            "throughput": self.throughput,
        }

    def markdown(self) -> str:
        """Return it as text with tables."""
        parts = [f"# Rollouts in {self.suite}", "\n".join(f"- {note}" for note in self.notes)]
        parts.append(_table(["success", *(c.label for c in self.checkpoints)], self._rows()))
        if self.comparisons:
            parts.append(_comparison_table(self.comparisons))
            parts.append(
                "Success rate of the first minus that of the second in the same episodes: 95 % "
                "interval by Newcombe (1998, method 10), p by McNemar's exact test, "
                "neither corrected for the number of pairs. It is these checkpoints that are "
                "compared; another training seed may turn out otherwise."
            )
        return "\n\n".join(parts) + "\n"

    def write(self, folder: Path) -> None:
        """Write the three files, each whole or not at all."""
        write_json(folder / "summary.json", self.record())
        with replacing(folder / "summary.md") as partial:
            partial.write_text(self.markdown(), encoding="utf-8")
        plot_success(self.suite, self.checkpoints, folder / "summary.png")

    def _rows(self) -> list[list[str]]:
        checkpoints = self.checkpoints
        tasks = list(checkpoints[0].tasks)
        groups = list(dict.fromkeys(name for c in checkpoints for name in c.groups))
        rows = {
            **{task: [str(c.tasks[task]) for c in checkpoints] for task in tasks},
            "**all episodes**": [f"**{c.overall}**" for c in checkpoints],
            f"average over {len(tasks)} tasks": [_percent(c.task_average) for c in checkpoints],
            **{f"group {name}": [_group(c, name) for c in checkpoints] for name in groups},
        }
        if groups:
            averages = [_percent(c.group_average) for c in checkpoints]
            rows[f"average over {len(groups)} groups"] = averages
        steps = [_number(c.overall.mean_steps_solved, ".0f") for c in checkpoints]
        rows |= {
            "errors, not counted above": [str(c.overall.num_errors) for c in checkpoints],
            "mean steps to success": steps,
            "steps/s of one environment": [_number(c.steps_per_second, ".1f") for c in checkpoints],
        }
        return [[name, *cells] for name, cells in rows.items()]


def plot_success(suite: str, checkpoints: Sequence[CheckpointSummary], path: Path) -> None:
    """Draw each task's success rate as a bar with its Wilson interval, one colour a checkpoint."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = list(checkpoints[0].tasks)
    names = [*tasks, "all episodes"]
    thickness = 0.8 / len(checkpoints)
    height = 1.6 + len(names) * max(0.3, 0.16 * len(checkpoints))
    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for index, checkpoint in enumerate(checkpoints):
        offset = (index - (len(checkpoints) - 1) / 2) * thickness
        colour = _COLOURS[index % len(_COLOURS)]
        tallies = [*checkpoint.tasks.values(), checkpoint.overall]
        for row, one in enumerate(tallies):
            rate = one.success_rate
            if rate.value is None or rate.low is None or rate.high is None:
                axis.text(0.01, row + offset, "no result", va="center", fontsize=7, color=colour)
                continue
            axis.barh(row + offset, rate.value, thickness * 0.9, color=colour, alpha=0.75)
            axis.plot([rate.low, rate.high], [row + offset] * 2, color="black", linewidth=1)
        axis.barh([0], [0], color=colour, alpha=0.75, label=checkpoint.label)
    axis.set_yticks(range(len(names)), names)
    axis.axhline(len(tasks) - 0.5, color="#8c8c8c", linewidth=0.8)
    axis.set_ylim(len(names) - 0.5, -0.5)  # the first task on top
    axis.set_xlim(0, 1)
    axis.set_xlabel("success rate (line: 95 % Wilson interval)")
    axis.set_title(f"{suite}, {_episode_range(checkpoints)} episodes a task", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, ncols=2, fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _episode_range(checkpoints: Sequence[CheckpointSummary]) -> str:
    numbers = [one.num_episodes for c in checkpoints for one in c.tasks.values()]
    fewest, most = min(numbers), max(numbers)
    return str(most) if fewest == most else f"{fewest} to {most}"


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    header = ["pair", "both", "only first", "only second", "neither", "errors"]
    rows = [
        [
            f"{c.first} minus {c.second}",
            *map(str, (*c.counts, c.num_errors)),
            c.difference.percent,
            f"{c.p_value:.2g}",
            c.verdict,
        ]
        for c in comparisons
    ]
    return _table([*header, "difference", "McNemar p", "verdict"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _group(checkpoint: CheckpointSummary, name: str) -> str:
    average = checkpoint.groups.get(name)
    if average is None:
        return _NONE
    return f"{_percent(average.success_rate)} (tasks: {average.num_tasks})"


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f} %"


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else f"{value:{form}}"
