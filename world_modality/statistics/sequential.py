"""When to stop training seeds: the rule that says of a contrast what is known, look by look.

After each round of seeds the rule looks at every contrast that is still open. A contrast is closed
as soon as its first arm is better, worse, or equivalent within the margin; what is still open after
the last round is not resolved. Looking is paid for, as `nominal_levels` says.

Two claims can be wrong. A difference that is not there, or has the other sign: at most a share
`error_share` of experiments makes one such claim or more. An equivalence of arms that differ by the
margin or more (two one-sided tests, Schuirmann, 1987, Journal of Pharmacokinetics and
Biopharmaceutics 15:657-680): at most the same share again. No contrast can be both, so that
neither is corrected for the other. Over the contrasts each kind has Holm's correction in its
sequential form (Maurer and Bretz, 2013, Statistics in Biopharmaceutical Research 5:311-320): a
contrast that was claimed different leaves its share of the error to the tests for differences of
the others, one that was claimed equivalent to their tests for equivalence.

Everything is a function of the estimates: the same data give the same claims, however often they
are asked for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import scipy

from world_modality.statistics.crossed_estimate import CrossedEstimate, StandardError
from world_modality.statistics.intervals import Interval
from world_modality.statistics.resolution import POWER, smallest_enough
from world_modality.statistics.spending import nominal_levels

Claim = Literal["better", "worse", "equivalent", "open"]
ERROR_SHARE = 0.05


@dataclass(frozen=True)
class SeedPlan:
    """How many seeds there may be, and when they are looked at.

    Attributes:
        max_seeds: of each arm.
        seeds_per_round: that are trained between two looks; the last round may have fewer.
        error_share: of wrong claims of a kind, over all looks and contrasts.

    Raises:
        ValueError: fewer than two seeds, a round larger than the maximum, or an error that is none.
    """

    max_seeds: int
    seeds_per_round: int
    error_share: float = ERROR_SHARE

    def __post_init__(self) -> None:
        if self.max_seeds < 2:
            raise ValueError(f"max_seeds has to be at least 2, not {self.max_seeds}")
        if not 1 <= self.seeds_per_round <= self.max_seeds:
            raise ValueError(
                f"seeds_per_round has to lie between 1 and max_seeds, which is {self.max_seeds}, "
                f"not {self.seeds_per_round}"
            )
        if not 0 < self.error_share < 0.5:
            raise ValueError(
                f"error_share has to lie between 0 and 0.5, say 0.05, not {self.error_share}"
            )

    @property
    def rounds(self) -> tuple[int, ...]:
        """How many seeds there are after each round."""
        ends = range(self.seeds_per_round, self.max_seeds, self.seeds_per_round)
        return (*ends, self.max_seeds)

    @property
    def looks(self) -> tuple[int, ...]:
        """The rounds that are looked at: one seed alone says nothing of others."""
        return tuple(count for count in self.rounds if count > 1)

    def levels(self, error: float) -> tuple[float, ...]:
        """Return the one-sided level of each look that keeps an error over all of them."""
        return nominal_levels(tuple(count / self.max_seeds for count in self.looks), error)


@dataclass(frozen=True)
class Margin:
    """Which differences do not matter, on the scale of the estimates.

    Attributes:
        low: the lower end, below 0.
        high: the upper end, above 0.
        lower_is_better: whether the first arm is better where its difference is below 0.
        of_counts: whether the estimates are shares of counted episodes. These may all end alike by
            chance, so that no look takes an estimate to be surer than one more episode of one seed
            would leave it.

    Raises:
        ValueError: the margin has no width.
    """

    low: float
    high: float
    lower_is_better: bool = False
    of_counts: bool = False

    def __post_init__(self) -> None:
        if not self.low < 0 < self.high:
            raise ValueError(f"a margin has to span 0, not {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Look:
    """What one look at a contrast found.

    Attributes:
        estimate: first arm minus second, over the seeds so far.
        claim: what is known.
        interval: at the level of this look, so that the intervals of all looks hold the truth
            together in 1 - `error_share` of experiments (repeated confidence intervals, Jennison
            and Turnbull, 1989, Journal of the Royal Statistical Society B 51:305-361); not
            corrected for the number of contrasts.
    """

    estimate: CrossedEstimate
    claim: Claim
    interval: Interval


@dataclass(frozen=True)
class Course:
    """What became of a contrast: its looks, the last of which closed it or is the present one."""

    looks: tuple[Look, ...]

    @property
    def claim(self) -> Claim:
        """What is known; `open` before the first look."""
        return self.looks[-1].claim if self.looks else "open"

    @property
    def num_seeds(self) -> int:
        """Seeds that its last look had."""
        return self.looks[-1].estimate.num_seeds if self.looks else 0


def follow(
    plan: SeedPlan,
    margins: Mapping[str, Margin],
    estimates: Mapping[str, Sequence[CrossedEstimate]],
) -> dict[str, Course]:
    """Go through the looks again from the first, and return what each contrast came to.

    Args:
        plan: the looks and their price.
        margins: of every contrast, by its name.
        estimates: of every contrast, one a look, as many as there are data for. A look is taken
            when every open contrast has its estimate.
    """
    courses = {name: Course(()) for name in margins}
    for index in range(len(plan.looks)):
        still_open = [name for name in margins if courses[name].claim == "open"]
        if not still_open or any(len(estimates[name]) <= index for name in still_open):
            break
        looked_at = {name: estimates[name][index] for name in still_open}
        for name, claim in _claims(plan, index, margins, looked_at, courses).items():
            estimate = looked_at[name]
            interval = _interval(estimate, margins[name], plan.levels(plan.error_share / 2)[index])
            courses[name] = Course((*courses[name].looks, Look(estimate, claim, interval)))
    return courses


def _claims(
    plan: SeedPlan,
    index: int,
    margins: Mapping[str, Margin],
    looked_at: Mapping[str, CrossedEstimate],
    courses: Mapping[str, Course],
) -> dict[str, Claim]:
    """Return what a look claims of each open contrast; a claim may make the next one possible."""
    claims: dict[str, Claim] = dict.fromkeys(looked_at, "open")
    made = [course.claim for course in courses.values() if course.claim != "open"]
    while True:
        num_equivalent = made.count("equivalent")
        num_different = len(made) - num_equivalent
        shares = {
            "different": plan.error_share / max(len(margins) - num_different, 1),
            "equivalent": plan.error_share / max(len(margins) - num_equivalent, 1),
        }
        found = next(
            (
                (name, claim)
                for name, estimate in looked_at.items()
                if claims[name] == "open"
                and (claim := _claim(plan, index, margins[name], estimate, shares)) != "open"
            ),
            None,
        )
        if found is None:
            return claims
        name, claim = found
        claims[name] = claim
        made.append(claim)


def _claim(
    plan: SeedPlan,
    index: int,
    margin: Margin,
    estimate: CrossedEstimate,
    shares: Mapping[str, float],
) -> Claim:
    different = _interval(estimate, margin, plan.levels(shares["different"] / 2)[index])
    side = different.side()
    if side:
        return "better" if (side < 0) == margin.lower_is_better else "worse"
    level = plan.levels(shares["equivalent"])[index]
    within = _interval(estimate, margin, level)
    if within.low is None or within.high is None:
        return "open"
    # The ends, where the variance is what it would be if the truth lay at the margin.
    low, high = (
        estimate.value + math.sqrt(_variance_at(limit, estimate, margin)) * (end - estimate.value)
        for end, limit in ((within.low, margin.low), (within.high, margin.high))
    )
    return "equivalent" if margin.low < low and high < margin.high else "open"


def _variance_at(limit: float, estimate: CrossedEstimate, margin: Margin) -> float:
    """Return how much larger an estimate's variance would be, if its truth lay at this limit.

    Of counted episodes the variance is that of the pairs that differ: where by chance fewer do, the
    difference is smaller, and so is its standard error, so that too many differences would seem to
    lie within the margin. So the variance is that of the pairs as they probably are at the limit,
    whose difference is the limit's (Tango, 1998, Statistics in Medicine 17:891-908: the restricted
    maximum of the likelihood), over that of the pairs as they were seen. Seeds and layouts are
    taken to vary in proportion.
    """
    seen = estimate.seed_variance, estimate.episode_variance, estimate.residual_variance
    variance = sum(part for part in seen if part is not None)
    if not margin.of_counts or variance <= 0:  # of 0, `_interval` has taken one more episode
        return 1.0
    away, towards = abs(limit), math.copysign(1.0, limit) * estimate.value
    differing = min(variance + towards**2, 1.0)
    towards = max(min(towards, differing), -differing)
    only_second = (differing - towards) / 2
    # Tango's quadratic equation for the share of pairs that only the second solves, at the limit.
    linear = away * (2 - towards) - differing
    root = math.sqrt(linear**2 + 8 * only_second * away * (1 - away))
    only_second_there = (root - linear) / 4
    return max((2 * only_second_there + away * (1 - away)) / variance, 1.0)


def _interval(estimate: CrossedEstimate, margin: Margin, level: float) -> Interval:
    """Return the interval whose two ends are each wrong with a probability of `level`."""
    value, num_episodes = estimate.value, estimate.num_episodes
    if level == 0 or num_episodes < 2 or estimate.num_seeds < 2:
        return Interval(value, None, None, num_episodes)
    reach = _error_at(estimate, margin, estimate.num_seeds, num_episodes).reach(1 - level)
    if not math.isfinite(reach):
        return Interval(value, None, None, num_episodes)
    # Shares differ by 1 at most; to cut off what is impossible changes no claim.
    most = 1.0 if margin.of_counts else math.inf
    return Interval(value, max(value - reach, -most), min(value + reach, most), num_episodes)


def _error_at(
    estimate: CrossedEstimate, margin: Margin, num_seeds: int, num_episodes: int
) -> StandardError:
    """Return the standard error; of counts no smaller than one more episode of a seed makes it."""
    error = estimate.error_at(num_seeds, num_episodes)
    if not margin.of_counts:
        return error
    return replace(error, seeds=max(error.seeds, 1 / (num_seeds * num_episodes) ** 2))


@dataclass(frozen=True)
class Needed:
    """What would probably close a contrast that stayed open.

    Attributes:
        num_seeds: with the present episodes; None where no number does it.
        num_episodes: with the present seeds; None likewise.
    """

    num_seeds: int | None
    num_episodes: int | None


def needed_to_resolve(
    plan: SeedPlan, margin: Margin, estimate: CrossedEstimate, num_contrasts: int
) -> Needed:
    """Return what would close an open contrast, if its estimate is the truth.

    In 80 of 100 repetitions of an experiment with one look, as better, worse or equivalent,
    whichever takes less.

    Args:
        plan: its share of error.
        margin: of the contrast.
        estimate: the last one.
        num_contrasts: over which the error is shared.
    """
    share = plan.error_share / num_contrasts
    away = abs(estimate.value)
    room = min(estimate.value - margin.low, margin.high - estimate.value)
    nearest = margin.high if margin.high - estimate.value == room else margin.low
    wider = math.sqrt(_variance_at(nearest, estimate, margin))

    def closes(num_seeds: int, num_episodes: int) -> bool:
        error = _error_at(estimate, margin, num_seeds, num_episodes)
        beside = error.value * float(scipy.stats.norm.ppf(POWER))
        inside = error.value * float(scipy.stats.norm.ppf((1 + POWER) / 2))
        return (
            error.reach(1 - share / 2) + beside <= away
            or wider * error.reach(1 - share) + inside <= room
        )

    seeds, episodes = estimate.num_seeds, estimate.num_episodes
    return Needed(
        num_seeds=smallest_enough(lambda count: closes(count, episodes), seeds),
        num_episodes=smallest_enough(lambda count: closes(seeds, count), episodes),
    )
