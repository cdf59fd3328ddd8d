"""A standard error that rests on few seeds and many episodes, and how far it reaches."""

import math
from dataclasses import dataclass

from scipy import optimize, stats

_SMALLEST_P = 1e-12


@dataclass(frozen=True)
class StandardError:
    """Of an estimate over seeds and episodes: two mean squares, each with its own freedom.

    Attributes:
        seeds: variance of the mean over seeds; 0 with one seed.
        episodes: variance of the mean over episodes.
        residual: what both of these contain, counted once.
        seed_freedom: number of seeds less one.
        episode_freedom: number of episodes less one.
    """

    seeds: float
    episodes: float
    residual: float
    seed_freedom: int
    episode_freedom: int

    @property
    def value(self) -> float:
        """The standard error."""
        return math.sqrt(self.seeds + self.episodes - self.residual)

    def reach(self, probability: float) -> float:
        """Return how far from the truth the estimate lies at most, with at least this probability.

        One-sided. No Student distribution is right for the sum of two mean squares; the root of
        the sum of each one's t² times its variance never covers less than it says (Banerjee, 1960,
        Sankhya 22:357-358), whichever of the two is large. The residual is left in both, which
        errs to the same side. Welch-Satterthwaite covers 93 % where it is three seeds that matter.
        """
        episodes = float(stats.t.ppf(probability, self.episode_freedom)) ** 2 * self.episodes
        if self.seed_freedom == 0:
            return math.sqrt(episodes)
        seeds = float(stats.t.ppf(probability, self.seed_freedom)) ** 2 * self.seeds
        return math.sqrt(seeds + episodes)

    def p_value(self, effect: float) -> float:
        """Two-sided p value of an estimate that lies so far from no effect."""
        away = abs(effect)
        if away == 0:
            return 1.0
        if away >= self.reach(1 - _SMALLEST_P / 2):
            return _SMALLEST_P

        def excess(p: float) -> float:
            return self.reach(1 - p / 2) - away

        return float(optimize.brentq(excess, _SMALLEST_P, 1.0, xtol=_SMALLEST_P))

    @property
    def freedom(self) -> float:
        """Welch-Satterthwaite degrees of freedom, for the shape of the noncentral t."""
        if self.seed_freedom == 0:
            return self.episode_freedom
        total = self.seeds + self.episodes
        parts = self.seeds**2 / self.seed_freedom + self.episodes**2 / self.episode_freedom
        return total**2 / parts
