import numpy as np
import pytest
from scipy import stats

from world_modality.statistics.proportions import mcnemar_p, paired_difference, wilson_bounds


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Bentur et al. (2009) as tabulated by Fagerland, Lydersen and Laake (2014, Statistics in
        # Medicine 33:2850-2875): airway hyper-responsiveness before and after transplantation.
        ((1, 1, 7, 12), -0.507, -0.026),
    ],
)
def test_paired_difference_agrees_with_published_intervals(table, low, high):
    interval = paired_difference(*table)
    assert interval.low == pytest.approx(low, abs=5e-4)
    assert interval.high == pytest.approx(high, abs=5e-4)


@pytest.mark.parametrize(
    "shares", [(0.5, 0.2, 0.1, 0.2), (0.8, 0.1, 0.05, 0.05), (0.1, 0.15, 0.25, 0.5)]
)
def test_interval_covers_the_true_difference_as_often_as_it_says(shares):
    drawn = np.random.default_rng(0).multinomial(50, shares, size=4000)
    tables, counts = np.unique(drawn, axis=0, return_counts=True)
    truth = shares[1] - shares[2]
    intervals = [paired_difference(*map(int, table)) for table in tables]
    covered = [interval.low <= truth <= interval.high for interval in intervals]
    assert 0.935 < np.average(covered, weights=counts) < 0.985


def test_swapping_the_checkpoints_mirrors_the_interval():
    one, other = paired_difference(10, 7, 2, 5), paired_difference(10, 2, 7, 5)
    assert one.value == pytest.approx(-other.value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_unanimous_episodes_have_an_interval_of_some_width():
    for table in ((20, 0, 0, 0), (0, 0, 0, 20), (0, 20, 0, 0)):
        interval = paired_difference(*table)
        assert -1 <= interval.low < interval.high <= 1
    assert paired_difference(0, 0, 0, 0).value is None


def test_mcnemar_is_the_binomial_test_of_the_differing_episodes():
    # Two-sided: all outcomes at most as likely as 2 of 10 under a fair coin.
    tail = sum(stats.binom.pmf(k, 10, 0.5) for k in (0, 1, 2, 8, 9, 10))
    assert mcnemar_p(8, 2) == pytest.approx(tail)
    assert mcnemar_p(8, 2) == mcnemar_p(2, 8)
    assert mcnemar_p(0, 0) == 1


def test_wilson_bounds_are_the_roots_of_the_score_test():
    z = stats.norm.ppf(0.975)
    for k, n in ((0, 5), (3, 5), (42, 50), (50, 50)):
        roots = np.roots([1 + z**2 / n, -(2 * k / n + z**2 / n), (k / n) ** 2])
        np.testing.assert_allclose(wilson_bounds(k, n), sorted(roots), atol=1e-7)
