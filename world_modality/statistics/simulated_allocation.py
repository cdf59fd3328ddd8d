"""Would it help to spend the rollouts elsewhere? Ways of allocating them, by simulation.

    python -m world_modality.statistics.simulated_allocation --out_path simulated_allocation.json

Three ways are compared with what an experiment does, every layout of every task for every seed:

- a task that every arm solves always or never in the first round is not run again, and counts as no
  difference from then on; its uncertainty is that of so many episodes that ended alike, or of so
  many trainings;
- the same, and its episodes go to further layouts of the other tasks;
- the seeds' offline errors as a control variate of their success.

None of them is used; docs/seed_by_seed.md has the figures and says why.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from world_modality.statistics.crossed_estimate import CrossedEstimate, crossed_estimate
from world_modality.statistics.sequential import Margin, SeedPlan, follow
from world_modality.statistics.simulated_experiments import EASY_TASK_RATES
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.system.errors import require_at_least

Way = Literal["everything", "by episodes", "by trainings", "moved"]
WAYS: tuple[Way, ...] = ("everything", "by episodes", "by trainings", "moved")
MARGIN = Margin(-0.03, 0.03, of_counts=True)
LAYOUTS = 20
# As in `simulated_experiments`, on the scale of a probit.
LAYOUT, SEED, ARM_BY_LAYOUT, SEED_BY_LAYOUT = 1.0, 0.13, 0.15, 0.25


@dataclass(frozen=True)
class World:
    """How two arms differ.

    Attributes:
        name: what tables call it.
        shift: of the first arm, on the scale of a probit, in every task.
        lost: share of the first arm's trainings that never solve the easiest task.
    """

    name: str
    shift: float
    lost: float

    @property
    def effect(self) -> float:
        """The true difference of success."""
        total = math.sqrt(LAYOUT**2 + SEED**2 + ARM_BY_LAYOUT**2 + SEED_BY_LAYOUT**2)
        rates = np.array(EASY_TASK_RATES)
        moved = stats.norm.cdf(stats.norm.ppf(rates) + self.shift / total)
        moved[-1] *= 1 - self.lost
        return float((moved - rates).mean())


def worlds() -> tuple[World, ...]:
    """Return no difference, the margin in all tasks, and the margin by trainings that lose one."""
    return (
        World("no difference", 0.0, 0.0),
        World("the margin", 0.16904115, 0.0),
        World("the margin: some trainings lose a task", 0.0, 0.18018),
    )


def draw(
    rng: np.random.Generator, world: World, num_seeds: int, layouts: int
) -> Bool[np.ndarray, "2 S T L"]:
    """Simulate whether each arm and seed solves each layout of each task."""
    num_tasks = len(EASY_TASK_RATES)
    total = math.sqrt(LAYOUT**2 + SEED**2 + ARM_BY_LAYOUT**2 + SEED_BY_LAYOUT**2)
    thresholds = total * stats.norm.ppf(EASY_TASK_RATES)[None, :, None]
    layout = LAYOUT * rng.normal(size=(num_tasks, layouts))
    arms = []
    for shift in (world.shift, 0.0):
        arms.append(
            thresholds
            + shift
            + layout
            + SEED * rng.normal(size=(num_seeds, 1, 1))
            + ARM_BY_LAYOUT * rng.normal(size=(num_tasks, layouts))
            + SEED_BY_LAYOUT * rng.normal(size=(num_seeds, num_tasks, layouts))
            > 0
        )
    arms[0][:, -1][rng.random(num_seeds) < world.lost] = False
    return np.stack(arms)


def estimate(
    solved: Bool[np.ndarray, "2 S T L"], way: Way, num_seeds: int, first_round: int
) -> tuple[CrossedEstimate, float]:
    """Return the estimated difference, and how many episodes a seed of an arm took on average.

    Args:
        solved: outcomes in as many layouts as any way needs.
        way: how they were allocated.
        num_seeds: so far.
        first_round: seeds that have seen every task.
    """
    solved = solved[:, :num_seeds]
    seen = solved[:, :first_round, :, :LAYOUTS]
    solved_share = seen.mean(axis=(0, 1, 3))
    alike = (solved_share == 0) | (solved_share == 1)
    num_tasks = len(alike)
    if way == "everything" or not alike.any() or alike.all() or num_seeds == first_round:
        return _weighted(solved[..., :LAYOUTS], np.full(num_tasks, LAYOUTS)), num_tasks * LAYOUTS
    layouts = np.full(num_tasks, LAYOUTS)
    if way == "moved":
        layouts[~alike] = num_tasks * LAYOUTS // int((~alike).sum())
    outcomes = solved.copy()
    outcomes[:, first_round:, alike] = seen[0, 0, alike, 0][:, None]
    found = _weighted(outcomes, layouts)
    later = int(layouts[~alike].sum())
    first = later + LAYOUTS * int(alike.sum())
    num_episodes = (first_round * first + (num_seeds - first_round) * later) / num_seeds
    return _with_doubt(found, way, int(alike.sum()), first_round), num_episodes


def _weighted(
    solved: Bool[np.ndarray, "2 S T L"], layouts: Int[np.ndarray, " T"]
) -> CrossedEstimate:
    """Return the difference of the means over tasks, however many layouts each has."""
    tasks = np.repeat(np.arange(len(layouts)), layouts)
    columns = np.concatenate([np.arange(count) for count in layouts])
    difference = solved[0].astype(float) - solved[1]
    weights = (1 / layouts)[tasks] * np.ones((len(difference), 1))
    return crossed_estimate(difference[:, tasks, columns] * weights, weights, tuple(tasks.tolist()))


def _with_doubt(
    found: CrossedEstimate, way: Way, num_alike: int, first_round: int
) -> CrossedEstimate:
    """Add what is not known of the tasks that were left: a rule of succession for each arm."""
    number = first_round * (1 if way == "by trainings" else LAYOUTS)
    rate = 1 / (number + 2)
    variance = 2 * num_alike * rate * (1 - rate) / number / len(EASY_TASK_RATES) ** 2
    assert found.seed_variance is not None
    return replace(found, seed_variance=found.seed_variance + variance * found.num_seeds)


@dataclass(frozen=True)
class Allocated:
    """What came of a way of allocating, in a world: shares of the experiments.

    Attributes:
        world: its name.
        way: of allocating.
        wrong_difference: experiments that claim a difference that is not there, or its opposite.
        wrong_equivalence: experiments that claim it of arms that differ by the margin.
        claims: how often the contrast ended so.
        mean_half_width: of the interval from all seeds, in points.
        mean_episodes: rollouts of a seed of an arm.
    """

    world: str
    way: Way
    wrong_difference: float
    wrong_equivalence: float
    claims: dict[str, float]
    mean_half_width: float
    mean_episodes: float


def compare(world: World, plan: SeedPlan, num_experiments: int, seed: int) -> list[Allocated]:
    """Follow the same experiments with every way of allocating their episodes."""
    rng = np.random.default_rng(seed)
    claims: dict[Way, Counter[str]] = {way: Counter() for way in WAYS}
    widths: dict[Way, list[float]] = {way: [] for way in WAYS}
    episodes: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(num_experiments):
        solved = draw(rng, world, plan.max_seeds, LAYOUTS * len(EASY_TASK_RATES))
        for way in WAYS:
            looks = [estimate(solved, way, count, plan.looks[0]) for count in plan.looks]
            course = follow(plan, {"only": MARGIN}, {"only": [one for one, _ in looks]})["only"]
            claims[way][course.claim] += 1
            widths[way].append(100 * looks[-1][0].error.reach(0.975))
            episodes[way].append(looks[len(course.looks) - 1][1])
    is_different = abs(world.effect) > 1e-9
    right = "better" if world.effect > 0 else "worse"
    found = []
    for way, counts in claims.items():
        different = {"better", "worse"} - ({right} if is_different else set())
        found.append(
            Allocated(
                world.name,
                way,
                sum(counts[claim] for claim in different) / num_experiments,
                counts["equivalent"] / num_experiments if is_different else 0.0,
                {claim: number / num_experiments for claim, number in sorted(counts.items())},
                float(np.mean(widths[way])),
                float(np.mean(episodes[way])),
            )
        )
    return found


def variance_at_equal_cost(correlation: float, share_of_rollouts: float) -> float:
    """Return the variance of a mean of success with the offline error as its control variate.

    A control variate needs its expectation. That of an arm's offline error is not known; trainings
    that are not rolled out tell it (double sampling, Cochran, 1977, section 12.6): of N trainings
    n are rolled out, and with the correlation r the variance is that of one training times
    (1 - r²) / n + r² / N. It is given relative to rolling every training out at the same cost, for
    the best n.

    Args:
        correlation: of the offline error and the success, over the seeds of an arm.
        share_of_rollouts: of the cost of a training that is rolled out.
    """
    rolled_out = np.linspace(0.02, 1.0, 99)  # n / N
    trainings = 1 / (1 - share_of_rollouts + share_of_rollouts * rolled_out)  # N, at equal cost
    variances: Float[np.ndarray, " n"] = (
        (1 - correlation**2) / rolled_out + correlation**2
    ) / trainings
    return float(variances.min())


@dataclass(frozen=True)
class AllocationConfig:
    """Simulate experiments whose rollouts are allocated in several ways."""

    out_path: Path = Path("simulated_allocation.json")
    """File that receives the shares."""
    num_experiments: int = 2000
    """Experiments of each world."""
    max_seeds: int = 20
    """Largest number of seeds of an arm."""
    seeds_per_round: int = 4
    """Seeds that are trained between two looks."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        require_at_least("num_experiments", self.num_experiments, 1)


def run(config: AllocationConfig) -> list[Allocated]:
    """Simulate every world, print and write what came out."""
    plan = SeedPlan(config.max_seeds, config.seeds_per_round)
    found: list[Allocated] = []
    for number, world in enumerate(worlds()):
        found += compare(world, plan, config.num_experiments, config.seed + number)
        for one in found[-len(WAYS) :]:
            shares = ", ".join(f"{name} {100 * share:.1f} %" for name, share in one.claims.items())
            print(
                f"{one.world}, {one.way}: {shares}; half-width {one.mean_half_width:.2f} points, "
                f"{one.mean_episodes:.0f} episodes",
                flush=True,
            )
    variates = {
        f"{correlation:g}": variance_at_equal_cost(correlation, 0.5)
        for correlation in (0.3, 0.5, 0.7, 0.9)
    }
    print(f"variance with a control variate, at equal cost, by its correlation: {variates}")
    content: dict[str, Any] = {"ways": [vars(one) for one in found], "control_variate": variates}
    write_json(config.out_path, content)
    return found


def main() -> None:
    """Simulate from the command line."""
    run_cli(AllocationConfig, run)


if __name__ == "__main__":
    main()
