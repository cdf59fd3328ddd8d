"""Bootstrap intervals over episodes: exact where that is possible, else by their coverage."""

import numpy as np
import pytest

from world_modality.statistics.intervals import Interval, ratio_interval, sum_by_episode


def test_sums_by_episode_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    values, positions = rng.normal(size=200), rng.integers(0, 9, 200)
    expected = [0.0] * 12
    for value, position in zip(values, positions, strict=True):
        expected[position] += value
    np.testing.assert_allclose(sum_by_episode(values, positions, 12), expected, atol=1e-12)


def test_sums_of_no_values_are_zeros():
    nothing = np.zeros(0, dtype=np.int64)
    sums = sum_by_episode(np.zeros(0), nothing, 3)
    assert (sums.dtype, sums.tolist()) == (np.float64, [0.0, 0.0, 0.0])


def test_sums_of_many_float32_values_are_exact_to_float64():
    values = np.full(200_000, 0.1, dtype=np.float32)
    total = sum_by_episode(values, np.zeros(200_000, dtype=np.int64), 1)[0]
    assert total == pytest.approx(200_000 * float(np.float32(0.1)), rel=1e-12)


def test_the_value_is_the_mean_over_frames_and_not_the_mean_of_episode_means():
    interval = ratio_interval(np.array([1.0, 90.0]), np.array([1, 99]))
    assert interval.value == pytest.approx(0.91)
    assert interval.num_episodes == 2


def test_bounds_equal_a_bootstrap_by_hand():
    rng = np.random.default_rng(1)
    counts = rng.integers(5, 50, 30)
    sums = counts * rng.uniform(0, 1, 30)
    ratios = []
    for _ in range(4000):
        drawn = rng.integers(0, 30, 30)
        ratios.append(sum(sums[i] for i in drawn) / sum(counts[i] for i in drawn))
    low, high = np.quantile(ratios, [0.025, 0.975])
    interval = ratio_interval(sums, counts)
    assert interval.low == pytest.approx(low, abs=0.1 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.1 * (high - low))


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


def test_one_episode_has_a_value_and_no_interval():
    interval = ratio_interval(np.array([3.0]), np.array([4.0]))
    assert interval == Interval(0.75, None, None, 1)
    assert str(interval) == "0.75 [no interval: 1 episode]"


@pytest.mark.parametrize(
    ("low", "high", "null", "side"),
    [
        (0.1, 0.2, 0.0, 1),
        (-0.2, -0.1, 0.0, -1),
        (-0.1, 0.1, 0.0, 0),
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


def test_no_episode_has_no_value():
    assert ratio_interval(np.zeros(0), np.zeros(0)) == Interval(None, None, None, 0)
    assert ratio_interval(np.zeros(3), np.zeros(3)) == Interval(None, None, None, 0)
    assert str(Interval(None, None, None, 0)) == "n/a"


def test_episodes_without_frames_are_left_out():
    with_empty = ratio_interval(np.array([1.0, 0.0, 3.0, 2.0]), np.array([2, 0, 4, 3]))
    assert with_empty == ratio_interval(np.array([1.0, 3.0, 2.0]), np.array([2, 4, 3]))


def test_the_seed_alone_decides():
    sums, counts = np.arange(10.0), np.full(10, 9)
    assert ratio_interval(sums, counts, 5) == ratio_interval(sums, counts, 5)
    assert ratio_interval(sums, counts, 5) != ratio_interval(sums, counts, 6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_sums_that_are_not_finite_are_refused(wrong):
    with pytest.raises(ValueError, match="not finite"):
        ratio_interval(np.array([1.0, wrong]), np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="not finite"):
        ratio_interval(np.array([1.0, 1.0]), np.array([1.0, wrong]))
