"""The analysis again, from the tidy tables alone: neither runs nor checkpoints have to be there.

python -m world_modality.statistics.from_tables report/data/success.csv \
      report/data/action_error.csv --design report/data/design.json
"""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Float

from world_modality.statistics.crossed_estimate import (
    CrossedEstimate,
    crossed_estimate,
    ratio_estimate,
)
from world_modality.statistics.design import MeasureName, PlannedContrast, read_design
from world_modality.statistics.intervals import Interval
from world_modality.statistics.sequential import follow
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, MissingFileError

_VALUES: Mapping[str, tuple[MeasureName, str, str | None]] = {
    "success": ("success", "layout", None),
    "squared_error_sum": ("action_error", "episode", "num_steps"),
}
"""By the column of the outcome: the measure, the column of the episode, that of its terms."""


@dataclass(frozen=True)
class TidyConfig:
    """Estimate every contrast of tidy tables again, and take the looks of a design again."""

    tables: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files `success.csv` and `action_error.csv` that a report wrote."""
    design: Path | None = None
    """File `design.json` of the report; without one no looks are taken."""

    def __post_init__(self) -> None:
        if not self.tables:
            raise InvalidInputError("name at least one table, say report/data/success.csv")


@dataclass(frozen=True)
class TidyContrast:
    """Both arms' outcomes in the same seeds and episodes.

    Attributes:
        measure: what the outcomes are.
        tasks: of each episode.
        first: sums of the arm under test.
        second: sums of its reference.
        counts: their terms; 0 where one of the two ended in an error or is not there.
    """

    measure: MeasureName
    tasks: tuple[str, ...]
    first: Float[np.ndarray, "S E"]
    second: Float[np.ndarray, "S E"]
    counts: Float[np.ndarray, "S E"]

    def difference(self, num_seeds: int | None = None) -> CrossedEstimate:
        """Return first minus second, of the first seeds."""
        parts = (self.first - self.second)[:num_seeds], self.counts[:num_seeds]
        return crossed_estimate(*parts, self.tasks)

    def planned(self, num_seeds: int) -> CrossedEstimate:
        """Return what a design's margin is about: the difference, or the logarithm of a ratio."""
        if self.measure == "success":
            return self.difference(num_seeds)
        shared = np.flatnonzero(self.counts.min(axis=0) > 0)
        tasks = [self.tasks[episode] for episode in shared]
        first, second = self.first[:num_seeds, shared], self.second[:num_seeds, shared]
        log = ratio_estimate(first, second, tasks).log
        if log is None:
            raise InvalidInputError("an error of a seed is 0: its ratio is not defined")
        return log


def read_tables(paths: Iterable[Path]) -> dict[tuple[str, MeasureName], TidyContrast]:
    """Read tidy tables; the key is the pair and the measure.

    Raises:
        MissingFileError: a table is not there.
        InvalidInputError: it is none of the two kinds.
    """
    found: dict[tuple[str, MeasureName], TidyContrast] = {}
    for path in paths:
        if not path.is_file():
            raise MissingFileError(f"no table {path}; python -m world_modality.report writes it")
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        value = next((name for name in _VALUES if rows and name in rows[0]), None)
        if rows and value is None:
            raise InvalidInputError(
                f"{path} has no column {' or '.join(_VALUES)}: it is no tidy table of a report"
            )
        for pair in dict.fromkeys(row["contrast"] for row in rows):
            own = [row for row in rows if row["contrast"] == pair]
            assert value is not None
            found[pair, _VALUES[value][0]] = _contrast(own, value)
    return found


def _contrast(rows: list[dict[str, str]], value: str) -> TidyContrast:
    measure, episode, terms = _VALUES[value]
    arms = rows[0]["contrast"].split(" − ")
    seeds = sorted({int(row["seed"]) for row in rows})
    episodes = list(dict.fromkeys((row["task"], row[episode]) for row in rows))
    shape = len(arms), len(seeds), len(episodes)
    sums, counts = np.zeros(shape), np.zeros(shape)
    places = {one: index for index, one in enumerate(episodes)}
    for row in rows:
        if row[value] == "":
            continue
        place = (
            arms.index(row["arm"]),
            seeds.index(int(row["seed"])),
            places[row["task"], row[episode]],
        )
        sums[place] = float(row[value])
        counts[place] = float(row[terms]) if terms else 1.0
    shared = np.where(counts[0] == counts[1], counts[0], 0.0)
    tasks = tuple(task for task, _ in episodes)
    kept = sums * (shared > 0)
    return TidyContrast(measure, tasks, kept[0], kept[1], shared)


def run(config: TidyConfig) -> list[str]:
    """Print a line a contrast and look, and return these lines.

    Raises:
        MissingFileError, InvalidInputError: a table or the design is missing or damaged.
    """
    contrasts = read_tables(config.tables)
    lines = []
    for (pair, measure), one in contrasts.items():
        estimate = one.difference()
        p_value = estimate.p_value
        lines.append(
            f"{pair} by {measure}: {estimate.interval}, {estimate.num_seeds} seeds x "
            f"{estimate.num_episodes} episodes, p {'-' if p_value is None else f'{p_value:.3g}'}"
        )
    if config.design is not None:
        lines += _looks(config.design, contrasts)
    print("\n".join(lines))
    return lines


def _looks(path: Path, contrasts: dict[tuple[str, MeasureName], TidyContrast]) -> list[str]:
    design = read_design(path)
    there = [one for one in design.contrasts if (one.pair, one.measure) in contrasts]
    estimates = {}
    for one in there:
        own = contrasts[one.pair, one.measure]
        looks = [count for count in design.plan.looks if count <= len(own.first)]
        estimates[one.name] = [own.planned(count) for count in looks]
    courses = follow(design.plan, {one.name: one.scale for one in there}, estimates)
    return [
        f"{one.name} after {look.estimate.num_seeds} seeds: {look.claim} "
        f"{_shown(one, look.interval)}"
        for one in there
        for look in courses[one.name].looks
    ]


def _shown(contrast: PlannedContrast, found: Interval) -> str:
    if contrast.measure == "success":
        return found.percent
    ends = (
        None if end is None else math.expm1(end) for end in (found.value, found.low, found.high)
    )
    value, low, high = ends
    return Interval(value, low, high, found.num_episodes).percent


def main() -> None:
    """Analyse the tables from the command line."""
    run_cli(TidyConfig, run)


if __name__ == "__main__":
    main()
