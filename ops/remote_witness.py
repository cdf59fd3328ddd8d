"""What a folder remote has named, and whether all of it is still there."""

import hashlib
from pathlib import Path

from ops.errors import DamagedError
from ops.manifest import Manifest, decode, parse_name


class Witness:
    """Remembers every manifest that was ever seen on a folder remote.

    Args:
        remote: the remote's folder.
    """

    def __init__(self, remote: Path) -> None:
        self._remote = remote
        self._seen: dict[str, Manifest] = {}

    def losses(self) -> list[str]:
        """Return what a manifest named and the remote no longer has whole."""
        lost: list[str] = []
        folder = self._remote / "manifests"
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            name = parse_name(path.name)
            if name is None or path.name in self._seen:
                continue
            try:
                self._seen[path.name] = decode(name, path.read_bytes())
            except DamagedError:
                continue  # an upload that was cut: it names nothing
        wanted: dict[str, int] = {}
        for file_name, manifest in self._seen.items():
            if not (folder / file_name).is_file():
                lost.append(f"manifest {file_name}")
            wanted |= manifest.objects
        for sha256, size in wanted.items():
            place = self._remote / "objects" / sha256
            if not place.is_file() or place.stat().st_size != size:
                lost.append(f"object {sha256}")
            elif hashlib.sha256(place.read_bytes()).hexdigest() != sha256:
                lost.append(f"content of {sha256}")
        return lost

    @property
    def num_manifests(self) -> int:
        """How many were seen."""
        return len(self._seen)
