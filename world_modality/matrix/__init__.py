"""The experiment file, its jobs, their runner."""
