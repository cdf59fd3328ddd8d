"""Objects that wait for their upload: copies of small files and logs, hard links of large ones."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ops.atomic import private_folder
from ops.errors import OpsError
from ops.folder_scan import FileStat
from ops.manifest import FileEntry, Part

_CHUNK = 2**20
# Parts of a log up to this size are sent again rather than added to.
_SMALL_PART = 16 * 1024


class FileChangedError(OpsError):
    """A file changed while it was read; it is left for the next round."""


class Staging:
    """A folder that holds objects under their checksum until they are on the remote.

    Args:
        folder: made if need be, readable by this user only, emptied at the start.
        beat: called between chunks of reading; it may raise to stop.
    """

    def __init__(self, folder: Path, beat: Callable[[], None]) -> None:
        self.folder = folder
        self.objects = folder / "objects"
        self._beat = beat
        self._links: dict[Path, FileStat] = {}
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        private_folder(self.folder)
        private_folder(self.objects)
        self._links = {}

    def drop(self, names: set[str]) -> None:
        """Drop objects that are on the remote already."""
        for name in names:
            (self.objects / name).unlink(missing_ok=True)
            self._links.pop(self.objects / name, None)

    def link(self, source: Path, expected: FileStat) -> Path | None:
        """Freeze a file by a hard link: what is written over it later does not touch the link.

        Returns:
            Where the link lies, or None where the file system has none.

        Raises:
            FileChangedError: the file is no longer the one that was listed.
        """
        place = self.folder / f"link-{expected.inode}"
        place.unlink(missing_ok=True)
        try:
            os.link(source, place, follow_symlinks=False)
        except FileNotFoundError:
            raise FileChangedError(f"{source} is gone") from None
        except OSError:
            return None  # FAT, some mounted buckets, another file system
        if FileStat.of(place.lstat()) != expected:
            raise FileChangedError(f"{source} changed while it was copied")
        return place

    def seal(self, link: Path, path: str, stat: FileStat, sha256: str | None) -> FileEntry:
        """Give a link the name of its content, which is hashed if `sha256` is not known."""
        digest = sha256 or self._hash(link)
        if FileStat.of(link.lstat()) != stat:
            raise FileChangedError(f"{path} changed while it was copied")
        target = self.objects / digest
        os.replace(link, target)
        link.unlink(missing_ok=True)  # two links of one file: the rename does nothing
        self._links[target] = stat
        return FileEntry(path, stat.size, digest, stat.mtime_ns, (Part(digest, stat.size),))

    def changed_links(self) -> list[Path]:
        """Return the linked objects that were written to since: their name no longer holds."""
        return [p for p, stat in self._links.items() if FileStat.of(p.lstat()) != stat]

    def copy(
        self, source: Path, path: str, stat: FileStat, size: int, previous: FileEntry | None
    ) -> FileEntry:
        """Copy the first `size` bytes of a file into an object.

        If the file begins with what it was in `previous`, only what came after is copied; small
        parts at the end are joined with it, so that a log that grows n times has O(log n) parts
        and each byte is sent O(log n) times.

        Raises:
            FileChangedError: the file got shorter, or is no longer the one that was listed.
        """
        kept = _kept_parts(previous, size)
        if kept:
            entry = self._copy_from(source, path, stat, size, kept)
            if entry is not None:
                return entry
        entry = self._copy_from(source, path, stat, size, ())
        if entry is None:
            raise FileChangedError(f"{path} changed while it was copied")
        return entry

    def _copy_from(
        self, source: Path, path: str, stat: FileStat, size: int, kept: tuple[Part, ...]
    ) -> FileEntry | None:
        """Copy what follows the kept parts; None if the file does not begin with them."""
        whole = hashlib.sha256()
        place = self.folder / "copy"
        try:
            descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise FileChangedError(f"{path} is gone") from None
        with os.fdopen(descriptor, "rb") as file:
            if FileStat.of(os.fstat(descriptor)).inode != stat.inode:
                raise FileChangedError(f"{path} was replaced while it was copied")
            for part in kept:
                digest = hashlib.sha256()
                for chunk in self._chunks(file, part.size):
                    digest.update(chunk)
                    whole.update(chunk)
                if digest.hexdigest() != part.sha256:
                    return None
            rest = size - sum(part.size for part in kept)
            parts = kept
            if rest or not kept:
                tail = hashlib.sha256()
                with place.open("wb") as copy:
                    for chunk in self._chunks(file, rest):
                        copy.write(chunk)
                        tail.update(chunk)
                        whole.update(chunk)
                    copied = copy.tell()
                if copied != rest:
                    raise FileChangedError(f"{path} got shorter while it was copied")
                target = self.objects / tail.hexdigest()
                os.replace(place, target)
                self._links.pop(target, None)
                parts = (*kept, Part(tail.hexdigest(), rest))
        return FileEntry(path, size, whole.hexdigest(), stat.mtime_ns, parts)

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self._beat()
                digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        while size > 0 and (chunk := file.read(min(_CHUNK, size))):
            self._beat()
            size -= len(chunk)
            yield chunk


def _kept_parts(previous: FileEntry | None, size: int) -> tuple[Part, ...]:
    """Choose the parts to keep: each at least twice as large as all that comes after it."""
    if previous is None or size < previous.size:
        return ()
    parts = list(previous.parts)
    tail = size - previous.size
    while tail and parts and parts[-1].size <= max(2 * tail, _SMALL_PART):
        tail += parts.pop().size
    return tuple(parts)
