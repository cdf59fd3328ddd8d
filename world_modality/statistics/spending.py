"""What each look at growing data may cost, so that all looks together cost what was set aside."""

import functools
import math

import numpy as np
import scipy
from jaxtyping import Float

POWER_OF_TIME = 2.0
"""Early looks are cheap, the last one is nearly as sharp as a single test would be."""
_NUM_NODES = 401
_REACH = 8.0
"""In standard deviations: the normal distribution beyond it weighs 1e-15."""
_LEAST = 1e-12
"""An error below it is not worth a boundary: such a look says nothing."""


@functools.cache
def nominal_levels(fractions: tuple[float, ...], error: float) -> tuple[float, ...]:
    """Return the one-sided level of the test at each look that keeps the error over all of them.

    Lan and DeMets (1983, Biometrika 70:659-663): after a fraction t of the data error · t² may have
    been spent, the power family of Kim and DeMets (1987, Biometrika 74:149-154). The boundaries are
    those of a Brownian motion, by numerical integration (Armitage, McPherson and Rowe, 1969,
    Journal of the Royal Statistical Society A 132:235-244). A test of few seeds takes the levels,
    not the boundaries: its own distribution says where they lie (Jennison and Turnbull, 2000, Group
    Sequential Methods, section 3.8).

    Between looks at growing numbers of seeds the estimates are correlated at least as closely as
    the square root of the ratio of these numbers says, since all share their episodes; closer
    correlations make fewer crossings (Slepian, 1962, Bell System Technical Journal 41:463-501). So
    fractions of the seeds keep the error, whatever the episodes' share of the variance.

    Args:
        fractions: of the largest number of seeds, at each look; the last is 1 or less.
        error: one-sided, over all looks.

    Raises:
        ValueError: the fractions do not grow from above 0 to at most 1, or the error is none.
    """
    if not 0 < error < 1:
        raise ValueError(f"the error has to lie between 0 and 1, not {error}")
    steps = np.diff([0.0, *fractions])
    if not fractions or steps.min() <= 0 or fractions[-1] > 1:
        raise ValueError(f"fractions have to grow from above 0 to at most 1, not {fractions}")
    spent = error * np.array(fractions) ** POWER_OF_TIME
    # How much of the motion is at each place and has crossed no boundary so far.
    places, density = np.zeros(1), np.ones(1)
    levels = []
    for step, cost, now in zip(steps, np.diff([0.0, *spent]), fractions, strict=True):
        deviation = math.sqrt(step)
        boundary = _boundary(places, density, deviation, float(cost), math.sqrt(now))
        levels.append(0.0 if math.isinf(boundary) else _tail(boundary / math.sqrt(now)))
        top = min(boundary, _REACH * math.sqrt(now))
        nodes, weights = _nodes(-_REACH * math.sqrt(now), top)
        moved = scipy.stats.norm.pdf(nodes[:, None], places[None], deviation) @ density
        places, density = nodes, moved * weights
    return tuple(levels)


def _boundary(
    places: Float[np.ndarray, " n"],
    density: Float[np.ndarray, " n"],
    deviation: float,
    cost: float,
    scale: float,
) -> float:
    """Return where the motion crosses at this step with a probability of `cost`."""
    if cost < _LEAST:
        return math.inf

    def excess(boundary: float) -> float:
        return float(scipy.stats.norm.sf(boundary, places, deviation) @ density) - cost

    return float(scipy.optimize.brentq(excess, -_REACH * scale, _REACH * scale))


def _tail(z: float) -> float:
    return float(scipy.stats.norm.sf(z))


def _nodes(low: float, high: float) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return places and weights of Simpson's rule."""
    nodes = np.linspace(low, high, _NUM_NODES)
    weights = np.ones(_NUM_NODES)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return nodes, weights * (nodes[1] - nodes[0]) / 3
