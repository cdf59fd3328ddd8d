"""Files that are whole or not there, and folders that nobody else can read."""

import json
import os
from pathlib import Path
from typing import Any

from ops.errors import OpsError

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


def sync_path(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished temporary file to the disk and give it its name."""
    sync_path(temporary)
    os.replace(temporary, path)
    sync_path(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole, under a temporary name first."""
    temporary = path.with_name(path.name + PARTIAL_SUFFIX)
    temporary.write_bytes(content)
    publish(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, whole."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
