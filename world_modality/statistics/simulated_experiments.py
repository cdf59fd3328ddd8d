"""Does the rule keep what it promises? Thousands of simulated experiments, with known differences.

    python -m world_modality.statistics.simulated_experiments --out_path simulated_experiments.json

Each experiment has arms that differ by a known amount, seeds that differ from each other, layouts
that are harder for all arms, harder for one arm, and harder for one seed, and is followed by
`world_modality/statistics/sequential.py` as a real one is. docs/seed_by_seed.md shows the outcome.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy
from jaxtyping import Float

from world_modality.statistics.crossed_estimate import (
    CrossedEstimate,
    crossed_estimate,
    ratio_estimate,
)
from world_modality.statistics.intervals import CONFIDENCE
from world_modality.statistics.sequential import Course, Margin, SeedPlan, follow
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError

MeasureName = Literal["success", "action_error"]
MARGINS: Mapping[MeasureName, Margin] = {
    "success": Margin(-0.03, 0.03, of_counts=True),
    "action_error": Margin(math.log(0.95), math.log(1.05), lower_is_better=True),
}
# The demo's tasks with one camera, one nearly always solved, one hardly ever; and with two cameras.
TASK_RATES = (0.15, 0.45, 0.65, 0.8, 0.95, 0.98)
EASY_TASK_RATES = (0.70, 0.73, 0.75, 0.90, 0.995, 0.999)


@dataclass(frozen=True)
class Spread:
    """What outcomes vary by, as standard deviations; success on the scale of a probit.

    Attributes:
        layout: how hard an episode is, for all arms and seeds.
        seed: how good one training of an arm is.
        arm_by_layout: how much harder an episode is for an arm.
        seed_by_layout: how much harder an episode is for one training of an arm.
        episodes_per_task: of each of the six tasks.
    """

    layout: float
    seed: float
    arm_by_layout: float
    seed_by_layout: float
    episodes_per_task: int


# The differences of seeds of a pair have a standard deviation of 4 points (4 %), and two arms agree
# in nine of ten episodes, as in docs/report.md.
SPREADS: Mapping[MeasureName, Spread] = {
    "success": Spread(1.0, 0.13, 0.15, 0.25, 20),
    "action_error": Spread(0.35, 0.03, 0.05, 0.08, 4),
}


@dataclass(frozen=True)
class Scenario:
    """Experiments that are alike but for chance.

    Attributes:
        name: what tables call it.
        measure: what is compared.
        effects: of each contrast, first arm minus second: a difference of success rates, or of
            logarithms of the action error. Contrasts share no arm.
        episodes_per_task: of each of the six tasks; 0 for those of `SPREADS`.
        task_rates: how often each task is solved by the reference.
    """

    name: str
    measure: MeasureName
    effects: tuple[float, ...]
    episodes_per_task: int = 0
    task_rates: tuple[float, ...] = TASK_RATES

    @property
    def spread(self) -> Spread:
        """What the outcomes vary by."""
        usual = SPREADS[self.measure]
        return replace(usual, episodes_per_task=self.episodes_per_task or usual.episodes_per_task)


def scenarios() -> list[Scenario]:
    """Return the default ones: nothing, little, exactly the margin, more, and several at once."""
    three, five = 0.03, math.log(1.05)
    return [
        Scenario("no difference", "success", (0.0,)),
        Scenario("half the margin", "success", (three / 2,)),
        Scenario("the margin", "success", (three,)),
        Scenario("twice the margin", "success", (2 * three,)),
        Scenario("four times the margin", "success", (4 * three,)),
        Scenario("no difference, 60 layouts a task", "success", (0.0,), 60),
        Scenario("the margin, 60 layouts a task", "success", (three,), 60),
        Scenario("three contrasts: none, none, none", "success", (0.0, 0.0, 0.0)),
        Scenario("three contrasts: none, the margin, four times", "success", (0.0, three, 0.12)),
        Scenario("no difference", "action_error", (0.0,)),
        Scenario("the margin", "action_error", (five,)),
        Scenario("twice the margin", "action_error", (2 * five,)),
        Scenario("no difference, two tasks always solved", "success", (0.0,), 0, EASY_TASK_RATES),
        Scenario("the margin, two tasks always solved", "success", (three,), 0, EASY_TASK_RATES),
    ]


@dataclass(frozen=True)
class Outcomes:
    """Of one contrast: what each seed of both arms did in each episode."""

    first: Float[np.ndarray, "S E"]
    second: Float[np.ndarray, "S E"]
    tasks: tuple[int, ...]

    def estimate(self, measure: MeasureName, num_seeds: int) -> CrossedEstimate:
        """Return first minus second, of the first seeds."""
        first, second = self.first[:num_seeds], self.second[:num_seeds]
        if measure == "success":
            return crossed_estimate(first - second, np.ones_like(first), self.tasks)
        log = ratio_estimate(first, second, self.tasks).log
        assert log is not None
        return log


def draw(rng: np.random.Generator, scenario: Scenario, effect: float, num_seeds: int) -> Outcomes:
    """Simulate two arms whose expected difference over all seeds and layouts is `effect`."""
    measure, spread = scenario.measure, scenario.spread
    tasks = np.repeat(np.arange(len(scenario.task_rates)), spread.episodes_per_task)
    layout = spread.layout * rng.normal(size=len(tasks))
    arms = []
    for _ in range(2):
        arms.append(
            layout
            + spread.seed * rng.normal(size=(num_seeds, 1))
            + spread.arm_by_layout * rng.normal(size=len(tasks))
            + spread.seed_by_layout * rng.normal(size=(num_seeds, len(tasks)))
        )
    if measure == "action_error":
        return Outcomes(np.exp(arms[0] + effect), np.exp(arms[1]), tuple(tasks.tolist()))
    thresholds, shift = _probit(scenario, effect)
    first, second = ((arm + thresholds[tasks] > 0) for arm in (arms[0] + shift, arms[1]))
    return Outcomes(first.astype(float), second.astype(float), tuple(tasks.tolist()))


def _probit(scenario: Scenario, effect: float) -> tuple[Float[np.ndarray, " T"], float]:
    """Return each task's threshold, and how far an arm has to be shifted for its effect."""
    spread, task_rates = scenario.spread, scenario.task_rates
    parts = (spread.layout, spread.seed, spread.arm_by_layout, spread.seed_by_layout)
    total = math.sqrt(sum(part**2 for part in parts))
    thresholds = total * scipy.stats.norm.ppf(task_rates)

    def excess(shift: float) -> float:
        rates = scipy.stats.norm.cdf((thresholds + shift) / total)
        return float(rates.mean() - np.mean(task_rates)) - effect

    return thresholds, float(scipy.optimize.brentq(excess, -5.0, 5.0))


