"""What lies in a folder: the files that may travel, and why others may not."""

import fnmatch
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from ops.store.atomic import PARTIAL_SUFFIX
from ops.store.manifest import path_problem

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
    """List a folder.

    Args:
        folder: a folder that is not there is empty.
        only: the one path that counts.
        exclude: patterns (`*.mp4`, `videos/*`) of paths to leave out.
    """
    files: dict[str, FileStat] = {}
    left_out: dict[str, str] = {}
    config = _rclone_config()
    for path, status in _walk(folder, "", left_out):
        if only is not None and path != only:
            continue
        name = path.rsplit("/", 1)[-1]
        if name.endswith(PARTIAL_SUFFIX) or any(fnmatch.fnmatchcase(path, p) for p in exclude):
            continue
        if name == "rclone.conf" or config == (status.st_dev, status.st_ino):
            left_out[path] = "is rclone's configuration"
        elif not stat.S_ISREG(status.st_mode):
            left_out[path] = "is no regular file (links are not followed)"
        else:
            files[path] = FileStat.of(status)
    return FolderScan(files, left_out)


def _walk(
    folder: Path, prefix: str, left_out: dict[str, str]
) -> "list[tuple[str, os.stat_result]]":
    found: list[tuple[str, os.stat_result]] = []
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return found  # gone since it was listed
    for entry in listed:
        path = prefix + entry.name
        if problem := path_problem(path):
            if "ops.sync" not in problem:
                left_out[repr(path)] = problem
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                found += _walk(Path(entry.path), path + "/", left_out)
            else:
                found.append((path, entry.stat(follow_symlinks=False)))
        except FileNotFoundError:
            continue
    return found


def _rclone_config() -> tuple[int, int] | None:
    """Return device and inode of rclone's configuration, wherever it lies."""
    default = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rclone"
    place = os.environ.get("RCLONE_CONFIG") or str(default / "rclone.conf")
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_dev, status.st_ino
