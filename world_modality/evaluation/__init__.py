"""Offline runs of a checkpoint: metrics and plots."""
