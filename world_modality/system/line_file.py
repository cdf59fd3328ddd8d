"""A file that grows by whole lines: a line is there or not, whatever happens meanwhile."""

import os
from collections.abc import Iterable
from pathlib import Path

from world_modality.system.atomic import sync_file

_BLOCK_BYTES = 65_536


class LineFile:
    """Appends lines to a file.

    Args:
        path: the file; created if it is not there.
    """

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
