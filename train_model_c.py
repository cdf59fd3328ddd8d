"""Train model C, which reads the world token and predicts its future, or its ablation."""

from dataclasses import dataclass
from typing import Literal

from world_modality.system.cli import run_cli
from world_modality.train import SeedsConfig, run


@dataclass(frozen=True)
class Config(SeedsConfig):
    """Train model C, which reads the world token and predicts its future, or its ablation."""

    model_type: Literal["C", "C_no_world_input"] = "C"
    """Arm to train."""


def main() -> None:
    """Run the trainer from the command line."""
    run_cli(Config, run)


if __name__ == "__main__":
    main()
