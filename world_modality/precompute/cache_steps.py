"""What the steps of the precompute stage share: when one is done, what it needs of the disk."""

import importlib.metadata
import platform
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from world_modality.cache.contract import ARRAYS, Cache, sha256_of_json
from world_modality.system.atomic import partial_path
from world_modality.system.errors import InvalidInputError, UserError

VERSIONED = (
    *("numpy", "torch", "transformers", "faiss-cpu", "scikit-learn", "lerobot", "pyarrow"),
    *("pillow", "av"),
)
# Manifests and file headers.
SPARE_BYTES = 1_000_000


def is_done(cache: Cache, step: str, identity: dict[str, Any], names: tuple[str, ...]) -> bool:
    """Say whether the cache holds a step's arrays, intact and of this identity."""
    if not cache.manifest_path.exists():
        return False
    try:
        recorded = cache.manifest.get("steps", {}).get(step)
    except UserError as error:
        print(f"replacing the manifest: {error}")
        cache.manifest_path.unlink()
        return False
    if recorded != sha256_of_json(identity):
        return False
    try:
        for name in names:
            cache.load(name)
    except UserError as error:
        print(f"{step} are written again: {error}")
        return False
    return True


def done_step(step: str, identity: dict[str, Any]) -> dict[str, str]:
    """Return what the manifest's `steps` say of a step that is done."""
    return {step: sha256_of_json(identity)}


def require_space(cache: Cache, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the arrays fit on the disk before the first row is written.

    The arrays are sparse files that memory maps fill: on a full disk the process would be killed.

    Raises:
        InvalidInputError: says how much is needed and how much is free.
    """
    needed = SPARE_BYTES
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * np.dtype(ARRAYS[name].dtype).itemsize
        partial = partial_path(cache.array_path(name))
        # What an interrupted run has filled already is not needed again.
        filled = partial.stat().st_blocks * 512 if partial.exists() else 0
        needed += max(size - filled, 0)
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        raise InvalidInputError(
            f"{', '.join(shapes)} need {needed / 1e9:.2f} GB in {cache.folder}, but the disk has "
            f"{free / 1e9:.2f} GB free; free some, or choose another --cache_dir"
        )


def installed_versions() -> dict[str, str | None]:
    """Return the versions of what made the arrays; None for what is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions
