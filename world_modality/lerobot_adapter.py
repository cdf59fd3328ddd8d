"""Finding a LeRobot dataset: in a named folder, in HF_LEROBOT_HOME, or on the hub.

The only module on the reading side that imports lerobot, which is slow to import and needed only to
download.
"""

import importlib.util
from pathlib import Path

from world_modality.errors import InvalidInputError, MissingFileError
from world_modality.lerobot_format import INFO_PATH
from world_modality.lerobot_home import lerobot_home, local_dataset_folder
from world_modality.lerobot_source import LeRobotSource


def open_dataset(
    name: str,
    *,
    dataset_root: Path | None = None,
    revision: str | None = None,
    image_key: str | None = None,
) -> LeRobotSource:
    """Find a dataset and read its metadata.

    Args:
        name: repository id, or the name given to a local dataset.
        dataset_root: a local dataset's folder.
        revision: hub revision to pin; a local copy of unknown revision is then not used.
        image_key: where a download is needed, the only camera whose videos are fetched.

    Raises:
        MissingFileError: no such folder, and no hub that has it.
        InvalidInputError: not of format v3, without frames, or written without `finalize()`.
    """
    root = _locate(name, dataset_root, revision, image_key)
    return LeRobotSource.at(root, name, revision)


def _locate(
    name: str, dataset_root: Path | None, revision: str | None, image_key: str | None
) -> Path:
    if dataset_root is not None:
        if revision is not None:
            raise InvalidInputError(
                "--revision pins a hub dataset; leave it out with --dataset_root"
            )
        if not (dataset_root / INFO_PATH).exists():
            raise MissingFileError(
                f"no LeRobot dataset in --dataset_root {dataset_root}: expected "
                f"{dataset_root / INFO_PATH}"
            )
        return dataset_root
    local = local_dataset_folder(name)
    is_whole = (local / INFO_PATH).exists() and any(local.glob("data/*/*.parquet"))
    if revision is None and is_whole:
        return local
    return _download(name, revision, image_key)


def _download(name: str, revision: str | None, image_key: str | None) -> Path:
    try:
        from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    except ImportError as error:
        raise MissingFileError(
            f"no dataset {name} in {lerobot_home()}, and downloading it needs lerobot ({error}); "
            "pip install lerobot, or give --dataset_root"
        ) from error
    try:
        # A pinned revision must not be answered from a folder of unknown revision.
        metadata = LeRobotDatasetMetadata(
            name, revision=revision, force_cache_sync=revision is not None
        )
        # lerobot 0.6 has renamed the method; LeRobotDataset itself would copy the whole dataset
        # into a second cache.
        pull = getattr(metadata, "pull_from_repo", None) or metadata._pull_from_repo
        pull(allow_patterns=["meta/", "data/", f"videos/{image_key}/" if image_key else "videos/"])
    except _hub_failures() as error:
        raise MissingFileError(
            f"no dataset {name} in {lerobot_home()}, and the hub did not give it "
            f"({type(error).__name__}: {str(error)[:200]}); name a local folder with "
            "--dataset_root or set HF_LEROBOT_HOME"
        ) from error
    return Path(metadata.root)


def _hub_failures() -> tuple[type[Exception], ...]:
    """Return what huggingface_hub raises where the hub is away or lacks the dataset."""
    if importlib.util.find_spec("httpx") is None:  # huggingface_hub 0.x speaks through requests
        return (OSError,)
    import httpx

    return (OSError, httpx.HTTPError)
