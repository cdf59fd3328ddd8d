"""From a checkpoint and a frame to an action."""
