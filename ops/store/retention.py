"""Removing old states from a remote, when asked to and never otherwise."""

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

from ops.store.atomic import write_json
from ops.store.errors import DamagedError
from ops.store.manifest import (
    FileEntry,
    ManifestName,
    decode,
    list_manifests,
    path_of,
    read_manifest,
)
from ops.store.rclone import RcloneStore


class Retention:
    """Keeps the newest states; removes the older ones and what no kept state names.

    Manifests go before their files, so that no manifest ever names what is gone. What is to go is
    noted first, so that a removal that was cut short is finished by the next. Files that no removed
    manifest named are left alone: another machine may be about to name them.

    Args:
        store: the remote.
        keep_last: how many states stay, at least 1.
        state_dir: receives the note.
    """

    def __init__(self, store: RcloneStore, keep_last: int, state_dir: Path) -> None:
        self._store = store
        self._keep_last = keep_last
        self._reading = state_dir / "reading"
        self._plan = state_dir / "prune.json"
        self._files: dict[ManifestName, frozenset[FileEntry]] = {}

    def prune(self) -> None:
        """Remove what is too old.

        Raises:
            DamagedError: a state that is kept cannot be read, so what it needs is not known;
                nothing was removed.
            RemoteError: the remote failed.
        """
        names = list_manifests(self._store)
        kept, old = names[: self._keep_last], names[self._keep_last :]
        gone = self._noted()
        if not old and not gone:
            return
        needed = frozenset[FileEntry]().union(*(self._files_of(name) for name in kept))
        for name in old:
            try:
                gone |= self._files_of(name)
            except DamagedError:
                continue  # what it named is not known, so it stays
        gone -= needed
        write_json(self._plan, sorted(map(astuple, gone)))
        self._store.delete([f"{name.folder}/{name.file_name}" for name in old])
        self._delete(_by_path(gone), _by_path(needed))
        self._plan.unlink()
        self._files = {name: self._files[name] for name in kept}

    def _delete(self, gone: dict[str, list[FileEntry]], needed: dict[str, list[FileEntry]]) -> None:
        """Remove the versions of files that are among `gone` and cannot be any of `needed`."""
        sizes = {name: file.size for name, file in self._store.list_files(filters=()).items()}
        candidates = {
            name: size
            for name, size in sizes.items()
            if any(entry.size == size for entry in gone[path_of(name) or ""])
        }
        listed = self._store.list_files(names=candidates, hash_bytes=sum(candidates.values()))

        def is_one_of(entries: dict[str, list[FileEntry]], name: str) -> bool:
            return any(entry.is_listed_as(listed[name]) for entry in entries[path_of(name) or ""])

        self._store.delete([n for n in listed if is_one_of(gone, n) and not is_one_of(needed, n)])

    def _files_of(self, name: ManifestName) -> frozenset[FileEntry]:
        # A name holds its manifest's checksum, so what was read once holds for ever.
        if name not in self._files:
            manifest = decode(name, read_manifest(self._store, name, self._reading))
            self._files[name] = frozenset(manifest.files.values())
        return self._files[name]

    def _noted(self) -> set[FileEntry]:
        try:
            return {FileEntry(*item) for item in json.loads(self._plan.read_text(encoding="utf-8"))}
        except (FileNotFoundError, ValueError, TypeError):
            return set()


def _by_path(entries: Iterable[FileEntry]) -> dict[str, list[FileEntry]]:
    found: dict[str, list[FileEntry]] = defaultdict(list)
    for entry in entries:
        found[entry.path].append(entry)
    return found
