"""What looks cost: against published boundaries, and by walking."""

import numpy as np
import pytest
from scipy import stats

from world_modality.statistics import spending
from world_modality.statistics.spending import nominal_levels

FIFTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def boundaries(levels):
    return [float(stats.norm.isf(level)) for level in levels]


def test_one_look_costs_what_a_single_test_does():
    assert nominal_levels((1.0,), 0.025) == pytest.approx((0.025,))


def test_equal_costs_give_the_boundaries_that_are_tabulated(monkeypatch):
    # Kim and DeMets (1987), table 1, and gsDesign's sfPower(0.025, rho): five looks, one-sided.
    monkeypatch.setattr(spending, "POWER_OF_TIME", 1.0)
    found = boundaries(nominal_levels.__wrapped__(FIFTHS, 0.025))
    assert found == pytest.approx([2.576, 2.492, 2.411, 2.339, 2.276], abs=2e-3)


@pytest.mark.parametrize("fractions", [FIFTHS, (0.1, 0.2, 0.9), tuple(np.arange(1, 11) / 10)])
@pytest.mark.parametrize("error", [0.05, 0.025, 0.05 / 6])
def test_a_walk_without_drift_crosses_as_often_as_was_set_aside(fractions, error):
    rng = np.random.default_rng(0)
    steps = np.sqrt(np.diff([0.0, *fractions]))
    walks = np.cumsum(rng.normal(size=(200_000, len(steps))) * steps, axis=1)
    levels = nominal_levels(fractions, error)
    crossed = (walks / np.sqrt(fractions) > boundaries(levels)).any(axis=1).mean()
    assert crossed == pytest.approx(error * fractions[-1] ** 2, rel=0.06)


def test_estimates_that_share_their_episodes_cross_less_often():
    rng = np.random.default_rng(1)
    counts = np.array([4, 8, 12, 16, 20])
    own = np.cumsum(rng.normal(size=(100_000, 20)), axis=1)[:, counts - 1] / counts
    estimates = own + 0.3 * rng.normal(size=(100_000, 1))
    scores = estimates / np.sqrt(1 / counts + 0.3**2)
    levels = nominal_levels(tuple(counts / 20), 0.05)
    assert (scores > boundaries(levels)).any(axis=1).mean() < 0.05


def test_a_look_that_costs_nothing_claims_nothing():
    assert nominal_levels((1e-8, 1.0), 0.05)[0] == 0.0


@pytest.mark.parametrize("fractions", [(), (0.0, 1.0), (0.5, 0.5), (0.5, 1.2)])
def test_fractions_that_do_not_grow_to_one_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions have to grow"):
        nominal_levels(fractions, 0.05)
    with pytest.raises(ValueError, match="between 0 and 1"):
        nominal_levels((1.0,), 0.0)
