"""Finding a LeRobot dataset: in a named folder, in HF_LEROBOT_HOME, or on the hub."""

from pathlib import Path

from world_modality.source.hub_copy import HubCopy
from world_modality.source.lerobot_format import INFO_PATH, local_dataset_folder
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingFileError


def open_dataset(
    name: str,
    *,
    dataset_root: Path | None = None,
    revision: str | None = None,
    image_key: str | None = None,
    needs_images: bool = False,
) -> LeRobotSource:
    """Find a dataset and read its metadata; of a hub's, fetch what is not there yet.

    Args:
        name: repository id, or the name given to a local dataset.
        dataset_root: a local dataset's folder.
        revision: hub revision to pin.
        image_key: a camera; it has to exist even where its images are not needed.
        needs_images: whether they are: None as `image_key` is then the only camera, and a video
            is fetched.

    Raises:
        MissingFileError: no such folder, and no hub that has it.
        MissingKeyError: no such camera, said before anything large is fetched.
        InvalidInputError: not of format v3, without frames, damaged, or of another revision.
    """
    copy = None
    if dataset_root is None:
        root = local_dataset_folder(name)
        copy = HubCopy.open(name, root, revision)
    else:
        root = _local_root(dataset_root, revision)
    if copy is not None:
        copy.fetch("meta/")
    source = LeRobotSource.at(root, name, revision)
    parts = ["data/"]
    if needs_images or image_key is not None:
        camera = source.camera(image_key)
        if needs_images and source.features[camera]["dtype"] == "video":
            parts.append(f"videos/{camera}/")
    if copy is not None:
        for part in parts:
            copy.fetch(part)
    if not source.data_files:
        raise InvalidInputError(f"dataset {name} at {root} is empty: it has no data/*/*.parquet")
    return source


def _local_root(dataset_root: Path, revision: str | None) -> Path:
    if revision is not None:
        raise InvalidInputError("--revision pins a hub dataset; leave it out with --dataset_root")
    if not (dataset_root / INFO_PATH).exists():
        raise MissingFileError(
            f"no LeRobot dataset in --dataset_root {dataset_root}: expected "
            f"{dataset_root / INFO_PATH}"
        )
    return dataset_root
