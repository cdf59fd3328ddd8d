"""What training runs that go side by side have in common."""

from dataclasses import dataclass

from world_modality.system.stop_signals import StopSignals


class TrainingStoppedError(KeyboardInterrupt):
    """A run has ended on the wish of a signal, and is saved."""


@dataclass(frozen=True)
class Company:
    """What runs that are trained side by side share.

    Attributes:
        seeds: one a run.
        stop: the wish to stop, which the whole company grants at the same step.
    """

    seeds: tuple[int, ...]
    stop: StopSignals
