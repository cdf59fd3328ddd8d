"""Where a stage's cache lies: in `<cache_dir>/<dataset_name>`, or in a repository of the hub.

A repository holds the files of one cache's folder. They are fetched into the hub client's own
folder, after a check that the manifest can be read and that each array has the size it says; what
they hold is checked against the manifest's SHA-256s as that of any cache is, when it is read.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from glob import escape
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from world_modality.cache.contract import Cache
from world_modality.system.errors import InvalidInputError, MissingFileError, UserError
from world_modality.system.hub import ask_hub, commit_of, file_sizes

# The manifest of a dataset of 100,000 episodes has 3 MB.
MAX_MANIFEST_BYTES = 64_000_000
# What numpy writes before an array's numbers: 128, for any shape that a cache has.
MAX_HEADER_BYTES = 4096


@runtime_checkable
class CacheFlags(Protocol):
    """The flags by which a stage says which cache it reads."""

    @property
    def cache_dir(self) -> Path:
        """Folder of all caches."""

    @property
    def dataset_name(self) -> str:
        """What the cache is of."""

    @property
    def split(self) -> str:
        """Prefix of its files."""

    @property
    def cache_repo(self) -> str | None:
        """The hub's repository that holds it instead, `user/name`, or `user/name@revision`."""


def open_cache(flags: CacheFlags) -> Cache:
    """Return the cache that a stage reads, fetched from the hub where it lies there.

    Raises:
        MissingFileError: the hub does not give it.
        InvalidInputError: the repository holds no cache, or one of another dataset.
    """
    if flags.cache_repo is None:
        return Cache(flags.cache_dir, flags.dataset_name, flags.split)
    cache = HubCache(flags.cache_repo, flags.split)
    if cache.dataset_name != flags.dataset_name:
        raise InvalidInputError(
            f"--cache_repo {flags.cache_repo} holds the cache of {cache.dataset_name}, expected "
            f"that of --dataset_name {flags.dataset_name}"
        )
    return cache


class HubCache(Cache):
    """A cache that lies in a repository of the hub, fetched whole.

    Args:
        address: `user/name`, or `user/name@revision` for a branch, tag or commit.
        split: prefix of the file names.

    Raises:
        MissingFileError: the hub does not give it, and it was not fetched before.
        InvalidInputError: it holds no cache, or files that are not what the manifest says.
    """

    def __init__(self, address: str, split: str = "train") -> None:
        self._address = address
        snapshot = _fetched(address, split)
        # The client keeps the content beside the snapshot, which holds links to it.
        super().__init__(snapshot.parents[1], f"snapshots/{snapshot.name}", split)
        self.dataset_name = str((self.manifest.get("dataset") or {}).get("name"))

    def mend(self, name: str = "embeddings") -> str:
        """Return what to do about an array that is not what the manifest says."""
        return (
            f"delete {self.folder.parents[1]} to fetch --cache_repo {self._address} again; where "
            "that does not help, it was uploaded like this"
        )


@lru_cache
def _fetched(address: str, split: str) -> Path:
    """Fetch a cache, once a process, so that a branch that moves meanwhile does no harm."""
    repo_id, _, revision = address.partition("@")
    manifest_name = f"{split}_manifest.json"

    def refusal(said: str) -> UserError:
        return MissingFileError(
            f"no cache in --cache_repo {address}: {said}; expected a repository that python -m "
            "world_modality.push_cache has made, as user/name or user/name@revision"
        )

    def fetch(files: list[str], **where: Any) -> Path:
        found = ask_hub(
            lambda hub: hub.snapshot_download(
                repo_id,
                repo_type="dataset",
                allow_patterns=[escape(file) for file in files],
                **where,
            ),
            refusal,
        )
        return Path(found)

    try:
        commit = commit_of(repo_id, "dataset", revision or None, refusal)
        sizes = file_sizes(repo_id, "dataset", commit, refusal)
    except MissingFileError as error:
        folder = _fetched_before(repo_id, revision, split, fetch)
        if folder is None:
            raise
        print(f"note: {address} as it was fetched before, commit {folder.name}, since {error}")
        return folder
    if not 0 < sizes.get(manifest_name, 0) <= MAX_MANIFEST_BYTES:
        raise InvalidInputError(
            f"--cache_repo {address} holds no cache: expected {manifest_name} of at most "
            f"{MAX_MANIFEST_BYTES / 1e6:g} MB at commit {commit}, found "
            f"{sizes.get(manifest_name, 'none')}; python -m world_modality.push_cache makes one"
        )
    folder = fetch([manifest_name], revision=commit)
    expected = _array_sizes(_snapshot_cache(folder, split))
    wrong = [
        name
        for name, size in expected.items()
        if not 0 < sizes.get(name, 0) - size <= MAX_HEADER_BYTES
    ]
    if wrong:
        raise InvalidInputError(
            f"--cache_repo {address} has {wrong[0]} of {sizes.get(wrong[0], 'no')} bytes, but "
            f"{manifest_name} says {expected[wrong[0]]} and a header ({len(wrong)} such files in "
            "all): no array was fetched; upload it again with python -m world_modality.push_cache"
        )
    if not all((folder / name).exists() for name in expected):
        print(f"fetching {sum(expected.values()) / 1e6:.1f} MB of {address}, commit {commit}")
    folder = fetch([manifest_name, *expected], revision=commit)
    if revision != commit:
        fetch([], revision=revision or None)  # notes which commit that is, for when the hub is down
    return folder


def _fetched_before(
    repo_id: str, revision: str, split: str, fetch: Callable[..., Path]
) -> Path | None:
    """Return the snapshot that an earlier run has fetched whole, if there is one."""
    try:
        folder = fetch([], revision=revision or None, local_files_only=True)
        expected = _array_sizes(_snapshot_cache(folder, split))
    except UserError:
        return None
    is_whole = all((folder / name).exists() for name in expected)
    return folder if is_whole else None


def _snapshot_cache(folder: Path, split: str) -> Cache:
    return Cache(folder.parent, folder.name, split)


def _array_sizes(cache: Cache) -> dict[str, int]:
    """Return how many bytes the numbers of each file take by the manifest.

    Raises:
        InvalidInputError: a shape is none.
    """
    sizes = {}
    for name, record in cache.manifest["arrays"].items():
        shape = record.get("shape")
        is_shape = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not is_shape:
            raise InvalidInputError(
                f"{cache.manifest_path} gives {name} the shape {shape!r:.80}, expected whole "
                "numbers"
            )
        num_bytes = math.prod(shape) * np.dtype(cache.array_spec(name).dtype).itemsize
        sizes[cache.array_path(name).name] = num_bytes
    return sizes
