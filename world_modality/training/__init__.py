"""The trainer: configuration, loop, run, log, checkpoints beside the training."""
