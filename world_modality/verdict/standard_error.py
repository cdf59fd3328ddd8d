"""A standard error that rests on few seeds and many episodes, and the t values that go with it."""

from dataclasses import dataclass

from scipy import optimize, stats


@dataclass(frozen=True)
class StandardError:
    """The square root of a sum of two mean squares, each with degrees of freedom of its own.

    Neither part's Student distribution is right for the sum. Cochran and Cox (1957, Experimental
    Designs, 2nd ed.) weight the two t values by the parts' shares of the variance: exact where
    one part is all, and on the wide side between. The Welch-Satterthwaite degrees of freedom, which
    are more usual, give intervals that cover 93 % where it is three seeds that matter.

    Attributes:
        value: the standard error.
        seed_share: share of the variance that rests on the seeds, in [0, 1].
        seed_freedom: their number less one; 0 with one seed, which then has no share.
        episode_freedom: number of episodes less one.
        residual_share: share that rests on both; it is part of the two others.
    """

    value: float
    seed_share: float
    seed_freedom: int
    episode_freedom: int
    residual_share: float

    def quantile(self, probability: float) -> float:
        """Return the t value that is exceeded with probability 1 - `probability`."""
        episodes = float(stats.t.ppf(probability, self.episode_freedom))
        if self.seed_share == 0:
            return episodes
        seeds = float(stats.t.ppf(probability, self.seed_freedom))
        return self.seed_share * seeds + (1 - self.seed_share) * episodes

    def p_value(self, effect: float) -> float:
        """Two-sided p value of an estimate that lies so far from no effect."""
        away = abs(effect) / self.value
        if away == 0:
            return 1.0
        tiny = 1e-12
        if away >= self.quantile(1 - tiny / 2):
            return tiny

        def excess(p: float) -> float:
            return self.quantile(1 - p / 2) - away

        return float(optimize.brentq(excess, tiny, 1.0, xtol=1e-12))

    @property
    def freedom(self) -> float:
        """Welch-Satterthwaite degrees of freedom, for the shape of the noncentral t."""
        if self.seed_share == 0:
            return self.episode_freedom
        # The shares of the two mean squares add up to 1 and the residual, which both contain.
        total = 1 + self.residual_share
        seeds, episodes = self.seed_share * total, (1 - self.seed_share) * total
        spread = seeds**2 / self.seed_freedom + episodes**2 / self.episode_freedom
        spread += self.residual_share**2 / (self.seed_freedom * self.episode_freedom)
        return float(max(1 / spread, min(self.seed_freedom, self.episode_freedom)))
