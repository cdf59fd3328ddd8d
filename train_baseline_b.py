"""Train baseline B: behaviour cloning plus the loss on future world tokens."""

from dataclasses import dataclass
from typing import Literal

from world_modality.cli import run_cli
from world_modality.train import run
from world_modality.train_config import TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train baseline B: behaviour cloning plus the loss on future world tokens."""

    model_type: Literal["B"] = "B"
    """The arm."""


def main() -> None:
    """Run the trainer from the command line."""
    run_cli(Config, run)


if __name__ == "__main__":
    main()