def simulate(
    rng: np.random.Generator, scenario: Scenario, plan: SeedPlan
) -> tuple[dict[str, Course], dict[str, CrossedEstimate]]:
    """Follow one experiment, and return what was claimed and the estimates from all seeds."""
    measure = scenario.measure
    outcomes = {
        str(number): draw(rng, scenario, effect, plan.max_seeds)
        for number, effect in enumerate(scenario.effects)
    }
    courses = follow(
        plan,
        dict.fromkeys(outcomes, MARGINS[measure]),
        {
            name: [one.estimate(measure, count) for count in plan.looks]
            for name, one in outcomes.items()
        },
    )
    return courses, {name: one.estimate(measure, plan.max_seeds) for name, one in outcomes.items()}


@dataclass(frozen=True)
class Tally:
    """Shares over the experiments of a scenario.

    Attributes:
        scenario: its name.
        measure: what was compared.
        effects: of the contrasts.
        num_experiments: that were simulated.
        claims: how often a contrast ended so.
        wrong_difference: experiments that claim a difference that is not there, or its opposite.
        wrong_equivalence: experiments that claim it of arms that differ by the margin.
        covered: contrasts whose last interval holds the truth.
        mean_half_width: of that interval.
        mean_seeds: of a contrast.
        fixed_claims: the same of one look at all seeds, at the same error.
        fixed_covered: contrasts whose 95 % interval from all seeds holds the truth.
    """

    scenario: str
    measure: str
    effects: tuple[float, ...]
    num_experiments: int
    claims: dict[str, float]
    wrong_difference: float
    wrong_equivalence: float
    covered: float
    mean_half_width: float
    mean_seeds: float
    fixed_claims: dict[str, float]
    fixed_covered: float


