"""Closed-loop benchmarks: recording demonstrations and rolling out policies in real simulators."""
