"""Bringing a state back from a remote onto this machine, verified."""

import functools
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ops.atomic import private_folder, publish, write_json
from ops.errors import DamagedError, OpsError, RemoteError
from ops.manifest import Manifest, ManifestName, newest_first
from ops.manifest_reading import newest_readable, read_manifest
from ops.rclone_store import RcloneStore
from ops.restore_target import RestoreTarget, sha256_of
from ops.uploader import new_writer_id, remember_state, remembered_state

T = TypeVar("T")
_CHUNK = 2**20
_FIRST_RETRY_S = 1.0


@dataclass(frozen=True)
class RestoreOptions:
    """What may happen to the local folder.

    Attributes:
        number: the state to restore; None takes the newest that verifies.
        overwrite: files here that are in the way are moved to `.sync/replaced-…`.
        keep_local: a folder that already holds what is newest is left as it is.
        retries: how often a remote that fails is asked again.
    """

    number: int | None = None
    overwrite: bool = False
    keep_local: bool = False
    retries: int = 4


class Restorer:
    """Restores states of one remote into one folder.

    Args:
        store: the remote.
        folder: the local folder.
        state_dir: this program's own folder inside it.
        options: what may happen.
        say: receives a line per event.
    """

    def __init__(
        self,
        store: RcloneStore,
        folder: Path,
        state_dir: Path,
        options: RestoreOptions,
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._folder = folder
        self._target = RestoreTarget(folder, state_dir)
        self._state_dir = state_dir
        self._options = options
        self._say = say
        self._incoming = state_dir / "incoming"

    def restore(self) -> Manifest | None:
        """Restore the newest state that verifies, or the one that was asked for.

        Returns:
            The state that lies here now; None if the remote has none, or `keep_local` kept what
            is here.

        Raises:
            OpsError: the folder holds something else, or no state verifies.
            RemoteError: the remote cannot be read; what was downloaded is kept for the next try.
        """
        local = self._target.local_files()
        finished = not self._target.marker.exists()
        if self._options.keep_local and local and finished and self._keeps_local(local):
            return None
        names = self._retry(lambda: newest_first(self._store.list_files("manifests")))
        if self._options.number is not None:
            wanted = [name for name in names if name.number == self._options.number]
            if names and not wanted:
                numbers = ", ".join(str(name.number) for name in names[:20])
                raise OpsError(f"no state {self._options.number}; there are {numbers}")
            names = wanted
        if not names:
            return None
        objects = self._retry(lambda: self._store.list_files("objects"))
        for name in names:
            try:
                manifest = self._retry(functools.partial(self._read, name))
                foreign = self._target.foreign(manifest, accept=self._options.overwrite)
                self._fetch(manifest, objects)
                self._target.move_aside(foreign, self._say)
                self._place(manifest)
            except DamagedError as error:
                self._say(f"state {name.number} cannot be used: {error}; trying the one before")
                continue
            self._finish(name)
            return manifest
        raise OpsError(f"none of the {len(names)} states on {self._store.remote} verifies")

    def _read(self, name: ManifestName) -> Manifest:
        return read_manifest(self._store, name, self._state_dir / "reading")

    def _keeps_local(self, local: set[str]) -> bool:
        """Say whether what lies here is at least as new as the remote.

        Raises:
            OpsError: both have gone on from each other.
        """
        try:
            names = newest_first(self._store.list_files("manifests"))
        except RemoteError as error:
            self._say(f"the remote cannot be read ({error}); {self._folder} is used as it is")
            return True
        remembered = remembered_state(self._state_dir)
        if not names or (remembered and remembered[1] >= names[0].number):
            self._say(f"{self._folder} is as new as the remote and is used as it is")
            return True
        if remembered and remembered[0] == names[0].writer:
            self._say(f"{self._folder} is what the remote was written from; used as it is")
            return True
        manifest = newest_readable(self._store, names, self._state_dir / "reading")
        if manifest is None:
            return True
        if set(manifest.files) == local and all(
            self._target.is_here(entry) for entry in manifest.files.values()
        ):
            remember_state(self._state_dir, new_writer_id(), names[0])
            return True
        raise OpsError(
            f"{self._folder} holds {len(local)} files that {self._store.remote} does not follow "
            f"from: its state {manifest.number} is newer, or of another run. Give --overwrite to "
            "take the remote's (what is here is moved aside), or another folder"
        )

    def _fetch(self, manifest: Manifest, listed: dict[str, int]) -> None:
        """Download the objects that are not here, each verified.

        Raises:
            DamagedError: the remote lacks one, or it is not what its name says.
        """
        private_folder(self._incoming)
        wanted = {
            part.sha256: part.size
            for entry in manifest.files.values()
            if not self._target.is_here(entry)
            for part in entry.parts
        }
        lacking = [name for name, size in wanted.items() if listed.get(name) != size]
        if lacking:
            raise DamagedError(f"{len(lacking)} of its objects are missing or cut short")
        missing = {n: s for n, s in wanted.items() if not self._is_verified(n, s)}
        free = shutil.disk_usage(self._incoming).free
        needed = sum(missing.values()) + max((e.size for e in manifest.files.values()), default=0)
        if needed > free:
            raise OpsError(f"state {manifest.number} needs {needed} bytes here; {free} are free")
        if missing:
            self._retry(lambda: self._download(missing))
        damaged = [n for n, s in missing.items() if not self._is_verified(n, s)]
        if damaged:
            raise DamagedError(f"{len(damaged)} of its objects are damaged")

    def _download(self, missing: dict[str, int]) -> None:
        left = {n: s for n, s in missing.items() if not (self._incoming / n).is_file()}
        if left:
            self._store.download("objects", sorted(left), self._incoming, sum(left.values()))

    def _is_verified(self, name: str, size: int) -> bool:
        path = self._incoming / name
        if not path.is_file() or path.is_symlink():
            return False
        if path.stat().st_size == size and sha256_of(path) == name:
            return True
        path.unlink()
        return False

    def _place(self, manifest: Manifest) -> None:
        """Put every file in its place, whole; an interrupted placing is gone on with."""
        files = {e.path: [e.size, e.sha256] for e in manifest.files.values()}
        earlier = {p: [e.size, e.sha256] for p, e in self._target.unfinished().items()}
        write_json(self._target.marker, {"files": {**earlier, **files}})
        for path in self._target.unfinished().keys() - files.keys():
            self._target.require_inside(path)
            (self._folder / path).unlink(missing_ok=True)  # of a restore that did not end
        for entry in manifest.files.values():
            if self._target.is_here(entry):
                continue
            temporary = self._incoming / "file.partial"
            with temporary.open("wb") as file:
                for part in entry.parts:
                    with (self._incoming / part.sha256).open("rb") as content:
                        shutil.copyfileobj(content, file, _CHUNK)
            if sha256_of(temporary) != entry.sha256:
                raise DamagedError(f"the parts of {entry.path} do not make up its checksum")
            os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns))
            target = self._folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._target.require_inside(entry.path)
            publish(temporary, target)

    def _finish(self, name: ManifestName) -> None:
        remember_state(self._state_dir, new_writer_id(), name)
        self._target.marker.unlink(missing_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)

    def _retry(self, action: Callable[[], T]) -> T:
        """Ask a remote that fails again, after longer and longer pauses."""
        for attempt in range(self._options.retries):
            try:
                return action()
            except RemoteError as error:
                pause = _FIRST_RETRY_S * 2**attempt
                self._say(f"{error}; next try in {pause:.0f} s")
                time.sleep(pause)
        return action()
