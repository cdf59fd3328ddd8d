"""Removing old states from a remote, when asked to and never otherwise."""

import json
from pathlib import Path

from ops.atomic import write_json
from ops.errors import DamagedError
from ops.manifest import ManifestName, newest_first
from ops.manifest_reading import read_manifest
from ops.rclone_store import RcloneStore


class Retention:
    """Keeps the newest states; removes the older ones and the objects that no kept state names.

    Manifests go before their objects, so that no manifest ever names what is gone. What is to go
    is noted first, so that a removal that was cut short is finished by the next. Objects that no
    removed manifest named are left alone: another machine may be about to name them.

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
        self._objects: dict[ManifestName, frozenset[str]] = {}

    def prune(self) -> set[str]:
        """Remove what is too old.

        Returns:
            The objects that were removed.

        Raises:
            DamagedError: a state that is kept cannot be read, so what it needs is not known;
                nothing was removed.
            RemoteError: the remote failed.
        """
        names = newest_first(self._store.list_files("manifests"))
        kept, old = names[: self._keep_last], names[self._keep_last :]
        candidates = self._noted()
        if not old and not candidates:
            return set()
        needed = frozenset[str]().union(*(self._objects_of(name) for name in kept))
        for name in old:
            try:
                candidates |= self._objects_of(name)
            except DamagedError:
                continue  # what it named is not known, so it stays
        gone = candidates - needed
        write_json(self._plan, sorted(gone))
        self._store.delete("manifests", [name.file_name for name in old])
        self._store.delete("objects", sorted(gone))
        self._plan.unlink()
        self._objects = {name: self._objects[name] for name in kept}
        return gone

    def _objects_of(self, name: ManifestName) -> frozenset[str]:
        # A name holds its manifest's checksum, so what was read once holds for ever.
        if name not in self._objects:
            manifest = read_manifest(self._store, name, self._reading)
            self._objects[name] = frozenset(manifest.objects)
        return self._objects[name]

    def _noted(self) -> set[str]:
        try:
            return set(json.loads(self._plan.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return set()
