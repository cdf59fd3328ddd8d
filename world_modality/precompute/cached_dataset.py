"""The dataset that a cache was made from, opened again to look at its pictures."""

from pathlib import Path

from world_modality.cache.contract import Cache
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError


def open_cached_dataset(
    cache: Cache,
    dataset_root: Path | None = None,
    revision: str | None = None,
    camera: str | None = None,
    convert_older: bool = False,
) -> LeRobotSource:
    """Open the dataset that a cache was made from.

    Args:
        cache: of the dataset.
        dataset_root: folder of a local dataset.
        revision: of the hub.
        camera: one that is looked at beside those that were embedded.
        convert_older: read a dataset of an older format from a conversion beside it.

    Raises:
        UserError: there is no such dataset or camera, or the dataset found is another one.
    """
    recorded = cache.manifest["dataset"]
    keys = cache.image_keys if camera is None else (camera, *cache.image_keys)
    # What identifies the dataset covers the pictures that the tokens were made from.
    source = open_dataset(
        cache.dataset_name,
        dataset_root=dataset_root,
        revision=revision,
        image_keys=tuple(dict.fromkeys(keys)),
        needs_images=True,
        convert_older=convert_older,
    )
    found = source.describe(cache.image_keys)
    for entry in ("num_frames", "content_sha256"):
        if found[entry] != recorded[entry]:
            raise InvalidInputError(
                f"the dataset at {source.root} has {entry} {found[entry]}, but the cache was made "
                f"from one with {recorded[entry]}; {cache.mend()}"
            )
    return source
