"""Train model C, which reads the world token and predicts its future, or its ablation."""

from dataclasses import dataclass
from typing import Literal

from world_modality.cli import run_cli
from world_modality.train import run
from world_modality.train_config import TrainConfig


@dataclass(frozen=True)
class Config(TrainConfig):
    """Train model C, which reads the world token and predicts its future, or its ablation."""

    model_type: Literal["C", "C_no_world_input"] = "C"
    """The arm."""


if __name__ == "__main__":
    run_cli(Config, run)
