"""A file that grows by whole lines: a line is there or not, whatever happens meanwhile."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path


class LineFile:
    """Appends lines to a file.

    Args:
        path: the file; created if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, lines: Iterable[str]) -> None:
        """Write lines, each without its end, and bring them to the disk.

        Raises:
            OSError: the disk is full or gone; the file is as it was.
        """
        content = "".join(f"{line}\n" for line in lines).encode()
        if not content:
            return
        size = os.fstat(self._descriptor).st_size
        try:
            # A disk that runs full takes a part of it first.
            if os.write(self._descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            error.filename = str(self.path)
            raise

    def close(self) -> None:
        """Give the file free."""
        os.close(self._descriptor)
