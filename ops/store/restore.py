"""Bringing a state back from a remote onto this machine, verified."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ops.store.atomic import private_folder, publish, write_json
from ops.store.errors import DamagedError, OpsError, RemoteError
from ops.store.manifest import (
    HISTORY,
    FileEntry,
    Manifest,
    ManifestName,
    OldFileEntry,
    fetch_old_files,
    list_manifests,
    newest_readable,
    path_of,
    path_problem,
    read_manifest,
    sum_of_sizes,
)
from ops.store.rclone import RcloneStore, RemoteFile
from ops.store.snapshot import is_log, scan_folder
from ops.store.uploader import new_writer_id, remember_state, remembered_state

T = TypeVar("T")
_CHUNK = 2**20
_FIRST_RETRY_S = 1.0
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """Which state is restored, and what may happen to the local folder."""

    state: int | None = None
    """Number of an older state to restore, as the subcommand `states` lists them; by default the
    newest."""
    overwrite: bool = False
    """Move files that are in the way to <local>/.sync/replaced-…."""
    keep_local: bool = False
    """Leave the local folder as it is where it is as new as the remote (on a machine that kept its
    disk)."""
    retries: int = 4
    """How often a call is tried again after the remote failed."""


class Restorer:
    """Restores states of one remote into one folder.

    Args:
        store: the remote.
        folder: the local folder.
        state_dir: this program's own folder inside it.
        options: which state, and what may happen.
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
        self._state_dir = state_dir
        self._options = options
        self._say = say
        self._marker = state_dir / "restoring.json"
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
        local = self._local_files()
        may_keep = self._options.keep_local and local and not self._marker.exists()
        if may_keep and self._keeps_local(local):
            return None
        names = self._retry(lambda: list_manifests(self._store))
        if self._options.state is not None:
            wanted = [name for name in names if name.number == self._options.state]
            if names and not wanted:
                numbers = ", ".join(str(name.number) for name in names[:20])
                raise OpsError(f"no state {self._options.state}; there are {numbers}")
            names = wanted
        if not names:
            return None
        for name in names:
            try:
                return self._restore_state(name)
            except DamagedError as error:
                self._say(f"state {name.number} cannot be used: {error}; trying the one before")
        raise OpsError(f"none of the {len(names)} states on {self._store.remote} verifies")

    def _restore_state(self, name: ManifestName) -> Manifest:
        reading = self._state_dir / "reading"
        manifest = self._retry(lambda: read_manifest(self._store, name, reading))
        foreign = self._foreign_files(manifest)
        listed = self._list()
        while True:
            try:
                self._fetch(manifest, listed)
                break
            except DamagedError:
                before, listed = listed, self._list()
                if listed == before:
                    raise
                self._say("the remote changed meanwhile, since somebody saves there; trying again")
        self._move_aside(foreign)
        self._place(manifest)
        remember_state(self._state_dir, new_writer_id(), name)
        self._marker.unlink(missing_ok=True)
        shutil.rmtree(self._incoming, ignore_errors=True)
        return manifest

    def _list(self) -> dict[str, RemoteFile]:
        return self._retry(lambda: self._store.list_files(filters=()))

    def _keeps_local(self, local: set[str]) -> bool:
        """Say whether what lies here is at least as new as the remote.

        Raises:
            OpsError: both have gone on from each other.
        """
        try:
            names = list_manifests(self._store)
        except RemoteError as error:
            self._say(f"the remote cannot be read ({error}); {self._folder} is used as it is")
            return True
        writer, number = remembered_state(self._state_dir) or ("", 0)
        if not names or number >= names[0].number or writer == names[0].writer:
            self._say(f"{self._folder} is as new as the remote and is used as it is")
            return True
        manifest = newest_readable(self._store, names, self._state_dir / "reading")
        if manifest is None:
            return True
        if set(manifest.files) == local and all(map(self._is_here, manifest.files.values())):
            remember_state(self._state_dir, new_writer_id(), names[0])
            return True
        raise OpsError(
            f"{self._folder} holds {len(local)} files that {self._store.remote} does not follow "
            f"from: its state {manifest.number} is newer, or of another run. Give --overwrite to "
            "take the remote's (what is here is moved aside), or another folder"
        )

    def _fetch(self, manifest: Manifest, listed: dict[str, RemoteFile]) -> None:
        """Download the files that are not here, each verified, to `incoming/<sha256>`.

        Raises:
            DamagedError: the remote lacks one, or no version of it has the right content.
        """
        private_folder(self._incoming)
        wanted = {
            entry.sha256: entry
            for entry in manifest.files.values()
            if not self._is_here(entry) and not self._is_fetched(entry)
        }
        largest = max((entry.size for entry in manifest.files.values()), default=0)
        needed = sum_of_sizes(wanted) + largest
        free = shutil.disk_usage(self._incoming).free
        if needed > free:
            raise OpsError(f"state {manifest.number} needs {needed} bytes here; {free} are free")
        fetch_old_files(self._store, list(wanted.values()), self._incoming, self._retry)
        by_path: dict[str | None, list[str]] = defaultdict(list)
        for name in listed:
            by_path[path_of(name)].append(name)
        versions = {
            entry: [
                name
                for name in _likeliest_first(by_path[entry.path], entry.path, manifest.number)
                if listed[name].size == entry.size
                or (listed[name].size > entry.size and is_log(entry.path))
            ]
            for entry in wanted.values()
            if not isinstance(entry, OldFileEntry)
        }
        arriving = self._incoming / "versions"
        while chosen := {entry: names.pop(0) for entry, names in versions.items() if names}:
            self._download({name: listed[name].size for name in chosen.values()}, arriving)
            for entry, name in chosen.items():
                version = arriving / name
                if version.is_file() and not version.is_symlink():
                    os.truncate(version, entry.size)  # a log of then is what it begins with now
                    os.replace(version, self._incoming / entry.sha256)
                if self._is_fetched(entry):
                    versions[entry] = []
        shutil.rmtree(arriving, ignore_errors=True)
        damaged = [entry.path for entry in wanted.values() if not self._is_fetched(entry)]
        if damaged:
            raise DamagedError(f"{len(damaged)} of its files are missing or damaged ({damaged[0]})")

    def _download(self, sizes: dict[str, int], target: Path) -> None:
        num_bytes = sum(sizes.values())
        self._retry(lambda: self._store.download(sorted(sizes), target, num_bytes))

    def _is_fetched(self, entry: FileEntry) -> bool:
        path = self._incoming / entry.sha256
        if _has_content(path, entry):
            return True
        path.unlink(missing_ok=True)
        return False

    def _place(self, manifest: Manifest) -> None:
        """Put every file in its place, whole; an interrupted one continues."""
        files = self._unfinished() | manifest.files
        noted = {entry.path: [entry.size, entry.sha256] for entry in files.values()}
        write_json(self._marker, {"files": noted})
        for path in files.keys() - manifest.files.keys():
            self._require_inside(path)
            (self._folder / path).unlink(missing_ok=True)  # of a restore that did not end
        for entry in manifest.files.values():
            if self._is_here(entry):
                continue
            temporary = self._incoming / "file.partial"
            shutil.copyfile(self._incoming / entry.sha256, temporary)  # two files may be the same
            os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns))
            target = self._folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            self._require_inside(entry.path)
            publish(temporary, target)

    def _local_files(self) -> set[str]:
        """Return the paths of all files and links here, but for unfinished ones."""
        scan = scan_folder(self._folder)
        links = {path for path in scan.left_out if os.path.lexists(self._folder / path)}
        return scan.files.keys() | links

    def _is_here(self, entry: FileEntry) -> bool:
        """Say whether a file lies here with this content."""
        with contextlib.suppress(OpsError):
            self._require_inside(entry.path)
            return _has_content(self._folder / entry.path, entry)
        return False

    def _foreign_files(self, manifest: Manifest) -> list[str]:
        """Return the files here that are not the state's.

        Raises:
            OpsError: there are some, and they may not be moved.
        """
        for path in manifest.files:
            self._require_inside(path)
        states = (manifest.files, self._unfinished())
        foreign = sorted(
            path
            for path in self._local_files()
            if not any(path in files and self._is_here(files[path]) for files in states)
        )
        if foreign and not self._options.overwrite:
            shown = ", ".join(foreign[:_SHOWN]) + (" …" if len(foreign) > _SHOWN else "")
            raise OpsError(
                f"{self._folder} holds files that are not those of state {manifest.number}: "
                f"{shown}; restore into an empty folder, or give --overwrite (they are moved aside)"
            )
        return foreign

    def _move_aside(self, foreign: list[str]) -> None:
        """Move files out of the way, into a new folder under the state folder."""
        if not foreign:
            return
        aside = self._state_dir / f"replaced-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        for path in foreign:
            target = aside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._folder / path, target)
        self._say(f"moved {len(foreign)} files to {aside}")

    def _require_inside(self, path: str) -> None:
        """Check that no folder on the way to a path is a link that leads elsewhere."""
        place = self._folder
        for piece in path.split("/")[:-1]:
            place = place / piece
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise OpsError(f"{place} is no folder but a link or a file; nothing is written")

    def _unfinished(self) -> dict[str, FileEntry]:
        """Return the files that an earlier restore, which did not end, was putting here."""
        try:
            files = json.loads(self._marker.read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {
            path: FileEntry(path, size, sha256, "", 0)
            for path, (size, sha256) in files.items()
            if path_problem(path) is None
        }

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


def _likeliest_first(names: list[str], path: str, number: int) -> list[str]:
    """Order the versions of a file by how likely each is that of state `number`.

    What the first later attempt has replaced; else what lies under the file's own name.
    """

    def order(name: str) -> tuple[int, str]:
        if name == path:
            return 1, name
        return 0 if name > f"{HISTORY}/{number:08d}~" else 2, name

    return sorted(names, key=order)


def _has_content(path: Path, entry: FileEntry) -> bool:
    """Say whether a regular file has the size and the checksum of an entry."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
