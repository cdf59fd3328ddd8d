"""Files and lines that are whole or not there, whatever happens meanwhile.

A file is written under a temporary name, synced and renamed; a file of lines grows by whole lines.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL_SUFFIX = ".partial"
_BLOCK_BYTES = 65_536


def partial_path(path: Path) -> Path:
    """Return the temporary name that a file has until it is whole."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; when the block ends well it is synced and renamed to `path`.

    When the block raises, the temporary file is removed and `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.unlink(missing_ok=True)  # a link left there would be written through
    try:
        yield partial
        publish(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failed write does not know which file it was for
        partial.unlink(missing_ok=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Sync a finished temporary file to the disk and give it its final name."""
    sync_file(partial)
    os.replace(partial, path)
    sync_file(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file or folder from the page cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically. Numbers that JSON lacks (NaN) are refused."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


class LineFile:
    """Appends lines to a file, which is created if it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        is_new = not path.exists()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        if is_new:
            sync_file(path.parent)

    @property
    def num_bytes(self) -> int:
        """How long the file is."""
        return os.fstat(self._descriptor).st_size

    def append(self, lines: Iterable[str]) -> None:
        """Write lines, each without its end, and bring them to the disk with one flush.

        Raises:
            OSError: the disk is full or gone; the file is as it was.
        """
        content = "".join(f"{line}\n" for line in lines).encode()
        before = self.num_bytes
        try:
            # A disk that runs full takes a part first.
            while content:
                content = content[os.write(self._descriptor, content) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            error.filename = str(self.path)
            raise

    def cut_torn_line(self) -> None:
        """Take away what follows the last line end: a kill in the middle of a write leaves it."""
        end = keep = self.num_bytes
        while keep > 0:
            start = max(keep - _BLOCK_BYTES, 0)
            found = os.pread(self._descriptor, keep - start, start).rfind(b"\n")
            if found >= 0:
                keep = start + found + 1
                break
            keep = start
        if keep < end:
            self._truncate(keep)

    def clear(self) -> None:
        """Take away all lines."""
        self._truncate(0)

    def close(self) -> None:
        """Give the file free."""
        os.close(self._descriptor)

    def _truncate(self, num_bytes: int) -> None:
        os.ftruncate(self._descriptor, num_bytes)
        os.fsync(self._descriptor)
