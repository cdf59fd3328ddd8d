"""Bootstrap intervals over episodes: exact where that is possible, else by their coverage."""

import numpy as np
import pytest

from world_modality.statistics.intervals import Interval, ratio_interval, sum_by_episode


@pytest.mark.parametrize(("num_values", "value"), [(0, 0.0), (200, -1.5), (200_000, 0.1)])
def test_sums_by_episode_are_exact_to_float64_for_any_number_of_float32_values(num_values, value):
    positions = np.arange(num_values) % 2
    sums = sum_by_episode(np.full(num_values, value, dtype=np.float32), positions, 3)
    assert sums.dtype == np.float64
    expected = num_values / 2 * float(np.float32(value))
    np.testing.assert_allclose(sums, [expected, expected, 0.0], rtol=1e-12)


def test_the_value_is_the_mean_over_frames_and_not_the_mean_of_episode_means():
    interval = ratio_interval(np.array([1.0, 90.0]), np.array([1, 99]))
    assert interval.value == pytest.approx(0.91)
    assert interval.num_episodes == 2


def test_about_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        counts = rng.integers(20, 60, 40)
        # Frames of one episode share its difficulty: the episode is what is independent.
        sums = rng.binomial(counts, rng.beta(3, 3, 40)).astype(np.float64)
        interval = ratio_interval(sums, counts, seed=trial)
        covered += interval.low <= 0.5 <= interval.high
    # Binomial(200, 0.95) has standard deviation 3; a percentile bootstrap of 40 runs a little low.
    assert 176 <= covered <= 199


def test_equal_sums_give_a_ratio_of_exactly_one():
    sums = np.random.default_rng(3).uniform(1, 2, 25)
    interval = ratio_interval(sums, sums.copy())
    assert (interval.value, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_paired_sums_give_a_narrower_interval_than_unpaired_ones():
    rng = np.random.default_rng(4)
    clean = rng.lognormal(0, 1, 60)
    corrupted = clean * rng.normal(1.05, 0.01, 60)
    paired = ratio_interval(corrupted, clean)
    unpaired = ratio_interval(rng.permutation(corrupted), clean)
    assert 1.04 < paired.low < paired.high < 1.06
    assert unpaired.high - unpaired.low > 10 * (paired.high - paired.low)


@pytest.mark.parametrize(
    ("low", "high", "null", "side"),
    [
        (0.1, 0.2, 0.0, 1),
        (-0.2, -0.1, 0.0, -1),
        (0.0, 0.1, 0.0, 0),
        (-0.1, 0.0, 0.0, 0),
        (1.1, 2.0, 1.0, 1),
        (0.5, 0.9, 1.0, -1),
        (0.5, 1.1, 1.0, 0),
        (None, None, 0.0, 0),
    ],
)
def test_an_interval_resolves_a_side_where_it_leaves_no_effect_out(low, high, null, side):
    assert Interval(0.0, low, high, 2).side(null) == side


@pytest.mark.parametrize(
    ("sums", "counts", "expected", "text"),
    [
        ([], [], Interval(None, None, None, 0), "n/a"),
        ([0.0, 0.0], [0, 0], Interval(None, None, None, 0), "n/a"),
        ([3.0, 0.0], [4, 0], Interval(0.75, None, None, 1), "0.75 [no interval: 1 episode]"),
    ],
)
def test_episodes_without_frames_are_left_out_and_one_alone_has_no_interval(
    sums, counts, expected, text
):
    interval = ratio_interval(np.array(sums, dtype=float), np.array(counts, dtype=int))
    assert interval == expected
    assert str(interval) == text


def test_the_seed_alone_decides():
    sums, counts = np.arange(10.0), np.full(10, 9)
    assert ratio_interval(sums, counts, 5) == ratio_interval(sums, counts, 5)
    assert ratio_interval(sums, counts, 5) != ratio_interval(sums, counts, 6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_sums_that_are_not_finite_are_refused(wrong, place):
    sums = np.ones((2, 2))
    sums[place, 1] = wrong
    with pytest.raises(ValueError, match="not finite"):
        ratio_interval(*sums)
