import dataclasses

import numpy as np
import pytest

from tests.statistics.test_crossed_estimate import errors, matrix
from world_modality.statistics.crossed_estimate import crossed_estimate, ratio_estimate
from world_modality.statistics.intervals import Interval
from world_modality.statistics.resolution import holm_adjusted, reading, resolution
from world_modality.verdict.sections.codebook import rank_correlation


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ((0.1, 0.2), "more"),
        ((-0.2, -0.1), "less"),
        ((-0.1, 0.1), "not resolved: the interval spans 0"),
        ((None, None), "not resolved: there is no interval"),
    ],
)
def test_a_reading_says_no_more_than_its_interval(bounds, said):
    interval = Interval(0.0, *bounds, 2)
    assert reading(interval, "less", "more", with_reason=True) == said
    assert reading(interval, "less", "more") == said.split(":")[0]


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
    for _ in range(200):
        values = 0.4 + matrix(rng, *size, *spread)
        p_value = crossed_estimate(values, np.ones_like(values)).p_value
        found += p_value < 0.05
    assert 0.7 < found / 200 < 0.9


def test_half_and_double_are_equally_hard_to_resolve():
    rng = np.random.default_rng(7)
    corrupted, clean = errors(rng, (3, 20), 1.2, 0.2, 0.05, 0.05)
    up = resolution(ratio_estimate(corrupted, clean).log, 0.05)
    down = resolution(ratio_estimate(clean, corrupted).log, 0.05)
    assert up.num_seeds == down.num_seeds > 3
    assert up.detectable == pytest.approx(down.detectable)


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


def test_no_effect_is_resolved_by_no_number():
    values = matrix(np.random.default_rng(8), 3, 12, 0.2, 0.2, 0.2)
    estimate = crossed_estimate(values, np.ones_like(values))
    what = resolution(dataclasses.replace(estimate, value=0.0), 0.05)
    assert what.detectable > 0
    assert (what.num_seeds, what.num_episodes) == (None, None)
