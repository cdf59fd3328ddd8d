"""The folder that a state is restored into: what lies in it, and what may be written there."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from ops.errors import OpsError
from ops.folder_scan import scan_folder
from ops.manifest import FileEntry, Manifest, Part, path_problem

_SHOWN = 5


class RestoreTarget:
    """A local folder.

    Args:
        folder: where files go.
        state_dir: this program's own folder inside it.
    """

    def __init__(self, folder: Path, state_dir: Path) -> None:
        self.folder = folder
        self.marker = state_dir / "restoring.json"
        self._state_dir = state_dir

    def local_files(self) -> set[str]:
        """Return the paths of all files and links here, but for unfinished ones."""
        scan = scan_folder(self.folder)
        links = {path for path in scan.left_out if os.path.lexists(self.folder / path)}
        return scan.files.keys() | links

    def is_here(self, entry: FileEntry) -> bool:
        """Say whether a file lies here with this content."""
        path = self.folder / entry.path
        try:
            self.require_inside(entry.path)
        except OpsError:
            return False
        if not path.is_file() or path.is_symlink() or path.stat().st_size != entry.size:
            return False
        return sha256_of(path) == entry.sha256

    def foreign(self, manifest: Manifest, *, accept: bool) -> list[str]:
        """Return the files here that are not the state's.

        Raises:
            OpsError: there are some, and they are not accepted.
        """
        for path in manifest.files:
            self.require_inside(path)
        ours = self.unfinished()
        foreign = sorted(
            path
            for path in self.local_files()
            if not (path in manifest.files and self.is_here(manifest.files[path]))
            and not (path in ours and self.is_here(ours[path]))
        )
        if foreign and not accept:
            shown = ", ".join(foreign[:_SHOWN]) + (" …" if len(foreign) > _SHOWN else "")
            raise OpsError(
                f"{self.folder} holds files that are not those of state {manifest.number}: "
                f"{shown}; restore into an empty folder, or give --overwrite (they are moved aside)"
            )
        return foreign

    def move_aside(self, foreign: list[str], say: Callable[[str], None]) -> None:
        """Move files out of the way, into a new folder under the state folder."""
        if not foreign:
            return
        aside = self._state_dir / f"replaced-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        for path in foreign:
            target = aside / path
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.folder / path, target)
        say(f"moved {len(foreign)} files to {aside}")

    def require_inside(self, path: str) -> None:
        """Check that no folder on the way to a path is a link that leads elsewhere."""
        place = self.folder
        for piece in path.split("/")[:-1]:
            place = place / piece
            if place.is_symlink() or (place.exists() and not place.is_dir()):
                raise OpsError(f"{place} is no folder but a link or a file; nothing is written")

    def unfinished(self) -> dict[str, FileEntry]:
        """Return the files that an earlier restore, which did not end, was putting here."""
        try:
            files = json.loads(self.marker.read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {
            path: FileEntry(path, size, sha256, 0, (Part(sha256, size),))
            for path, (size, sha256) in files.items()
            if path_problem(path) is None
        }


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