def tally(scenario: Scenario, plan: SeedPlan, num_experiments: int, seed: int = 0) -> Tally:
    """Simulate a scenario's experiments and count what the rule made of them."""
    rng = np.random.default_rng(seed)
    margin = MARGINS[scenario.measure]
    fixed = SeedPlan(plan.max_seeds, plan.max_seeds, plan.error_share)
    claims: Counter[str] = Counter()
    fixed_claims: Counter[str] = Counter()
    wrong = {"difference": 0, "equivalence": 0}
    covered, fixed_covered, widths, seeds = 0, 0, [], []
    for _ in range(num_experiments):
        courses, at_the_end = simulate(rng, scenario, plan)
        truths = dict(zip(courses, scenario.effects, strict=True))
        of_fixed = follow(
            fixed,
            dict.fromkeys(courses, margin),
            {name: [estimate] for name, estimate in at_the_end.items()},
        )
        errors = {_error(course.claim, truths[name], margin) for name, course in courses.items()}
        for kind in wrong:
            wrong[kind] += kind in errors
        for name, course in courses.items():
            interval = course.looks[-1].interval
            claims[course.claim] += 1
            fixed_claims[of_fixed[name].claim] += 1
            seeds.append(course.num_seeds)
            if interval.low is not None and interval.high is not None:
                covered += interval.low <= truths[name] <= interval.high
                widths.append((interval.high - interval.low) / 2)
            whole = at_the_end[name].interval
            if whole.low is not None and whole.high is not None:
                fixed_covered += whole.low <= truths[name] <= whole.high
    num_contrasts = num_experiments * len(scenario.effects)
    return Tally(
        scenario=scenario.name,
        measure=scenario.measure,
        effects=scenario.effects,
        num_experiments=num_experiments,
        claims={name: number / num_contrasts for name, number in sorted(claims.items())},
        wrong_difference=wrong["difference"] / num_experiments,
        wrong_equivalence=wrong["equivalence"] / num_experiments,
        covered=covered / num_contrasts,
        mean_half_width=float(np.mean(widths)),
        mean_seeds=float(np.mean(seeds)),
        fixed_claims={name: count / num_contrasts for name, count in sorted(fixed_claims.items())},
        fixed_covered=fixed_covered / num_contrasts,
    )


def _error(claim: str, truth: float, margin: Margin) -> str | None:
    """Return what is wrong with a claim; None where it is right, or none is made."""
    if claim == "equivalent":
        # Rounding must not make the margin itself lie inside.
        inside = margin.low + 1e-12 < truth < margin.high - 1e-12
        return None if inside else "equivalence"
    if claim == "open":
        return None
    is_better = (truth < 0) == margin.lower_is_better and truth != 0
    return None if truth != 0 and is_better == (claim == "better") else "difference"


@dataclass(frozen=True)
class SimulationConfig:
    """Simulate experiments with known differences, and count the wrong claims of the rule."""

    out_path: Path = Path("simulated_experiments.json")
    """File that receives the counts."""
    num_experiments: int = 4000
    """Experiments of each scenario."""
    max_seeds: int = 20
    """Largest number of seeds of an arm."""
    seeds_per_round: int = 4
    """Seeds that are trained between two looks."""
    error_share: float = 0.05
    """Share of experiments that may claim a difference wrongly; the same again for equivalence."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self) -> None:
        if self.num_experiments < 1:
            raise InvalidInputError(
                f"--num_experiments must be at least 1, not {self.num_experiments}"
            )
        try:
            SeedPlan(self.max_seeds, self.seeds_per_round, self.error_share)
        except ValueError as error:
            raise InvalidInputError(str(error)) from error


def run(config: SimulationConfig) -> list[Tally]:
    """Simulate every scenario, print and write what came out."""
    plan = SeedPlan(config.max_seeds, config.seeds_per_round, config.error_share)
    print(f"looks after {', '.join(map(str, plan.looks))} seeds; margins 3 points and 5 %")
    print(_row("measure", "scenario", *_COLUMNS))
    tallies = []
    for number, scenario in enumerate(scenarios()):
        one = tally(scenario, plan, config.num_experiments, config.seed + number)
        tallies.append(one)
        print(_row(one.measure, one.scenario, *_cells(one)), flush=True)
    content: dict[str, Any] = {
        "max_seeds": config.max_seeds,
        "seeds_per_round": config.seeds_per_round,
        "error_share": config.error_share,
        "confidence": CONFIDENCE,
        "spreads": {name: vars(spread) for name, spread in SPREADS.items()},
        "scenarios": [vars(one) for one in tallies],
    }
    write_json(config.out_path, content)
    print(f"written: {config.out_path}")
    return tallies


_COLUMNS = (
    *("different", "equivalent", "open", "wrong diff.", "wrong equiv.", "covered"),
    *("half-width", "seeds", "fixed: diff.", "fixed: equiv."),
)


def _cells(one: Tally) -> tuple[str, ...]:
    factor = 100.0

    def different(claims: Mapping[str, float]) -> float:
        return claims.get("better", 0.0) + claims.get("worse", 0.0)

    shares = (
        *(different(one.claims), one.claims.get("equivalent", 0.0), one.claims.get("open", 0.0)),
        *(one.wrong_difference, one.wrong_equivalence, one.covered, one.mean_half_width),
    )
    fixed = (different(one.fixed_claims), one.fixed_claims.get("equivalent", 0.0))
    percent = [f"{factor * share:.1f} %" for share in (*shares, *fixed)]
    return (*percent[:7], f"{one.mean_seeds:.1f}", *percent[7:])


def _row(measure: str, scenario: str, *cells: str) -> str:
    return f"{measure:13}{scenario:47}" + "".join(f"{cell:>14}" for cell in cells)


def main() -> None:
    """Simulate from the command line."""
    run_cli(SimulationConfig, run)


if __name__ == "__main__":
    main()
