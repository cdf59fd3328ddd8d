"""Shell scripts and tools for the machines that run experiments."""
