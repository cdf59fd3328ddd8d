"""A folder as it is at one moment, while others write to it; what is new of it, staged."""

import fnmatch
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ops.store.atomic import PARTIAL_SUFFIX, private_folder
from ops.store.errors import OpsError
from ops.store.manifest import FileEntry, path_problem
from ops.store.rclone import STATE_FOLDER

# Files that only ever grow at their end, so that a stretch from their start stays what it was.
LOG_PATTERNS = ("*.jsonl", "*tfevents*", "*.log", "*.out", "*.err")
# Up to this size a copy costs less than it saves.
_COPY_BELOW = 4 * 2**20
_ATTEMPTS = 6
_CHUNK = 2**20


@dataclass(frozen=True)
class FileStat:
    """What tells without reading that a file is the same as before."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileStat":
        """Take what is needed from a stat result."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class FolderScan:
    """The files of a folder by relative path, and what was left out, with the reason."""

    files: dict[str, FileStat]
    left_out: dict[str, str] = field(default_factory=dict)


def is_log(path: str) -> bool:
    """Say whether a file is one that only grows at its end."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LOG_PATTERNS)


def scan_folder(folder: Path, only: str | None = None, exclude: tuple[str, ...] = ()) -> FolderScan:
    """List a folder; one that is not there is empty.

    Args:
        folder: the folder.
        only: the one path that counts.
        exclude: patterns (`*.mp4`, `videos/*`) of paths to leave out.
    """
    scan = FolderScan({})
    config = _rclone_config()
    for path, status in _walk(folder):
        name = path.rsplit("/", 1)[-1]
        if only not in (None, path) or name.endswith(PARTIAL_SUFFIX):
            continue
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in exclude):
            continue
        if problem := path_problem(path):
            scan.left_out[repr(path)] = problem
        elif name == "rclone.conf" or config == (status.st_dev, status.st_ino):
            scan.left_out[path] = "is rclone's configuration"
        elif not stat.S_ISREG(status.st_mode):
            scan.left_out[path] = "is no regular file (links are not followed)"
        else:
            scan.files[path] = FileStat.of(status)
    return scan


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all files, and links to files or folders, by relative path; folders may vanish."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for place, folders, names in os.walk(folder, onerror=refuse):
        prefix = os.path.relpath(place, folder) + "/" if place != str(folder) else ""
        if not prefix:
            folders[:] = [name for name in folders if not name.startswith(STATE_FOLDER)]
        for name in sorted(names + folders):
            try:
                status = os.lstat(os.path.join(place, name))
            except FileNotFoundError:
                continue
            if not stat.S_ISDIR(status.st_mode):
                yield prefix + name, status


def _rclone_config() -> tuple[int, int] | None:
    """Return device and inode of rclone's configuration, wherever it lies."""
    default = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rclone"
    try:
        status = os.stat(os.environ.get("RCLONE_CONFIG") or str(default / "rclone.conf"))
    except OSError:
        return None
    return status.st_dev, status.st_ino


class FileChangedError(OpsError):
    """A file changed while it was read; it is left for the next round."""


@dataclass(frozen=True)
class Snapshot:
    """A state of the folder.

    Attributes:
        entries: the files by path.
        staged: those that the remote does not have under their name, staged.
        extended: logs of these that begin with what they were in the last state.
        left_out: paths that changed while they were copied, or may not travel, with the reason.
    """

    entries: dict[str, FileEntry]
    staged: dict[str, FileEntry]
    extended: set[str]
    left_out: dict[str, str]


