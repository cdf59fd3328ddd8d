"""The report of an evaluation: `summary.json`, `summary.md` and `summary.png`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rollouts.comparison import Comparison
from benchmarks.rollouts.summary import CheckpointSummary
from world_modality.system.atomic import replacing, write_json

_COLOURS = ("#1b6ca8", "#c97b1a", "#5b8c3a", "#8e5ba6", "#b5423c", "#6b6b6b")
_NONE = "–"


@dataclass(frozen=True)
class Report:
    """What an evaluation came to.

    Attributes:
        suite: name of the suite.
        notes: what a reader has to know before the numbers.
        checkpoints: in the order they were given.
        comparisons: of each pair.
        throughput: of the episodes that were run now: steps, seconds, steps_per_second, env_num.
    """

    suite: str
    notes: tuple[str, ...]
    checkpoints: tuple[CheckpointSummary, ...]
    comparisons: tuple[Comparison, ...]
    throughput: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "suite": self.suite,
            "notes": list(self.notes),
            "checkpoints": [checkpoint.record() for checkpoint in self.checkpoints],
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
        rows = [[task, *(str(c.tasks[task]) for c in checkpoints)] for task in tasks]
        rows.append(["**all episodes**", *(f"**{c.overall}**" for c in checkpoints)])
        rows.append(
            [f"average over {len(tasks)} tasks", *(_percent(c.task_average) for c in checkpoints)]
        )
        groups = list(dict.fromkeys(name for c in checkpoints for name in c.groups))
        rows += [[f"group {name}", *(_group(c, name) for c in checkpoints)] for name in groups]
        if groups:
            averages = [_percent(c.group_average) for c in checkpoints]
            rows.append([f"average over {len(groups)} groups", *averages])
        errors = [str(c.overall.num_errors) for c in checkpoints]
        rows.append(["errors, not counted above", *errors])
        steps = [_number(c.overall.mean_steps_solved, ".0f") for c in checkpoints]
        rows.append(["mean steps to success", *steps])
        speeds = [_number(c.steps_per_second, ".1f") for c in checkpoints]
        rows.append(["steps/s of one environment", *speeds])
        return rows


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
    axis.invert_yaxis()
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_xlabel("success rate (line: 95 % Wilson interval)")
    axis.set_title(f"{suite}, {_episode_range(checkpoints)} episodes a task", fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, ncols=2, fontsize=9)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _episode_range(checkpoints: Sequence[CheckpointSummary]) -> str:
    numbers = [one.num_episodes for c in checkpoints for one in c.tasks.values()]
    return (
        str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)} to {max(numbers)}"
    )


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    header = ["pair", "both", "only first", "only second", "neither", "errors"]
    rows = [
        [
            f"{c.first} minus {c.second}",
            *(str(n) for n in (c.num_both, c.num_only_first, c.num_only_second, c.num_neither)),
            str(c.num_errors),
            c.difference.percent,
            f"{c.mcnemar_p:.2g}",
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
