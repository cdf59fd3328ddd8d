"""Files that are whole or not there, folders that nobody else can read, and locks on them."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from ops.store.errors import OpsError

PARTIAL_SUFFIX = ".partial"


def private_folder(path: Path) -> Path:
    """Make a folder, with its parents, that only this user can read.

    Raises:
        OpsError: a link is in its place, which could lead anywhere.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise OpsError(f"{path} is a link; remove it")
    path.mkdir(mode=0o700, exist_ok=True)
    path.chmod(0o700)
    return path


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file to the disk and give it its name."""
    _flush(temporary)
    os.replace(temporary, path)
    _flush(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, under a temporary name first."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    temporary.write_bytes(content)
    publish(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)
