"""One round of saving: a snapshot, its new objects, and last the manifest that names them."""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ops.atomic import write_bytes, write_json
from ops.errors import DamagedError, OpsError, RemoteError
from ops.manifest import FileEntry, Manifest, ManifestName, decode, newest_first
from ops.manifest_reading import newest_readable
from ops.rclone_store import RcloneStore
from ops.retention import Retention
from ops.snapshot import SnapshotOptions, SnapshotTaker
from ops.staging import FileChangedError, Staging

_MAX_NUMBER = 99_999_999


class AnotherRunError(OpsError):
    """The remote holds a run of which nothing lies here."""


@dataclass(frozen=True)
class RoundResult:
    """What a round did.

    Attributes:
        number: of the newest state on the remote that was written from here.
        num_files: in that state.
        num_new: objects that were sent.
        num_bytes: their bytes.
        left: paths that did not travel, with the reason.
        retention_problem: why old states could not be removed, if so.
    """

    number: int
    num_files: int
    num_new: int
    num_bytes: int
    left: dict[str, str]
    retention_problem: str | None = None


class Uploader:
    """Saves states of a folder on a remote; nothing there is ever changed or removed by a round.

    Args:
        store: the remote.
        folder: what is saved.
        state_dir: this program's own folder (mode 0700), for staged objects and its memory.
        options: which files travel.
        keep_last: how many states are kept; None keeps them all.
        pause: sleeps, or raises to stop; called between chunks of work as `pause(0)`.
    """

    def __init__(
        self,
        store: RcloneStore,
        folder: Path,
        state_dir: Path,
        options: SnapshotOptions,
        *,
        keep_last: int | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._state_dir = state_dir
        self._pause = pause
        self._retention = None if keep_last is None else Retention(store, keep_last, state_dir)
        self._staging = Staging(state_dir / "staging", beat=lambda: pause(0))
        self._taker = SnapshotTaker(folder, self._staging, options)
        self._writer = _writer_id(state_dir)
        self._present: set[str] = set()
        self._saved: dict[str, FileEntry] | None = None
        self._last_number: int | None = None
        self._saved_name = ""
        self._saved_number = 0

    def require_same_run(self) -> None:
        """Check that the remote is empty or holds an earlier state of this folder.

        Raises:
            AnotherRunError: its newest state has no path in common with this folder.
            RemoteError: the remote cannot be read.
        """
        names = newest_first(self._store.list_files("manifests"))
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
            self._last_number = self._newest_number()
        previous = self._saved or {}
        snapshot = self._taker.take(previous, self._present, final=final, pause=self._pause)
        num_files = len(snapshot.entries)
        if _same_content(self._saved, snapshot.entries):
            self._saved = snapshot.entries
            return RoundResult(self._saved_number, num_files, 0, 0, snapshot.left)
        staged = list(self._staging.objects.iterdir())
        num_bytes = sum(path.stat().st_size for path in staged)
        if staged:
            self._store.upload(self._staging.objects, "objects")
            self._store.confirm(self._staging.objects, "objects")
        self._refuse_changed_links()
        self._present |= {path.name for path in staged}
        # An upload that failed may have arrived all the same, so each try has a number of its own.
        self._last_number += 1
        files = dict(sorted(snapshot.entries.items()))
        self._write(Manifest(self._last_number, self._writer, _utc_now(), files))
        self._saved = snapshot.entries
        self._saved_number = self._last_number
        return RoundResult(
            self._saved_number, num_files, len(staged), num_bytes, snapshot.left, self._prune()
        )

    def confirm(self) -> None:
        """Check that the remote's own listing shows all that the newest state written here names.

        Until that has succeeded, all files count as not saved.

        Raises:
            RemoteError: it does not, so that the next round sends all again; or it cannot be read.
        """
        saved, self._saved = self._saved or {}, None
        objects = self._store.list_files("objects")
        missing = [
            path
            for path, entry in saved.items()
            if any(objects.get(part.sha256) != part.size for part in entry.parts)
        ]
        if missing or self._saved_name not in self._store.list_files("manifests"):
            self._present.clear()
            raise RemoteError(
                f"{self._store.remote} does not list all of state {self._saved_number}: "
                f"{', '.join(missing[:5]) or self._saved_name} is missing"
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

    def _refuse_changed_links(self) -> None:
        changed = self._staging.changed_links()
        if changed:
            # No manifest names these objects yet, and none ever will.
            self._store.delete("objects", [path.name for path in changed])
            raise FileChangedError("a large file was written to while it was copied")

    def _newest_number(self) -> int:
        names = newest_first(self._store.list_files("manifests"))
        number = names[0].number if names else 0
        if number >= _MAX_NUMBER:
            raise DamagedError(f"{self._store.remote} has a state of number {number}; use another")
        return number

    def _write(self, manifest: Manifest) -> None:
        if manifest.objects.keys() - self._present:
            self._present.clear()
            raise OpsError("an object is missing; the next round sends everything again")
        name, text = manifest.encode()
        decode(name, text)  # what a reader would refuse is not written
        self._staging.clear()
        write_bytes(self._staging.objects / name.file_name, text)
        self._store.upload(self._staging.objects, "manifests")
        self._store.confirm(self._staging.objects, "manifests")
        self._staging.clear()
        self._saved_name = name.file_name
        remember_state(self._state_dir, self._writer, name)

    def _prune(self) -> str | None:
        if self._retention is None:
            return None
        try:
            self._present -= self._retention.prune()
        except (OpsError, OSError) as error:
            # The state is saved; old ones that stay longer do no harm.
            self._present.clear()
            return str(error)
        return None


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


def _writer_id(state_dir: Path) -> str:
    remembered = remembered_state(state_dir)
    return remembered[0] if remembered else new_writer_id()


def _same_content(saved: dict[str, FileEntry] | None, entries: dict[str, FileEntry]) -> bool:
    if saved is None:
        return False
    return {p: e.sha256 for p, e in saved.items()} == {p: e.sha256 for p, e in entries.items()}


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
