"""One round of saving: a snapshot, what is new of it, and last the manifest that names it all."""

import json
import secrets
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ops.store.atomic import write_bytes, write_json
from ops.store.errors import DamagedError, OpsError, RemoteError
from ops.store.manifest import (
    HISTORY,
    MANIFESTS,
    FileEntry,
    Manifest,
    ManifestName,
    list_manifests,
    newest_readable,
    path_of,
    read_manifest,
    sum_of_sizes,
)
from ops.store.rclone import RcloneStore, RemoteFile
from ops.store.snapshot import FileChangedError, Snapshot, SnapshotTaker, entry_of

_MAX_NUMBER = 99_999_999
_SHOWN = 5


class AnotherRunError(OpsError):
    """The remote holds a run of which nothing lies here."""


@dataclass(frozen=True)
class RoundResult:
    """What a round did.

    Attributes:
        number: of the newest state on the remote that was written from here.
        snapshot: that state.
        sent: the files that were sent.
        removal_problem: why what is no longer needed could not be removed, if so.
    """

    number: int
    snapshot: Snapshot
    sent: dict[str, FileEntry]
    removal_problem: str | None = None


class Uploader:
    """Saves states of a folder on a remote.

    Args:
        store: the remote.
        taker: takes the snapshots.
        state_dir: this program's own folder (mode 0700).
        keep_last: how many states are kept; None keeps them all.
    """

    def __init__(
        self,
        store: RcloneStore,
        taker: SnapshotTaker,
        state_dir: Path,
        *,
        keep_last: int | None = None,
    ) -> None:
        self._store = store
        self._taker = taker
        self._state_dir = state_dir
        self._retention = None if keep_last is None else Retention(store, keep_last, state_dir)
        remembered = remembered_state(state_dir)
        self._writer = remembered[0] if remembered else new_writer_id()
        # What the remote is known to have under the files' own names, and whether that is all.
        self._present: dict[str, FileEntry] = {}
        self._present_is_all = False
        self._saved: dict[str, FileEntry] | None = None
        self._saved_name: ManifestName | None = None
        self._last_number: int | None = None

    def require_same_run(self) -> None:
        """Check that the remote is empty or holds an earlier state of this folder.

        Raises:
            AnotherRunError: its newest state has no path in common with this folder.
            RemoteError: the remote cannot be read.
        """
        names = self._list_states()
        if not names or names[0].writer == self._writer:
            return
        newest = newest_readable(self._store, names, self._state_dir / "reading")
        if newest is None or not newest.files:
            return
        if not newest.files.keys() & self._taker.scan().files.keys():
            raise AnotherRunError(
                f"{self._store.remote} holds a run (state {newest.number} of {newest.created}, "
                f"{len(newest.files)} files) of which nothing lies here; bring it back with "
                "ops/resume_on_new_vm.sh or python -m ops.sync restore, name another remote, or "
                "give --new_run to start a new run beside it"
            )

    def round(self, *, final: bool = False) -> RoundResult:
        """Save the folder as it is now.

        Raises:
            RemoteError: the remote failed; what it holds is as complete as before.
            OpsError: nothing could be saved for another reason.
            OSError: the disk here failed.
        """
        if self._last_number is None:
            self._list_states()
        assert self._last_number is not None
        last = self._saved or {}
        snapshot = self._taker.take(last, self._present, final=final)
        if self._saved == snapshot.entries and self._saved_name is not None:
            self._saved = snapshot.entries
            return RoundResult(self._saved_name.number, snapshot, {})
        if not self._present_is_all:
            for path in self._listed(snapshot.staged, needs_hash=True):
                self._taker.drop(path)
                del snapshot.staged[path]
        # A failure leaves open what lies under the names of the files that are sent.
        self._present = {p: e for p, e in self._present.items() if p not in snapshot.staged}
        self._present_is_all = False
        # An upload that failed may have arrived all the same, so each try has a number of its own.
        self._last_number += 1
        attempt = f"{HISTORY}/{self._last_number:08d}-{self._writer}-{secrets.token_hex(2)}"
        if snapshot.staged:
            num_bytes = sum_of_sizes(snapshot.staged)
            self._store.upload(self._taker.staging, "", num_bytes, replaced=attempt)
            if busy := self._taker.changed_links():
                # No manifest names what was sent, and none ever will.
                raise FileChangedError(f"{busy[0]} was written to while it was copied")
            self._require_listed(snapshot.staged)
        self._write_manifest(snapshot.entries)
        self._saved = snapshot.entries
        self._present = {p: e for p, e in self._saved.items() if p not in snapshot.left_out}
        self._present_is_all = True
        problem = self._remove_unneeded(snapshot, last, attempt)
        return RoundResult(self._last_number, snapshot, snapshot.staged, problem)

    def confirm(self) -> None:
        """Check that the remote's own listing shows all that the newest state written here names.

        The checksums were confirmed when each file was sent; this compares names and sizes. Until
        it has succeeded, all files count as not saved.

        Raises:
            RemoteError: it does not, so that the next round sends what is missing; or the remote
                cannot be read.
        """
        saved, self._saved = self._saved or {}, None
        self._present, self._present_is_all = {}, False
        listed = self._store.list_files()
        sizes = {path: file.size for path, file in listed.items()}
        missing = [path for path, entry in saved.items() if sizes.get(path) != entry.size]
        if not missing and self._saved_name is not None:
            name = self._saved_name.file_name
            missing = [] if self._store.list_files(MANIFESTS, [name]) else [name]
        if missing:
            raise RemoteError(
                f"{self._store.remote} does not list all that was saved; missing: "
                f"{', '.join(missing[:_SHOWN])}"
            )
        self._saved = saved

    def unsaved(self) -> list[str]:
        """Return the paths that the newest state written from here lacks or has older."""
        saved = self._saved or {}
        files = self._taker.scan().files
        return sorted(
            path
            for path, status in files.items()
            if path not in saved
            or (saved[path].size, saved[path].mtime_ns) != (status.size, status.mtime_ns)
        )

    def _list_states(self) -> list[ManifestName]:
        names = list_manifests(self._store)
        number = max((name.number for name in names), default=0)
        if number >= _MAX_NUMBER:
            raise DamagedError(f"{self._store.remote} has a state of number {number}; use another")
        self._last_number = number
        return names

    def _listed(
        self, files: dict[str, FileEntry], folder: str = "", *, needs_hash: bool = False
    ) -> set[str]:
        """Return those of the files that the remote lists as they are, by size and checksums."""
        listed = self._store.list_files(folder, files, hash_bytes=sum_of_sizes(files))
        return {n for n, e in files.items() if e.is_listed_as(listed.get(n), needs_hash=needs_hash)}

    def _require_listed(self, sent: dict[str, FileEntry], folder: str = "") -> None:
        """Check that the remote lists what it was sent, with its size and its checksums."""
        missing = sorted(sent.keys() - self._listed(sent, folder))
        if missing:
            raise RemoteError(
                f"{self._store.remote} took {len(sent)} files without an error, but does not list "
                f"{len(missing)} of them as they were sent ({missing[0]} is the first)"
            )

    def _write_manifest(self, entries: dict[str, FileEntry]) -> None:
        assert self._last_number is not None
        created = datetime.now(UTC).isoformat(timespec="seconds")
        name, text = Manifest(self._last_number, self._writer, created, entries).encode()
        self._taker.clear()
        write_bytes(self._taker.staging / name.file_name, text)
        attempt = f"{HISTORY}/manifests"  # names differ, so nothing is ever replaced
        self._store.upload(self._taker.staging, MANIFESTS, len(text), replaced=attempt)
        sent = {name.file_name: entry_of(name.file_name, text)}
        self._require_listed(sent, MANIFESTS)
        self._taker.clear()
        self._saved_name = name
        remember_state(self._state_dir, self._writer, name)

    def _remove_unneeded(
        self, snapshot: Snapshot, last: dict[str, FileEntry], attempt: str
    ) -> str | None:
        """Remove old states, if asked to, and logs that the newer ones begin with.

        Returns:
            What went wrong. The state is saved; what stays longer does no harm.
        """
        try:
            replaced = {f"{attempt}/{path}": last[path] for path in snapshot.extended}
            listed = self._listed(replaced, needs_hash=True)
            self._store.delete([name for name in replaced if name in listed])
            if self._retention is not None:
                self._retention.prune()
        except (OpsError, OSError) as error:
            return str(error)
        return None


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
        names = [name for name in list_manifests(self._store) if name.folder == MANIFESTS]
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

        def among(entries: dict[str, list[FileEntry]], files: dict[str, RemoteFile]) -> set[str]:
            return {
                name
                for name, file in files.items()
                if any(entry.is_listed_as(file) for entry in entries[path_of(name) or ""])
            }

        listed = self._store.list_files(filters=())
        candidates = among(gone, listed)
        num_bytes = sum(listed[name].size for name in candidates)
        hashed = self._store.list_files(names=candidates, hash_bytes=num_bytes)
        self._store.delete(sorted(among(gone, hashed) - among(needed, hashed)))

    def _files_of(self, name: ManifestName) -> frozenset[FileEntry]:
        # A name holds its manifest's checksum, so what was read once holds for ever.
        if name not in self._files:
            manifest = read_manifest(self._store, name, self._reading)
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


def remember_state(state_dir: Path, writer: str, name: ManifestName) -> None:
    """Note which state of the remote the folder here goes on from."""
    content = {"writer": writer, "number": name.number, "manifest": name.file_name}
    write_json(state_dir / "state.json", content)


def remembered_state(state_dir: Path) -> tuple[str, int] | None:
    """Return this folder's writer id and the last state that it goes on from, if it knows."""
    try:
        content = json.loads((state_dir / "state.json").read_text(encoding="utf-8"))
        return str(content["writer"]), int(content["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def new_writer_id() -> str:
    """Return a random id for the folder on this machine."""
    return secrets.token_hex(4)
