"""A lock on a folder that ends with the process that holds it, however it ends."""

import fcntl
import os
from pathlib import Path
from types import TracebackType

from ops.errors import OpsError


class FolderLock:
    """Refuses a second holder. A POSIX record lock: the kernel drops it when its process dies.

    Unlike `flock` it is not inherited by children, so that no child left behind keeps it.

    Args:
        path: the lock file; it stays there, since only the lock on it counts.
        what: what is locked, for the message.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._descriptor = -1

    def __enter__(self) -> "FolderLock":
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise OpsError(
                f"{self._what} is in use by another ops.sync (process {holder or 'unknown'}); "
                "wait until it ends, or stop it"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)
