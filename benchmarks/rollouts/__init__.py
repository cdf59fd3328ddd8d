"""Closed-loop evaluation: one loop and one policy for every benchmark suite."""
