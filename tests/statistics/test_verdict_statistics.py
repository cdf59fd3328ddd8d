import dataclasses

import numpy as np
import pytest
from scipy import stats

from world_modality.statistics.crossed_estimate import crossed_estimate
from world_modality.statistics.resolution import holm_adjusted, resolution
from world_modality.verdict.sections.codebook import rank_correlation


def matrix(rng, num_seeds, num_episodes, by_seed, by_episode, residual):
    return (
        by_seed * rng.normal(size=(num_seeds, 1))
        + by_episode * rng.normal(size=(1, num_episodes))
        + residual * rng.normal(size=(num_seeds, num_episodes))
    )


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
    for repetition in range(num_repetitions):
        values = effect + matrix(rng, *shape, *spread)
        interval = crossed_estimate(values * counts, counts, seed=repetition).interval
        covered += interval.low <= effect <= interval.high
    assert 0.935 <= covered / num_repetitions <= at_most


def test_percentiles_of_three_resampled_seeds_cover_too_little():
    rng = np.random.default_rng(0)
    drawn = rng.integers(3, size=(400, 3))
    covered = 0
    for _ in range(400):
        means = rng.normal(size=3)[drawn].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        covered += low <= 0 <= high
    assert 0.6 < covered / 400 < 0.8


def test_bootstrap_variances_are_those_of_the_two_way_analysis_of_variance():
    rng = np.random.default_rng(1)
    values = matrix(rng, 6, 40, 1.0, 0.7, 0.5)
    estimate = crossed_estimate(values, np.ones_like(values))
    seeds, episodes = values.mean(axis=1), values.mean(axis=0)
    rest = values - seeds[:, None] - episodes[None] + values.mean()
    residual = (rest**2).sum() / (5 * 39)
    assert estimate.residual_variance == pytest.approx(residual, rel=0.1)
    assert estimate.seed_variance == pytest.approx(seeds.var(ddof=1) - residual / 40, rel=0.1)
    expected = episodes.var(ddof=1) - residual / 6
    assert estimate.episode_variance == pytest.approx(expected, rel=0.15)


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


def test_an_exact_tie_has_no_p_value():
    nothing = np.zeros((3, 10))
    estimate = crossed_estimate(nothing, np.ones_like(nothing))
    assert (estimate.value, estimate.p_value) == (0, None)
    assert (estimate.interval.low, estimate.interval.high) == (0, 0)


def test_holm_agrees_with_the_reference():
    # statsmodels.stats.multitest.multipletests(p, method="holm")[1], version 0.15.0.
    p = [0.01, 0.04, 0.03, 0.005, 0.6, 0.03]
    expected = [0.05, 0.12, 0.12, 0.03, 0.6, 0.12]
    assert holm_adjusted(p) == pytest.approx(expected)
    assert holm_adjusted([]) == []
    with pytest.raises(ValueError, match="probabilities"):
        holm_adjusted([0.5, 1.5])


def test_holm_keeps_the_family_wise_error():
    p = np.random.default_rng(6).random((4000, 7))
    wrong = [min(holm_adjusted(row.tolist())) < 0.05 for row in p]
    assert 0.04 < np.mean(wrong) < 0.06


@pytest.mark.parametrize("more", ["seeds", "episodes"])
def test_the_sample_size_that_is_named_resolves_the_effect_four_times_in_five(more):
    rng = np.random.default_rng(7)
    spread = (0.25, 0.2, 0.3) if more == "seeds" else (0.0, 1.0, 0.0)
    shape = (3, 12) if more == "seeds" else (1, 12)
    # The numbers are those of an estimate whose variances happen to be the true ones.
    pilot = None
    while pilot is None or abs(pilot.value) < 0.1:
        values = 0.4 + matrix(rng, *shape, *spread)
        pilot = crossed_estimate(values, np.ones_like(values))
    true = dataclasses.replace(
        pilot,
        value=0.4,
        seed_variance=None if shape[0] == 1 else spread[0] ** 2,
        episode_variance=spread[1] ** 2,
        residual_variance=spread[2] ** 2,
    )
    needed = resolution(true, 0.05)
    size = (needed.num_seeds, shape[1]) if more == "seeds" else (shape[0], needed.num_episodes)
    found = 0
    for repetition in range(200):
        values = 0.4 + matrix(rng, *size, *spread)
        p_value = crossed_estimate(values, np.ones_like(values), seed=repetition).p_value
        found += p_value < 0.05
    assert 0.7 < found / 200 < 0.9


def test_no_effect_is_resolved_by_no_number():
    rng = np.random.default_rng(8)
    values = matrix(rng, 3, 12, 0.2, 0.2, 0.2)
    values -= values.mean()
    estimate = crossed_estimate(values, np.ones_like(values))
    what = resolution(estimate, 0.05)
    assert what.detectable > 0
    if estimate.value == 0:
        assert (what.num_seeds, what.num_episodes) == (None, None)


def test_rank_correlation_covers_and_needs_variation():
    rng = np.random.default_rng(9)
    rho, n = 0.5, 30
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's, of a bivariate normal
    covered = 0
    for _ in range(400):
        x, noise = rng.normal(size=(2, n))
        interval = rank_correlation(x.tolist(), (rho * x + np.sqrt(1 - rho**2) * noise).tolist())
        covered += interval.low <= truth <= interval.high
    assert 0.92 < covered / 400 < 0.98
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).value is None
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).low is None
