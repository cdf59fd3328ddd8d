"""Demonstrations of scripted experts, recorded as LeRobot datasets."""
