"""A LeRobot dataset as columns, frames, episodes and their split."""
