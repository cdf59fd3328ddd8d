"""Holm's correction for a family of comparisons."""

from collections.abc import Sequence


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return adjusted p values that keep the family-wise error below the level they are read at.

    Step-down Bonferroni (Holm, 1979, Scandinavian Journal of Statistics 6:65-70): the i-th smallest
    of m is multiplied by m - i + 1, and none falls below a smaller one's.

    Raises:
        ValueError: a value is no probability.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"expected probabilities, got {list(p_values)}")
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
