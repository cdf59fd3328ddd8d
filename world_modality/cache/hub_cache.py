"""Where a stage's cache lies: in `<cache_dir>/<dataset_name>`, or in a repository of the hub.

A repository holds the files of one cache's folder. They are fetched into the hub client's own
folder, after a check that the manifest can be read and that each array has the size it says; what
they hold is checked against the manifest's SHA-256s as that of any cache is, when it is read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    return _Repository(address, split).fetch()


@dataclass(frozen=True)
class _Repository:
    """A repository that holds a cache."""

    address: str
    split: str

    @property
    def repo_id(self) -> str:
        return self.address.partition("@")[0]

    @property
    def revision(self) -> str | None:
        return self.address.partition("@")[2] or None

    @property
    def manifest_name(self) -> str:
        return f"{self.split}_manifest.json"

    def fetch(self) -> Path:
        """Fetch the manifest, and then the files that it names; return the folder."""
        try:
            commit = commit_of(self.repo_id, "dataset", self.revision, self._refusal)
            sizes = file_sizes(self.repo_id, "dataset", commit, self._refusal)
        except MissingFileError as error:
            folder = self._fetched_before()
            if folder is None:
                raise
            print(
                f"note: {self.address} as it was fetched before, commit {folder.name}, since "
                f"{error}"
            )
            return folder
        self._require_manifest(commit, sizes)
        folder = self._download([self.manifest_name], revision=commit)
        expected = _array_sizes(Cache(folder.parent, folder.name, self.split))
        self._require_sizes(sizes, expected)
        if not all((folder / name).exists() for name in expected):
            num_bytes = sum(expected.values())
            print(f"fetching {num_bytes / 1e6:.1f} MB of {self.address}, commit {commit}")
        folder = self._download([self.manifest_name, *expected], revision=commit)
        if self.revision != commit:
            # Notes which commit that is, for when the hub does not answer.
            self._download([], revision=self.revision)
        return folder

    def _require_manifest(self, commit: str, sizes: Mapping[str, int]) -> None:
        if not 0 < sizes.get(self.manifest_name, 0) <= MAX_MANIFEST_BYTES:
            raise InvalidInputError(
                f"--cache_repo {self.address} holds no cache: expected {self.manifest_name} of at "
                f"most {MAX_MANIFEST_BYTES / 1e6:g} MB at commit {commit}, found "
                f"{sizes.get(self.manifest_name, 'none')}; python -m world_modality.push_cache "
                "makes one"
            )

    def _require_sizes(self, sizes: Mapping[str, int], expected: Mapping[str, int]) -> None:
        """Check that the files have the sizes of the arrays that the manifest describes."""
        wrong = [
            name
            for name, size in expected.items()
            if not 0 < sizes.get(name, 0) - size <= MAX_HEADER_BYTES
        ]
        if wrong:
            raise InvalidInputError(
                f"--cache_repo {self.address} has {wrong[0]} of {sizes.get(wrong[0], 'no')} bytes, "
                f"but {self.manifest_name} says {expected[wrong[0]]} and a header ({len(wrong)} "
                "such files in all): no array was fetched; upload it again with python -m "
                "world_modality.push_cache"
            )

    def _fetched_before(self) -> Path | None:
        """Return the snapshot that an earlier run has fetched whole, if there is one."""
        try:
            folder = self._download([], revision=self.revision, local_files_only=True)
            expected = _array_sizes(Cache(folder.parent, folder.name, self.split))
        except UserError:
            return None
        return folder if all((folder / name).exists() for name in expected) else None

    def _download(self, files: Sequence[str], **where: Any) -> Path:
        """Fetch these files and no others; return the folder of the snapshot."""
        patterns = [escape(file) for file in files]
        named = {"repo_type": "dataset", "allow_patterns": patterns, **where}
        found = ask_hub(lambda hub: hub.snapshot_download(self.repo_id, **named), self._refusal)
        return Path(found)

    def _refusal(self, said: str) -> UserError:
        return MissingFileError(
            f"no cache in --cache_repo {self.address}: {said}; expected a repository that "
            "python -m world_modality.push_cache has made, as user/name or user/name@revision"
        )


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
