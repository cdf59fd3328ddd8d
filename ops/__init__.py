"""Shell scripts and tools for the machines that run experiments."""

__version__ = "0.1.0"