class SnapshotTaker:
    """Takes snapshots; a file whose size, time and inode are as before is not read again.

    Small files and logs are copied, large ones frozen by a hard link: what replaces them later does
    not touch the link. Logs are read last: whoever writes logs the step before the checkpoint, so a
    checkpoint of the snapshot has its log lines there. A snapshot counts if a second look at the
    folder finds it as the first did, but for logs that grew.

    Args:
        folder: what is copied.
        staging: this program's own folder, emptied at the start.
        pause: sleeps, or raises to stop; called between chunks of work as `pause(0)`.
        only: the one path that counts, for a single file.
        exclude: patterns of paths to leave out.
        quiet_s: a folder whose files changed less long ago is waited for, a little.
    """

    def __init__(
        self,
        folder: Path,
        staging: Path,
        pause: Callable[[float], None] = time.sleep,
        *,
        only: str | None = None,
        exclude: tuple[str, ...] = (),
        quiet_s: float = 1.0,
    ) -> None:
        self._folder = folder
        self.staging = staging
        self._pause = pause
        self._only = only
        self._exclude = exclude
        self._quiet_s = quiet_s
        self._known: dict[str, tuple[FileStat, FileEntry]] = {}
        self._links: dict[str, FileStat] = {}
        self.clear()

    def scan(self) -> FolderScan:
        """List the files that travel."""
        return scan_folder(self._folder, self._only, self._exclude)

    def clear(self) -> None:
        """Drop what is staged."""
        shutil.rmtree(self.staging, ignore_errors=True)
        private_folder(self.staging)
        self._links = {}

    def drop(self, path: str) -> None:
        """Drop one file that is staged, if it is."""
        (self.staging / path).unlink(missing_ok=True)
        self._links.pop(path, None)

    def changed_links(self) -> list[str]:
        """Return the linked files that were written to since they were staged."""
        return [
            path
            for path, stat in self._links.items()
            if FileStat.of((self.staging / path).lstat()) != stat
        ]

    def take(
        self, last: Mapping[str, FileEntry], present: Mapping[str, FileEntry], *, final: bool
    ) -> Snapshot:
        """Take a snapshot.

        Args:
            last: the last state that was saved; a file that cannot be copied now stays what it was
                there.
            present: what the remote has under the files' own names, as far as that is known.
            final: nobody writes any more, so nothing is waited for and no line is cut.
        """
        for attempt in range(1 if final else _ATTEMPTS):
            is_last = final or attempt == _ATTEMPTS - 1
            before = self.scan()
            if not is_last and not self._is_quiet(before):
                self._pause(self._quiet_s)
                continue
            self.clear()
            entries, changed = self._stage_all(before, present, final=final)
            changed |= _changes(before, self.scan())
            if not changed or is_last:
                break
            self._pause(0.1 * 2**attempt)
        for path in changed:
            entries.pop(path, None)
            self.drop(path)
            if path in last and path in before.files:
                entries[path] = last[path]
        staged = {p: e for p, e in entries.items() if (self.staging / p).is_file()}
        extended = {p for p in staged if is_log(p) and p in last and self._begins_as(last[p])}
        busy = sorted(changed & before.files.keys())
        reasons = dict.fromkeys(busy, "changed while it was copied")
        return Snapshot(entries, staged, extended, before.left_out | reasons)

    def _stage_all(
        self, scan: FolderScan, present: Mapping[str, FileEntry], *, final: bool
    ) -> tuple[dict[str, FileEntry], set[str]]:
        """Return the entries, and the paths that changed meanwhile."""
        entries: dict[str, FileEntry] = {}
        changed: set[str] = set()
        for path in sorted(scan.files, key=lambda p: (is_log(p), p)):
            stat = scan.files[path]
            known = self._known_entry(path, stat)
            if known is not None and present.get(path) == known:
                entries[path] = known
                continue
            (self.staging / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                entry = None
                if stat.size >= _COPY_BELOW and not is_log(path):
                    entry = self._link(path, stat)
                if entry is None:
                    entry = self._copy(path, stat, final=final)
            except FileChangedError:
                changed.add(path)
                continue
            entries[path] = entry
            # A file may change twice within one tick of the file system's clock.
            if entry.size == stat.size and time.time_ns() - stat.mtime_ns > self._quiet_s * 1e9:
                self._known[path] = (stat, entry)
            if present.get(path) == entry:
                self.drop(path)
        return entries, changed

    def _known_entry(self, path: str, stat: FileStat) -> FileEntry | None:
        known_stat, entry = self._known.get(path, (None, None))
        return entry if known_stat == stat else None

    def _is_quiet(self, scan: FolderScan) -> bool:
        now = time.time_ns()
        return all(
            abs(now - stat.mtime_ns) >= self._quiet_s * 1e9 or is_log(path)
            for path, stat in scan.files.items()
            if self._known_entry(path, stat) is None
        )

    def _link(self, path: str, stat: FileStat) -> FileEntry | None:
        """Freeze a file by a hard link; None where the file system has none."""
        place = self.staging / path
        try:
            os.link(self._folder / path, place, follow_symlinks=False)
        except FileNotFoundError:
            raise FileChangedError(f"{path} is gone") from None
        except OSError:
            return None  # FAT, some mounted buckets, another file system
        self._links[path] = stat
        entry = self._known_entry(path, stat)
        if entry is None:
            entry = self._digests(place, stat.size).entry(path, stat.size, stat.mtime_ns)
        if FileStat.of(place.lstat()) != stat:
            raise FileChangedError(f"{path} changed while it was copied")
        return entry

    def _copy(self, path: str, stat: FileStat, *, final: bool) -> FileEntry:
        """Copy a file, of lines only whole ones."""
        place, digests = self.staging / path, _Digests()
        try:
            descriptor = os.open(self._folder / path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise FileChangedError(f"{path} is gone") from None
        with os.fdopen(descriptor, "rb") as file, place.open("wb") as copy:
            if FileStat.of(os.fstat(descriptor)).inode != stat.inode:
                raise FileChangedError(f"{path} was replaced while it was copied")
            size = stat.size if final else _whole_lines(file, path, stat.size)
            file.seek(0)
            for chunk in self._chunks(file, size):
                copy.write(chunk)
                digests.update(chunk)
            if copy.tell() != size:
                raise FileChangedError(f"{path} got shorter while it was copied")
        os.utime(place, ns=(stat.mtime_ns, stat.mtime_ns))
        return digests.entry(path, size, stat.mtime_ns)

    def _begins_as(self, earlier: FileEntry) -> bool:
        """Say whether a staged file begins with an earlier version of it."""
        place = self.staging / earlier.path
        return self._digests(place, earlier.size).sha256.hexdigest() == earlier.sha256

    def _digests(self, place: Path, size: int) -> "_Digests":
        """Return the checksums of the first `size` bytes of a staged file."""
        digests = _Digests()
        with place.open("rb") as file:
            for chunk in self._chunks(file, size):
                digests.update(chunk)
        return digests

    def _chunks(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        while size > 0 and (chunk := file.read(min(_CHUNK, size))):
            self._pause(0)
            size -= len(chunk)
            yield chunk


class _Digests:
    """The checksums of a file, chunk by chunk."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self.sha256.update(chunk)
        self._md5.update(chunk)

    def entry(self, path: str, size: int, mtime_ns: int) -> FileEntry:
        return FileEntry(path, size, self.sha256.hexdigest(), self._md5.hexdigest(), mtime_ns)


def entry_of(path: str, content: bytes) -> FileEntry:
    """Return the entry of a file with this content."""
    digests = _Digests()
    digests.update(content)
    return digests.entry(path, len(content), 0)


def _changes(before: FolderScan, after: FolderScan) -> set[str]:
    """Return the paths that came, went or changed, but for logs that grew."""
    changed = before.files.keys() ^ after.files.keys()
    for path in before.files.keys() & after.files.keys():
        old, new = before.files[path], after.files[path]
        grew = is_log(path) and old.inode == new.inode and old.size <= new.size
        if old != new and not grew:
            changed.add(path)
    return set(changed)


def _whole_lines(file: BinaryIO, path: str, size: int) -> int:
    """Return how much of a file of lines is whole: up to its last line break."""
    if not path.endswith(".jsonl") or size == 0:
        return size
    start = max(0, size - _CHUNK)
    file.seek(start)
    end = file.read(size - start).rfind(b"\n")
    if end >= 0:
        return start + end + 1
    return size if start else 0
