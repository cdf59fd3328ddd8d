"""What lies in a folder: the files that may travel, and why others may not."""

import fnmatch
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ops.store.atomic import PARTIAL_SUFFIX
from ops.store.manifest import path_problem
from ops.store.rclone import STATE_FOLDER

# Files that only ever grow at their end, so that a stretch from their start stays what it was.
LOG_PATTERNS = ("*.jsonl", "*tfevents*", "*.log", "*.out", "*.err")


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
