"""Numbers and findings as text; no sentence says more than its interval."""

import math

from world_modality.statistics.crossed_estimate import CrossedEstimate
from world_modality.statistics.design import UNITS, PlannedContrast
from world_modality.statistics.intervals import Interval
from world_modality.statistics.resolution import MAX_NUMBER, NOT_RESOLVED, reading
from world_modality.statistics.sequential import Look
from world_modality.verdict.findings import ClosedLoopEffect, ContrastResult, OfflineEffect
from world_modality.verdict.measures import Measure
from world_modality.verdict.planned import PlannedResult

NONE = "–"
NOT_DEFINED = "not defined"


def interval_text(interval: Interval | None, *, percent: bool = False, signed: bool = False) -> str:
    """Return `value [low, high]`; shares in percent, differences of shares in points."""
    if interval is None or interval.value is None:
        return NONE
    factor = 100 if percent else 1
    known = [abs(v) for v in (interval.value, interval.low, interval.high) if v]
    # Three digits of the largest of the three, so that all end at the same decimal.
    decimals = 1 if percent or not known else max(0, 2 - math.floor(math.log10(max(known))))

    def number(value: float) -> str:
        rounded = round(factor * value, decimals)
        sign = "+" if signed and rounded else ""
        return f"{rounded + 0.0:{sign}.{decimals}f}".replace("-", "−")

    if interval.low is None or interval.high is None:
        return number(interval.value)
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


def ratio_text(interval: Interval) -> str:
    """Return `value [low, high]` of a ratio, or that it is not defined.

    Three digits each: with one decimal for all, a low bound beside a high one would read 0.
    """
    if interval.value is None:
        return NOT_DEFINED
    if interval.low is None or interval.high is None:
        return one_ratio_text(interval.value)
    low, high = one_ratio_text(interval.low), one_ratio_text(interval.high)
    return f"{one_ratio_text(interval.value)} [{low}, {high}]"


def one_ratio_text(ratio: float | None) -> str:
    """Return a ratio in three digits."""
    if ratio is None:
        return NOT_DEFINED
    if 999.5 <= ratio < 1e6:
        return f"{ratio:.0f}"
    return f"{ratio:#.3g}".rstrip(".")


def estimate_text(estimate: CrossedEstimate | None, measure: Measure) -> str:
    """Return a mean with its interval, in the measure's unit."""
    return interval_text(None if estimate is None else estimate.interval, percent=measure.is_share)


def difference_text(result: ContrastResult) -> str:
    """Return a difference with its interval."""
    return interval_text(result.interval, percent=result.measure.is_share, signed=True)


def p_text(p_value: float | None) -> str:
    """Return a p value in three digits."""
    if p_value is None:
        return NONE
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def counted(number: int, noun: str) -> str:
    """Return `1 seed`, `3 seeds`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sizes_text(num_seeds: int, num_episodes: int) -> str:
    """Return how many seeds and episodes something rests on."""
    return f"{counted(num_seeds, 'seed')} × {counted(num_episodes, 'episode')}"


def sample_text(result: ContrastResult) -> str:
    """Return how many seeds and episodes a comparison rests on."""
    return sizes_text(result.estimate.num_seeds, result.estimate.num_episodes)


def contrast_reading(result: ContrastResult) -> str:
    """Say which arm is better; of one seed, that it holds for this one only."""
    if result.is_identity_check:
        alike = "is B to the last bit" if result.identical_arms else "differs from B"
        return f"identity check: {result.contrast.second} {alike}"
    if result.is_identical:
        return "identical in every episode"
    if result.direction == 0:
        return NOT_RESOLVED
    word = "better" if result.direction > 0 else "worse"
    limit = ", for this one seed" if len(result.seeds) == 1 else ""
    return f"{result.contrast.first} is {word}{limit}"


def offline_reading(effect: OfflineEffect) -> str:
    """Say what a wrong token does to an arm's action error."""
    if undefined := effect.per_seed.count(None):
        seeds = counted(len(effect.per_seed), "seed")
        return f"not defined: an error is 0 or not finite in {undefined} of {seeds}"
    if set(effect.per_seed) == {1.0}:
        return "no effect at all"
    return reading(effect.ratio, "lowers the error", "raises the error", null=1.0)


