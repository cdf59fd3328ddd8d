"""Upload a cache to the hub, from where others train on it without decoding a frame."""

from dataclasses import dataclass
from pathlib import Path

from world_modality.cache.contract import Cache, require_arrays
from world_modality.cache.dataset_card import CARD_FILE, dataset_card
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError
from world_modality.system.hub import Upload, upload


@dataclass(frozen=True)
class PushCacheConfig:
    """Upload a cache: its arrays, its manifest, and a card that says what they are."""

    dataset_name: str
    """LeRobot repository id; the cache is read from `<cache_dir>/<dataset_name>`."""
    repo_id: str
    """Dataset repository of the hub that receives it, such as user/name; made where it is not
    there."""
    cache_dir: Path = Path("cache")
    """Folder of all caches."""
    split: str = "train"
    """Prefix of the cache's files."""
    private: bool = False
    """Make a new repository of the hub a private one."""
    license: str | None = None
    """Licence of the data in the card, as the hub spells it; without it the card names none."""


def run(config: PushCacheConfig) -> Upload:
    """Check every array of the cache, and upload it as one commit.

    Raises:
        MissingFileError: there is no cache, or an array is missing.
        InvalidInputError: an array is damaged, or the hub does not take it.
    """
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    names = list(cache.manifest["arrays"])
    require_arrays(cache, dict.fromkeys(["embeddings", "world_tokens", *names]))
    card = dataset_card(cache, config.repo_id, config.license)
    arrays = [cache.array_path(name) for name in names]
    num_bytes = sum(path.stat().st_size for path in arrays)
    print(f"uploading {num_bytes / 1e6:.1f} MB of {cache.folder} to {config.repo_id}")
    done = upload(
        config.repo_id,
        "dataset",
        [
            (CARD_FILE, card.encode()),
            *((path.name, path) for path in (*arrays, cache.manifest_path)),
        ],
        f"Upload the cache of {config.dataset_name}",
        lambda said: InvalidInputError(
            f"--repo_id {config.repo_id}: {said}; the same command uploads it when the hub answers "
            "and hf auth login has been done, and sends nothing twice"
        ),
        private=config.private,
    )
    print(f"{done.address}\nread it with --cache_repo {config.repo_id}@{done.commit}")
    return done


def main() -> None:
    """Run the stage from the command line."""
    run_cli(PushCacheConfig, run)


if __name__ == "__main__":
    main()
