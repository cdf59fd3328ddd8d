"""The rule that stops: what it claims, when, and that it does not claim too often."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import optimize

from tests.statistics.test_crossed_estimate import matrix
from world_modality.statistics.crossed_estimate import CrossedEstimate, crossed_estimate
from world_modality.statistics.sequential import (
    Margin,
    SeedPlan,
    _variance_at,
    follow,
    needed_to_resolve,
)
from world_modality.statistics.simulated_experiments import (
    MARGINS,
    Scenario,
    SimulationConfig,
    run,
    scenarios,
    tally,
)

PLAN = SeedPlan(max_seeds=12, seeds_per_round=3)
MARGIN = Margin(-1.0, 1.0)


def estimates(difference, spread=(0.2, 0.2, 0.2), seed=0, looks=PLAN.looks):
    values = difference + matrix(np.random.default_rng(seed), max(looks), 30, *spread)
    return [crossed_estimate(values[:n], np.ones((n, 30))) for n in looks]


def course(difference, margin=MARGIN, plan=PLAN, **changes):
    looks = estimates(difference, looks=plan.looks, **changes)
    return follow(plan, {"x": margin}, {"x": looks})["x"]


def test_rounds_end_at_the_largest_number_of_seeds():
    assert SeedPlan(10, 4).rounds == SeedPlan(10, 4).looks == (4, 8, 10)
    assert SeedPlan(3, 1).rounds == (1, 2, 3)
    assert SeedPlan(3, 1).looks == (2, 3)
    assert SeedPlan(6, 6).looks == (6,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 1), "max_seeds has to be at least 2"),
        ((4, 5), "between 1 and max_seeds, which is 4, not 5"),
        ((4, 0), "between 1 and max_seeds"),
        ((4, 2, 0.0), "error_share has to lie between 0 and 0.5"),
        ((4, 2, 0.7), "error_share"),
    ],
)
def test_a_plan_that_cannot_be_kept_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SeedPlan(*arguments)


@pytest.mark.parametrize("ends", [(0.0, 0.0), (0.1, 1.0), (-1.0, 0.0)])
def test_a_margin_without_width_is_refused(ends):
    with pytest.raises(ValueError, match="has to span 0"):
        Margin(*ends)


@pytest.mark.parametrize(
    ("difference", "claim"), [(5.0, "better"), (-5.0, "worse"), (0.0, "equivalent")]
)
def test_a_clear_case_is_closed_at_the_first_look_that_can_close_it(difference, claim):
    found = course(difference)
    assert found.claim == claim
    assert found.num_seeds < 12
    assert all(look.claim == "open" for look in found.looks[:-1])


def test_of_errors_the_lower_one_is_better():
    assert course(-5.0, Margin(-1.0, 1.0, lower_is_better=True)).claim == "better"
    assert course(5.0, Margin(-1.0, 1.0, lower_is_better=True)).claim == "worse"


def test_what_stays_open_has_been_looked_at_every_time():
    found = course(1.0, spread=(3.0, 0.2, 0.2))
    assert found.claim == "open"
    assert [look.estimate.num_seeds for look in found.looks] == [3, 6, 9, 12]


def test_what_was_closed_stays_closed_whatever_comes_later():
    early, late = estimates(5.0), estimates(-5.0)
    closed = follow(PLAN, {"x": MARGIN}, {"x": early})["x"]
    number = len(closed.looks)
    again = follow(PLAN, {"x": MARGIN}, {"x": [*early[:number], *late[number:]]})["x"]
    assert again == closed


def test_half_of_the_looks_give_the_same_beginning():
    whole = course(1.0, spread=(3.0, 0.2, 0.2))
    looks = estimates(1.0, spread=(3.0, 0.2, 0.2))
    assert follow(PLAN, {"x": MARGIN}, {"x": looks[:2]})["x"].looks == whole.looks[:2]
    assert follow(PLAN, {"x": MARGIN}, {"x": []})["x"].claim == "open"


def test_contrasts_share_the_error_and_a_claim_leaves_its_share_to_the_others():
    """Alone the weak contrast is closed; beside open ones it is not; beside closed ones it is."""
    plan = SeedPlan(12, 12)
    weak = estimates(0.7, spread=(1.0, 0.2, 0.2), looks=(12,), seed=7)
    assert 0.02 < weak[0].p_value < 0.05
    wide = Margin(-0.01, 0.01)
    strong, noise = (estimates(one, looks=(12,), spread=(1.0, 0.2, 0.2)) for one in (9.0, 0.0))
    for others, claim in (([], "better"), ([noise, noise], "open"), ([strong, strong], "better")):
        given = {"weak": weak, **{str(i): one for i, one in enumerate(others)}}
        found = follow(plan, dict.fromkeys(given, wide), given)
        assert found["weak"].claim == claim


def test_a_contrast_claimed_equivalent_leaves_nothing_to_tests_for_differences():
    plan = SeedPlan(12, 12)
    weak = estimates(0.7, spread=(1.0, 0.2, 0.2), looks=(12,), seed=7)
    given = {"weak": weak, "same": estimates(0.0, looks=(12,))}
    found = follow(plan, {"weak": Margin(-0.01, 0.01), "same": MARGIN}, given)
    assert {name: one.claim for name, one in found.items()} == {
        "weak": "open",
        "same": "equivalent",
    }


def test_a_look_waits_for_every_open_contrast():
    looks = estimates(1.0, spread=(3.0, 0.2, 0.2))
    courses = follow(PLAN, {"x": MARGIN, "y": MARGIN}, {"x": looks, "y": looks[:2]})
    assert [len(one.looks) for one in courses.values()] == [2, 2]
    closed = follow(PLAN, {"x": MARGIN, "y": MARGIN}, {"x": looks, "y": estimates(5.0)[:2]})
    assert [len(one.looks) for one in closed.values()] == [4, 1]


def test_episodes_that_happen_to_end_alike_are_no_certainty():
    same = [crossed_estimate(np.zeros((n, 30)), np.ones((n, 30))) for n in PLAN.looks]
    assert follow(PLAN, {"x": MARGIN}, {"x": same})["x"].num_seeds == 3
    careful = Margin(-0.03, 0.03, of_counts=True)
    assert follow(PLAN, {"x": careful}, {"x": same})["x"].num_seeds > 3


def test_the_seeds_that_are_named_close_the_contrast_four_times_in_five():
    rng = np.random.default_rng(5)
    spread = (1.0, 0.1, 0.5)
    values = matrix(rng, 6, 30, *spread)
    pilot = dataclasses.replace(
        crossed_estimate(values, np.ones_like(values)),
        **{"value": 0.0, "seed_variance": 1.0, "episode_variance": 0.01},
        residual_variance=0.25,
    )
    needed = needed_to_resolve(PLAN, MARGIN, pilot, 1).num_seeds
    plan = SeedPlan(needed, needed)
    closed = 0
    for _ in range(200):
        values = matrix(rng, needed, 30, *spread)
        look = [crossed_estimate(values, np.ones_like(values))]
        closed += follow(plan, {"x": MARGIN}, {"x": look})["x"].claim != "open"
    assert 0.72 < closed / 200 < 0.92


def test_where_episodes_are_what_is_short_no_number_of_seeds_is_named():
    pilot = dataclasses.replace(
        estimates(0.0)[-1], value=0.0, seed_variance=0.01, episode_variance=400.0
    )
    found = needed_to_resolve(PLAN, MARGIN, pilot, 1)
    assert found.num_seeds is None
    assert 400 < found.num_episodes < 100_000
    short_of_seeds = dataclasses.replace(pilot, seed_variance=400.0, episode_variance=0.01)
    other = needed_to_resolve(PLAN, MARGIN, short_of_seeds, 1)
    assert 12 < other.num_seeds < 100_000
    assert other.num_episodes is None


@pytest.mark.parametrize(
    ("measure", "effect"),
    [("success", 0.0), ("success", 0.03), ("action_error", MARGINS["action_error"].high)],
)
def test_wrong_claims_are_as_rare_over_all_looks_as_the_plan_says(measure, effect):
    """Where each kind is most frequent: without a difference, and at the margin itself.

    Without a price for looking there would be 8 to 10 of 100 wrong.
    """
    found = tally(Scenario("", measure, (effect,)), SeedPlan(20, 4), 300)
    assert 0.01 < found.wrong_difference + found.wrong_equivalence <= 0.06
    assert found.covered >= 0.94


def test_a_large_difference_is_found_in_half_of_the_seeds():
    found = tally(Scenario("", "success", (0.12,)), SeedPlan(20, 4), 40)
    assert found.claims == {"better": 1.0}
    assert found.mean_seeds < 10


def test_the_script_writes_what_it_prints(tmp_path, capsys):
    out_path = tmp_path / "counts.json"
    tallies = run(SimulationConfig(out_path, num_experiments=2, max_seeds=4, seeds_per_round=2))
    assert len(tallies) == len(scenarios())
    printed = capsys.readouterr().out
    assert all(one.scenario in printed for one in tallies)
    assert '"wrong_equivalence"' in out_path.read_text("utf-8")


@pytest.mark.parametrize(("only_first", "only_second"), [(0.05, 0.03), (0.034, 0.034), (0.0, 0.1)])
@pytest.mark.parametrize("limit", [0.03, -0.03])
def test_at_the_margin_counts_vary_as_the_likeliest_pairs_there_do(only_first, only_second, limit):
    def at_limit(share):
        """Minus the likelihood where that share of the pairs is solved by the second alone."""
        neither = 1 - 2 * share - limit
        terms = [(only_first, share + limit), (only_second, share)]
        terms.append((1 - only_first - only_second, neither))
        return -sum(count * math.log(chance) for count, chance in terms if count)

    found = optimize.minimize_scalar(
        at_limit,
        bounds=(max(0.0, -limit) + 1e-12, (1 - limit) / 2 - 1e-12),
        method="bounded",
        options={"xatol": 1e-12},
    )
    difference = only_first - only_second
    seen = only_first + only_second - difference**2
    there = 2 * found.x + limit - limit**2
    estimate = CrossedEstimate(difference, 0.2 * seen, 0.3 * seen, 0.5 * seen, 20, 120, 114.0)
    counts = Margin(-0.03, 0.03, of_counts=True)
    assert _variance_at(limit, estimate, counts) == pytest.approx(max(there / seen, 1.0), abs=1e-4)
    assert _variance_at(limit, estimate, Margin(-0.03, 0.03)) == 1.0


def test_arms_that_seldom_differ_are_not_called_alike_because_they_happen_to_agree():
    plan = SeedPlan(20, 20)
    # Inside of the margin by the pairs that were seen, not by those that the margin would have.
    seldom = CrossedEstimate(0.0, 0.0, 0.003, 0.007, 20, 120, 114.0)
    of_counts, of_errors = Margin(-0.01, 0.01, of_counts=True), Margin(-0.01, 0.01)
    claims = [
        follow(plan, {"": margin}, {"": [seldom]})[""].claim for margin in (of_errors, of_counts)
    ]
    assert claims == ["equivalent", "open"]


def test_the_interval_of_a_difference_of_shares_ends_at_one():
    wide = CrossedEstimate(0.1, 0.2, 0.1, 0.1, 2, 10, 9.0)
    plan = SeedPlan(2, 2)
    (of_counts,), (of_errors,) = (
        follow(plan, {"": Margin(-0.03, 0.03, of_counts=counted)}, {"": [wide]})[""].looks
        for counted in (True, False)
    )
    assert (of_counts.interval.low, of_counts.interval.high) == (-1.0, 1.0)
    assert of_errors.interval.low < -1
    assert of_errors.interval.high > 1


def test_of_counts_more_seeds_are_named_since_they_vary_more_at_the_margin():
    seldom = CrossedEstimate(0.0, 0.001, 0.002, 0.02, 8, 120, 114.0)
    plan = SeedPlan(20, 4)
    of_counts, of_errors = (
        needed_to_resolve(plan, Margin(-0.02, 0.02, of_counts=counted), seldom, 1).num_seeds
        for counted in (True, False)
    )
    assert of_counts > of_errors > 8


def test_episodes_that_all_ended_alike_name_more_seeds_than_there_are():
    alike = CrossedEstimate(0.0, 0.0, 0.0, 0.0, 2, 3, 2.0)
    counts = Margin(-0.03, 0.03, of_counts=True)
    plan = SeedPlan(2, 2)
    assert follow(plan, {"": counts}, {"": [alike]})[""].claim == "open"
    assert needed_to_resolve(plan, counts, alike, 1).num_seeds > 2
