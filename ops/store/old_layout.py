"""Remotes of before: `objects/<sha256>` and manifests that name them; they are only read.

A file is the sequence of its parts, and each part is an object.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.store.errors import DamagedError
from ops.store.manifest import (
    MANIFESTS,
    FileEntry,
    Manifest,
    ManifestName,
    checked_digits,
    checked_entry,
    checked_size,
    decode,
    newest_first,
    read_manifest,
)
from ops.store.rclone import RcloneStore

_FORMAT = "ops-sync/1"
_MANIFESTS = "manifests"
_OBJECTS = "objects"


@dataclass(frozen=True)
class OldFileEntry(FileEntry):
    """A file, and the checksums and sizes of its parts, in order."""

    parts: tuple[tuple[str, int], ...] = ()


def list_all_manifests(store: RcloneStore) -> list[ManifestName]:
    """Return the manifests of either layout: those of today first, and each newest first."""
    folders = (MANIFESTS, _MANIFESTS)
    filters = [word for folder in folders for word in ("--include", f"/{folder}/*.json")]
    listed = [name.rpartition("/") for name in store.list_files(filters=filters)]
    return [
        name
        for folder in folders
        for name in newest_first((file for place, _, file in listed if place == folder), folder)
    ]


def read_any_manifest(store: RcloneStore, name: ManifestName, work_dir: Path) -> Manifest:
    """Download and check a manifest of either layout; see `read_manifest` and `decode`."""
    form = (_FORMAT, _decode_entry) if name.folder == _MANIFESTS else ()
    return decode(name, read_manifest(store, name, work_dir), *form)


def newest_readable(
    store: RcloneStore, names: list[ManifestName], work_dir: Path
) -> Manifest | None:
    """Return the first of these manifests that is whole; a torn one names nothing."""
    for name in names:
        with contextlib.suppress(DamagedError):
            return read_any_manifest(store, name, work_dir)
    return None


def fetch_old_files(
    store: RcloneStore,
    entries: list[FileEntry],
    incoming: Path,
    retry: Callable[[Callable[[], None]], None],
) -> None:
    """Put the files of an old state into `incoming`, each under its checksum; unverified.

    `retry` calls what it is given until the remote answers.

    Raises:
        DamagedError: an object is missing.
    """
    old = [entry for entry in entries if isinstance(entry, OldFileEntry)]
    sizes = {sha256: size for entry in old for sha256, size in entry.parts}
    missing = {n: s for n, s in sizes.items() if not (incoming / n).is_file()}
    names = sorted(missing)
    if names:
        num_bytes = sum(missing.values())
        retry(functools.partial(store.download, names, incoming, num_bytes, _OBJECTS))
    if lost := [name for name in names if not (incoming / name).is_file()]:
        raise DamagedError(f"{len(lost)} of its objects are missing")
    for entry in old:
        temporary = incoming / "joined.partial"
        with temporary.open("wb") as file:
            for sha256, _ in entry.parts:
                with (incoming / sha256).open("rb") as content:
                    shutil.copyfileobj(content, file)
        os.replace(temporary, incoming / entry.sha256)


def _decode_entry(item: Any) -> FileEntry:
    path, size, sha256, mtime_ns, items = item
    parts = tuple((checked_digits(digits), checked_size(part)) for digits, part in items)
    entry = OldFileEntry(path, size, sha256, "", mtime_ns, parts)
    if checked_entry(entry).size != sum(part for _, part in parts):
        raise ValueError(f"the parts of {path!r} do not make up its size")
    return entry
