"""Train baseline B: behaviour cloning plus the loss on future world tokens."""

from dataclasses import dataclass
from typing import Literal

from world_modality.system.cli import run_cli
from world_modality.train import SeedsConfig, run


@dataclass(frozen=True)
class Config(SeedsConfig):
    """Train baseline B: behaviour cloning plus the loss on future world tokens."""

    model_type: Literal["B"] = "B"
    """Arm to train."""


def main() -> None:
    """Run the trainer from the command line."""
    run_cli(Config, run)


if __name__ == "__main__":
    main()
