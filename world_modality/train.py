"""Train an arm: `train_baseline_a.py`, `train_baseline_b.py` and `train_model_c.py` start here."""

import dataclasses
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from world_modality.policy.config import TrainConfig
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.system.output_lock import OutputLock

if TYPE_CHECKING:
    from world_modality.training.single import TrainResult


@dataclass(frozen=True)
class SeedsConfig(TrainConfig):
    """Train one arm on a precomputed cache, with one seed or with several side by side."""

    seeds: tuple[int, ...] | None = None
    """Train these seeds side by side instead of --seed, each into `<log_dir>/seed_<n>` and with the
    result of a run of its own. All are started and loaded once, and on a GPU their steps overlap.
    Takes the memory of that many policies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds is None:
            return
        if not self.seeds:
            raise InvalidInputError("--seeds needs at least one seed")
        if self.seed != type(self).__dataclass_fields__["seed"].default:
            raise InvalidInputError(f"give --seed {self.seed} or --seeds, not both")
        if self.compile:
            raise InvalidInputError("--compile trains one seed; leave it out, or give --seed")
        twice = sorted({seed for seed in self.seeds if self.seeds.count(seed) > 1})
        if twice:
            raise InvalidInputError(f"--seeds names {', '.join(map(str, twice))} more than once")
        require_at_least("seeds", min(self.seeds), 0)

    def of_seed(self, seed: int) -> TrainConfig:
        """Return the flags of the training that a seed would have on its own."""
        return dataclasses.replace(self._alone(), seed=seed, log_dir=self.log_dir / f"seed_{seed}")

    def _alone(self) -> TrainConfig:
        names = [field.name for field in dataclasses.fields(TrainConfig)]
        return TrainConfig(**{name: getattr(self, name) for name in names})

    def runs(self) -> list[TrainConfig]:
        """Return the flags of each training."""
        return [self.of_seed(seed) for seed in self.seeds or ()] or [self._alone()]


def run(config: SeedsConfig) -> "list[TrainResult]":
    """Train, or go on training, the seeds that `config` names; returns where each ended.

    Raises:
        InvalidInputError: see `world_modality.training.single.run`; or the seeds do not fit on the
            device.
        MissingFileError: the cache is incomplete.
    """
    import torch

    from world_modality.system.process_group import num_launched
    from world_modality.training.side_by_side import train_seeds
    from world_modality.training.single import run as train_one

    runs = config.runs()
    if config.seeds is None:
        return [train_one(runs[0])]
    if num_launched() > 1:
        raise InvalidInputError(
            f"--seeds trains in one process, not in {num_launched()}; start it without a launcher, "
            "or launch each --seed on its own"
        )
    try:
        with ExitStack() as locks:
            for own in runs:
                locks.enter_context(OutputLock(own.log_dir, "--log_dir"))
            return train_seeds(runs)
    except torch.OutOfMemoryError as error:
        raise InvalidInputError(
            f"{len(config.seeds)} seeds side by side do not fit on {config.device}; give fewer "
            f"--seeds at once, or a smaller --batch_size ({error})"
        ) from error


def main() -> None:
    """Train the arm that `--model_type` names."""
    run_cli(SeedsConfig, run)


if __name__ == "__main__":
    main()
