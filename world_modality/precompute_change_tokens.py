"""Add change tokens to a cache: k-means on how embeddings differ over some frames."""

from dataclasses import dataclass
from pathlib import Path

from world_modality.cache.contract import Cache
from world_modality.precompute.change_step import ChangeFlags, change_step
from world_modality.system.cli import run_cli, write_config

STAGE = "precompute_change_tokens"


@dataclass(frozen=True, kw_only=True)
class ChangeTokensConfig(ChangeFlags):
    """Fit a codebook to the changes of embeddings, and add a change token per frame to a cache.

    Reads the cache and nothing else. Policies that do not predict change tokens are not affected.
    """

    dataset_name: str
    """LeRobot repository id; the cache is `<cache_dir>/<dataset_name>`."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    split: str = "train"
    """Prefix of the cache's files."""
    device: str = "auto"
    """Where --vq_backend torch computes: auto (CUDA or ROCm where there is one), cpu, cuda, …"""


@dataclass(frozen=True)
class ChangeTokensResult:
    """What a run did; the numbers themselves are in the manifest.

    Attributes:
        cache: with the change tokens.
        was_done: whether an earlier run with the same settings had written them.
    """

    cache: Cache
    was_done: bool


def run(config: ChangeTokensConfig) -> ChangeTokensResult:
    """Write the change tokens; those of an earlier run with the same settings are kept.

    Raises:
        MissingFileError, InvalidInputError: the cache is missing, incomplete or damaged, its
            episodes are too short, or a setting does not fit.
    """
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    with cache.lock(STAGE):
        was_done = change_step(cache, config, config.device)
        write_config(config, cache.folder / f"{cache.split}_{STAGE}_config.json")
    section = cache.manifest["change_codebook"]
    explained = section["explained_variance"]
    print(
        f"{'kept' if was_done else 'wrote'} change tokens over {section['horizon']} frames in "
        f"{cache.folder}: {section['num_used']} of {section['num_tokens']} codes used by training "
        f"frames, fitted to {section['fit_frames']} of them"
        + ("" if explained is None else f"; they explain {explained:.1%} of the changes' variance")
    )
    return ChangeTokensResult(cache, was_done)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(ChangeTokensConfig, run)


if __name__ == "__main__":
    main()
