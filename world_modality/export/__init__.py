"""A checkpoint as a folder that LeRobot loads."""
