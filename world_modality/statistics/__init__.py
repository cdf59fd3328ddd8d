"""Intervals, proportions, crossed estimates and power: numpy and scipy only."""
