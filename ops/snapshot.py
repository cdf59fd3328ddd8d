"""A folder as it is at one moment, while others write to it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ops.folder_scan import FileStat, FolderScan, is_log, scan_folder
from ops.manifest import FileEntry
from ops.staging import FileChangedError, Staging

# Up to this size a copy costs less than it saves.
_COPY_BELOW = 4 * 2**20
_ATTEMPTS = 6
_TAIL = 2**20


@dataclass(frozen=True)
class SnapshotOptions:
    """Which files travel.

    Attributes:
        only: the one path that counts, for a single file.
        exclude: patterns of paths to leave out.
        quiet_s: a folder whose files changed less long ago is waited for, a little.
    """

    only: str | None = None
    exclude: tuple[str, ...] = ()
    quiet_s: float = 1.0


@dataclass(frozen=True)
class Snapshot:
    """A state of the folder, its new objects staged.

    Attributes:
        entries: the files by path.
        left: paths that changed while they were copied, or may not travel, with the reason.
    """

    entries: dict[str, FileEntry]
    left: dict[str, str]


class SnapshotTaker:
    """Takes snapshots; a file whose size, time and inode are as before is not read again.

    Whole files are frozen first and logs read last: whoever writes logs the step before the
    checkpoint, so a checkpoint of the snapshot has its log lines there. A snapshot counts if a
    second look at the folder finds it as the first did, but for logs that grew.

    Args:
        folder: what is copied.
        staging: where new objects go.
        options: which files travel.
    """

    def __init__(self, folder: Path, staging: Staging, options: SnapshotOptions) -> None:
        self._folder = folder
        self._staging = staging
        self._options = options
        self._known: dict[str, tuple[FileStat, FileEntry]] = {}

    def scan(self) -> FolderScan:
        """List the files that travel."""
        return scan_folder(self._folder, self._options.only, self._options.exclude)

    def take(
        self,
        previous: dict[str, FileEntry],
        present: set[str],
        *,
        final: bool,
        pause: Callable[[float], None],
    ) -> Snapshot:
        """Take a snapshot.

        Args:
            previous: entries of the last state on the remote; a file that cannot be copied now
                stays what it was there.
            present: objects that are on the remote.
            final: nobody writes any more, so nothing is waited for and no line is cut.
            pause: sleeps, or raises to stop.
        """
        for attempt in range(1 if final else _ATTEMPTS):
            last = final or attempt == _ATTEMPTS - 1
            before = self.scan()
            if not last and not self._is_quiet(before):
                pause(self._options.quiet_s)
                continue
            self._staging.clear()
            entries, changed, links = self._freeze(before, previous, present, final=final)
            after = self.scan()
            changed |= _changes(before, after)
            if changed and not last:
                pause(0.1 * 2**attempt)
                continue
            entries |= self._seal(links, before, changed)
            break
        for path in changed:
            entries.pop(path, None)
            if path in previous and path in before.files:
                entries[path] = previous[path]
        left = before.left_out | dict.fromkeys(
            sorted(changed & before.files.keys()), "changed while it was copied"
        )
        self._staging.drop(present)
        return Snapshot(entries, left)

    def _is_quiet(self, scan: FolderScan) -> bool:
        now = time.time_ns()
        limit = self._options.quiet_s * 1e9
        return all(
            abs(now - status.mtime_ns) >= limit or is_log(path)
            for path, status in scan.files.items()
            if self._known.get(path, (None,))[0] != status
        )

    def _freeze(
        self,
        scan: FolderScan,
        previous: dict[str, FileEntry],
        present: set[str],
        *,
        final: bool,
    ) -> tuple[dict[str, FileEntry], set[str], dict[str, Path]]:
        """Return entries, paths that changed meanwhile, and links that are still to be hashed."""
        entries: dict[str, FileEntry] = {}
        links: dict[str, Path] = {}
        changed: set[str] = set()
        for path in sorted(scan.files, key=lambda p: (is_log(p), p)):
            status = scan.files[path]
            stat, entry = self._known.get(path, (None, None))
            if stat == status and entry and all(p.sha256 in present for p in entry.parts):
                entries[path] = entry
                continue
            source = self._folder / path
            try:
                if status.size >= _COPY_BELOW and not is_log(path):
                    link = self._staging.link(source, status)
                    if link is not None:
                        links[path] = link
                        continue
                size = status.size if final else _whole_lines(source, path, status.size)
                before = previous.get(path) if is_log(path) else None
                entries[path] = self._staging.copy(source, path, status, size, before)
            except FileChangedError:
                changed.add(path)
                continue
            if size == status.size:
                self._remember(path, status, entries[path])
        return entries, changed, links

    def _seal(
        self, links: dict[str, Path], scan: FolderScan, changed: set[str]
    ) -> dict[str, FileEntry]:
        entries = {}
        for path, link in links.items():
            status = scan.files[path]
            stat, entry = self._known.get(path, (None, None))
            sha256 = entry.sha256 if stat == status and entry else None
            try:
                entries[path] = self._staging.seal(link, path, status, sha256)
            except FileChangedError:
                changed.add(path)
                continue
            self._remember(path, status, entries[path])
        return entries

    def _remember(self, path: str, status: FileStat, entry: FileEntry) -> None:
        # A file may change twice within one tick of the file system's clock.
        if time.time_ns() - status.mtime_ns > self._options.quiet_s * 1e9:
            self._known[path] = (status, entry)


def _changes(before: FolderScan, after: FolderScan) -> set[str]:
    """Return the paths that came, went or changed, but for logs that grew."""
    changed = before.files.keys() ^ after.files.keys()
    for path in before.files.keys() & after.files.keys():
        old, new = before.files[path], after.files[path]
        grew = is_log(path) and old.inode == new.inode and old.size <= new.size
        if old != new and not grew:
            changed.add(path)
    return set(changed)


def _whole_lines(source: Path, path: str, size: int) -> int:
    """Return how much of a file of lines is whole: up to its last line break."""
    if not path.endswith(".jsonl") or size == 0:
        return size
    try:
        with source.open("rb") as file:
            start = max(0, size - _TAIL)
            file.seek(start)
            end = file.read(size - start).rfind(b"\n")
    except FileNotFoundError:
        raise FileChangedError(f"{path} is gone") from None
    if end >= 0:
        return start + end + 1
    return size if start else 0