def closed_loop_reading(effect: ClosedLoopEffect) -> str:
    """Say what a wrong token does to an arm's success."""
    return reading(effect.difference, "lowers success", "raises success")


def finding(result: ContrastResult) -> str:
    """Return one comparison as part of a sentence."""
    numbers = sample_text(result)
    if not result.is_identical:
        unit = "points" if result.measure.is_share else result.measure.unit
        numbers = f"{difference_text(result)} {unit}, {numbers}"
        numbers += f"; Holm-corrected p {p_text(result.holm_p)}"
    return f"{result.measure.name}: {contrast_reading(result)} ({numbers})"


_CLAIMS = {
    "better": "{first} is better",
    "worse": "{first} is worse",
    "equivalent": "the same within {margin}",
}


def claim_text(result: PlannedResult) -> str:
    """Say what is known of a planned contrast: better, worse, the same, or not resolved."""
    contrast, claim = result.contrast, result.course.claim
    if claim == "open":
        return NOT_RESOLVED if result.is_at_its_end else "open: seeds are still to come"
    return _CLAIMS[claim].format(first=contrast.first, margin=margin_text(contrast))


def margin_text(contrast: PlannedContrast) -> str:
    """Return the margin with its unit."""
    unit = {"success": " points", "action_error": " %"}[contrast.measure]
    return f"{contrast.margin:g}{unit}"


def planned_interval(result: PlannedResult, look: Look | None = None) -> Interval:
    """Return a look's difference as a share; of the action error, of the second arm's.

    Args:
        result: with at least one look.
        look: one of them; None for the last.
    """
    found = (look or result.course.looks[-1]).interval
    if result.contrast.measure == "success":
        return found
    # The logarithm of a ratio of errors, as the share that the ratio lies above 1.
    value, low, high = (
        None if one is None else math.expm1(one) for one in (found.value, found.low, found.high)
    )
    return Interval(value, low, high, found.num_episodes)


def planned_difference_text(result: PlannedResult, look: Look | None = None) -> str:
    """Return the difference at a look, the last one else, with its interval."""
    if not result.course.looks:
        return NONE
    return interval_text(planned_interval(result, look), percent=True, signed=True)


def needed_text(result: PlannedResult) -> str:
    """Say what an open contrast would take, as a sentence."""
    contrast = result.contrast
    if not result.course.looks:
        return f"{contrast.name} has not been looked at."
    if not result.is_at_its_end:
        return f"{contrast.name} is open after {counted(result.course.num_seeds, 'seed')}."
    ways = [
        f"{number} {noun}"
        for number, noun in (
            (result.needed.num_seeds, "seeds with these episodes"),
            (result.needed.num_episodes, "episodes with these seeds"),
        )
        if number is not None
    ]
    seeds = counted(result.course.num_seeds, "seed")
    if not ways:
        return (
            f"{contrast.name} is not resolved after {seeds}; if the estimate is right, it takes "
            "more seeds and more episodes."
        )
    return (
        f"{contrast.name} is not resolved after {seeds}; if the estimate is right, "
        f"{' or '.join(ways)} would probably resolve it."
    )


def look_text(result: PlannedResult) -> str:
    """Return what a look found, as a line of a log."""
    unit = UNITS[result.contrast.measure]
    return (
        f"after {counted(result.course.num_seeds, 'seed')}: {result.contrast.pair}: "
        f"{claim_text(result)} ({planned_difference_text(result)} {unit})"
    )


def resolution_cells(result: ContrastResult) -> tuple[str, str, str]:
    """Return the smallest detectable difference, and the seeds and episodes that are needed."""
    what = result.resolution
    if what is None:
        return ("nothing varies", NONE, NONE)
    factor, unit = (100, "points") if result.measure.is_share else (1, result.measure.unit)
    if result.is_identity_check:
        return (NONE, "see C − B", "see C − B")
    detectable = f"{factor * what.detectable:.3g} {unit}"
    if result.direction:
        return (detectable, "resolved", "resolved")
    if result.estimate.value == 0:
        return (detectable, "the estimate is 0", "the estimate is 0")
    from_one_seed = result.estimate.seed_variance is None
    seeds = "unknown from one seed" if from_one_seed else _needed(what.num_seeds)
    return (detectable, seeds, _needed(what.num_episodes))


def _needed(number: int | None) -> str:
    return f"no number up to {MAX_NUMBER}" if number is None else str(number)
