"""Means and ratios over seeds and episodes: by hand where that is possible, else by coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from world_modality.statistics.crossed_estimate import (
    crossed_estimate,
    geometric_mean,
    ratio_estimate,
)
from world_modality.statistics.intervals import defined_ratio


def matrix(rng, num_seeds, num_episodes, by_seed, by_episode, residual):
    return (
        by_seed * rng.normal(size=(num_seeds, 1))
        + by_episode * rng.normal(size=(1, num_episodes))
        + residual * rng.normal(size=(num_seeds, num_episodes))
    )


def errors(rng, shape, ratio, by_seed, by_episode, residual):
    """Return corrupted and clean sums whose log ratios are normal between seeds and episodes.

    A seed's ratio is of sums over many episodes, so the mean of what these multiply is made 1.
    """
    clean = rng.gamma(20, 1, (1, shape[1])) * rng.lognormal(0, 0.1, shape)
    log = math.log(ratio) - (by_episode**2 + residual**2) / 2
    log = log + by_seed * rng.normal(size=(shape[0], 1)) + by_episode * rng.normal(size=shape[1])
    return clean * np.exp(log + residual * rng.normal(size=shape)), clean


@pytest.mark.parametrize(
    ("shape", "spread", "at_most"),
    [
        # Where one level is all the interval is exact; otherwise it errs to the wide side.
        ((3, 15), (1.0, 1.0, 1.0), 0.99),
        ((3, 60), (0.0, 0.0, 1.0), 1.0),
        ((3, 15), (1.0, 0.0, 0.1), 0.975),
        ((3, 15), (0.3, 1.0, 1.0), 1.0),
        ((5, 30), (0.5, 1.0, 1.0), 0.99),
        ((1, 15), (0.0, 1.0, 0.5), 0.975),
    ],
)
def test_the_interval_covers_a_known_effect_as_often_as_it_says(shape, spread, at_most):
    rng = np.random.default_rng(3)
    counts = np.broadcast_to(rng.integers(30, 60, shape[1]).astype(float), shape)
    num_repetitions, effect = 250, 0.7
    covered = 0
    for _ in range(num_repetitions):
        values = effect + matrix(rng, *shape, *spread)
        interval = crossed_estimate(values * counts, counts).interval
        covered += interval.low <= effect <= interval.high
    assert 0.935 <= covered / num_repetitions <= at_most


@pytest.mark.parametrize(
    ("shape", "spread", "at_most"),
    [
        # Where one level is all the interval is exact; otherwise it errs to the wide side.
        ((3, 40), (0.4, 0.0, 0.1), 0.975),
        ((2, 40), (0.4, 0.0, 0.1), 0.975),
        ((5, 40), (0.8, 0.0, 0.2), 0.975),
        ((3, 40), (0.1, 0.4, 0.2), 1.0),
        ((1, 60), (0.0, 0.3, 0.2), 0.975),
    ],
)
def test_the_interval_of_lognormal_ratios_covers_as_often_as_it_says(shape, spread, at_most):
    rng = np.random.default_rng(1)
    num_repetitions, ratio = 250, 2.5
    covered = 0
    for _ in range(num_repetitions):
        interval = ratio_estimate(*errors(rng, shape, ratio, *spread)).interval
        assert 0 < interval.low <= interval.value <= interval.high
        covered += interval.low <= ratio <= interval.high
    assert 0.925 <= covered / num_repetitions <= at_most


def test_variances_are_those_of_the_two_way_analysis_of_variance():
    values = matrix(np.random.default_rng(1), 6, 40, 1.0, 0.7, 0.5)
    estimate = crossed_estimate(values, np.ones_like(values))
    seeds, episodes = values.mean(axis=1), values.mean(axis=0)
    rest = values - seeds[:, None] - episodes[None] + values.mean()
    residual = (rest**2).sum() / (5 * 39)
    assert estimate.residual_variance == pytest.approx(residual)
    assert estimate.seed_variance == pytest.approx(seeds.var(ddof=1) - residual / 40)
    assert estimate.episode_variance == pytest.approx(episodes.var(ddof=1) - residual / 6)
    assert estimate.episode_freedom == pytest.approx(39)


def test_what_one_seed_in_one_episode_varies_by_is_counted_once():
    values = matrix(np.random.default_rng(1), 6, 40, 0.0, 1.0, 1.0)
    seeds, episodes = values.mean(axis=1).var(ddof=1) / 6, values.mean(axis=0).var(ddof=1) / 40
    estimate = crossed_estimate(values, np.ones_like(values))
    once = seeds + episodes - estimate.residual_variance / (6 * 40)
    assert estimate.error.value**2 == pytest.approx(once)
    t_seeds, t_episodes = stats.t.ppf(0.975, [5, 39])
    twice = np.sqrt(t_seeds**2 * seeds + t_episodes**2 * episodes)
    assert estimate.interval.high - estimate.value < 0.99 * twice


def test_episodes_drawn_by_task_vary_as_those_of_one_task_do():
    """The means of the tasks are far apart; which episodes were drawn of each moves little."""
    rng = np.random.default_rng(2)
    tasks = np.repeat([0, 1, 2], 10)
    of_task = np.array([-3.0, 0.0, 3.0])[tasks]
    covered, shares = 0, []
    for _ in range(250):
        values = of_task + matrix(rng, 4, 30, 0.3, 0.6, 0.6)
        plain, by_task = (
            crossed_estimate(values, np.ones_like(values), names) for names in (None, list(tasks))
        )
        assert plain.value == by_task.value
        shares.append((by_task.interval.high - by_task.value) / (plain.interval.high - plain.value))
        covered += by_task.interval.low <= 0 <= by_task.interval.high
    assert np.mean(shares) < 0.6
    assert 0.935 <= covered / 250 <= 0.99


def test_tasks_of_one_episode_each_are_taken_together():
    values = matrix(np.random.default_rng(3), 3, 6, 0.3, 1.0, 0.5)
    plain, lone, mixed = (
        crossed_estimate(values, np.ones_like(values), tasks)
        for tasks in (None, list("abcdef"), list("aaaaab"))
    )
    assert lone == plain == mixed


def test_stratified_ratios_are_narrower_where_tasks_differ():
    rng = np.random.default_rng(4)
    clean = rng.gamma(20, 1, (3, 20)) / 20
    tasks = [0] * 10 + [1] * 10
    corrupted = clean * np.where(np.array(tasks) == 0, 1.0, 4.0) * rng.lognormal(0, 0.05, (3, 20))
    plain, by_task = (ratio_estimate(corrupted, clean, one).interval for one in (None, tasks))
    assert by_task.value == plain.value
    assert math.log(by_task.high / by_task.low) < 0.5 * math.log(plain.high / plain.low)


def test_with_one_seed_the_interval_is_that_of_a_t_test_over_episodes():
    values = np.random.default_rng(2).normal(1.0, 1.0, (1, 25))
    estimate = crossed_estimate(values, np.ones_like(values))
    test = stats.ttest_1samp(values[0], 0.0)
    low, high = test.confidence_interval(0.95)
    assert estimate.interval.low == pytest.approx(low, abs=0.03)
    assert estimate.interval.high == pytest.approx(high, abs=0.03)
    assert estimate.p_value == pytest.approx(test.pvalue, rel=0.3)


def test_the_interval_spans_no_effect_exactly_where_p_is_above_5_percent():
    rng = np.random.default_rng(4)
    for _ in range(60):
        values = 0.4 + matrix(rng, 3, 12, 0.3, 0.5, 0.5)
        estimate = crossed_estimate(values, np.ones_like(values))
        interval = estimate.interval
        assert (interval.low <= 0 <= interval.high) == (estimate.p_value >= 0.05 - 1e-9)


def test_equal_errors_are_a_ratio_of_exactly_one_that_has_no_p_value():
    _, clean = errors(np.random.default_rng(5), (3, 17), 1.0, 0.0, 0.0, 0.1)
    found = ratio_estimate(clean.copy(), clean)
    interval = found.interval
    assert (interval.value, interval.low, interval.high) == (1, 1, 1)
    assert found.log.p_value is None


def test_three_seeds_are_those_of_a_t_interval_of_their_logarithms_by_hand():
    # Every episode alike: nothing but the seeds varies. 1, 2 and 4 have logarithms 0, l and 2 l
    # with l = log 2, mean l, standard deviation l, and t of 2 degrees of freedom is 4.3027.
    clean = np.ones((3, 10))
    found = ratio_estimate(np.array([[1.0], [2.0], [4.0]]) * clean, clean)
    reach = 4.3027 * math.log(2) / math.sqrt(3)
    assert found.per_seed == (1, 2, 4)
    assert found.interval.value == pytest.approx(2)
    assert found.interval.low == pytest.approx(2 * math.exp(-reach), rel=0.05)
    assert found.interval.high == pytest.approx(2 * math.exp(reach), rel=0.05)
    linear = crossed_estimate(np.array([[1.0], [2.0], [4.0]]) * clean, clean).interval
    assert linear.low < 0


def test_the_sums_of_a_seed_are_divided_and_not_its_episodes():
    found = ratio_estimate(np.array([[1.0, 30.0]]), np.array([[10.0, 10.0]]))
    assert found.interval.value == pytest.approx(31 / 20)


def test_the_other_way_round_is_the_inverse():
    corrupted, clean = errors(np.random.default_rng(2), (3, 20), 1.7, 0.3, 0.2, 0.2)
    one, other = (
        ratio_estimate(corrupted, clean).interval,
        ratio_estimate(clean, corrupted).interval,
    )
    assert one.value == pytest.approx(1 / other.value)
    assert one.low == pytest.approx(1 / other.high)
    assert one.high == pytest.approx(1 / other.low)


@pytest.mark.parametrize("wrong", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("is_clean", [True, False])
def test_a_part_that_is_zero_or_not_finite_leaves_the_ratio_undefined(wrong, is_clean):
    corrupted, clean = errors(np.random.default_rng(8), (3, 6), 2.0, 0.1, 0.1, 0.1)
    (clean if is_clean else corrupted)[1] = wrong
    found = ratio_estimate(corrupted, clean)
    assert found.log is None
    assert found.interval.value is found.interval.low is found.interval.high is None
    assert found.interval.num_episodes == 6
    assert found.per_seed[1] is None
    assert None not in (found.per_seed[0], found.per_seed[2])


def test_no_interval_where_one_episode_holds_all_the_error():
    corrupted = np.array([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    interval = ratio_estimate(corrupted, np.ones((2, 3))).interval
    assert interval.value == pytest.approx(math.sqrt(2 / 3))
    assert (interval.low, interval.high) == (None, None)


def test_one_episode_has_a_value_and_no_interval():
    interval = ratio_estimate(np.array([[3.0], [12.0]]), np.array([[1.0], [1.0]])).interval
    assert interval.value == pytest.approx(6)
    assert (interval.low, interval.high) == (None, None)


def test_two_seeds_far_apart_keep_a_bound_above_0_and_a_finite_one():
    found = ratio_estimate(np.array([[1e-60] * 4, [1e60] * 4]), np.ones((2, 4))).interval
    assert 0 < found.low < 1e-200
    assert 1e200 < found.high < math.inf


def test_a_geometric_mean_is_of_all_ratios_or_none():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1)
    assert geometric_mean([0.5, None]) is None
    assert defined_ratio(3, 2) == 1.5
    assert defined_ratio(1e-300, 1e300) is None


def test_an_interval_is_cut_to_what_is_possible_and_otherwise_left_alone():
    solved = np.array([[1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    free = crossed_estimate(solved, np.ones_like(solved))
    assert free.interval.low < 0 < 1 < free.interval.high
    share = replace(free, possible=(0.0, 1.0))
    assert (share.interval.low, share.interval.high) == (0.0, 1.0)
    assert share.interval.value == free.value
    assert share.p_value == free.p_value
    wide = replace(free, possible=(-100.0, 100.0))
    assert wide.interval == free.interval
