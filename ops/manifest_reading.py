"""Manifests as they come from a remote, which may be anybody's."""

import shutil
from pathlib import Path

from ops.atomic import private_folder
from ops.errors import DamagedError
from ops.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestName, decode
from ops.rclone_store import RcloneStore


def read_manifest(store: RcloneStore, name: ManifestName, work_dir: Path) -> Manifest:
    """Download and check a manifest.

    Raises:
        DamagedError: missing, torn, too large or refused.
        RemoteError: the remote cannot be read.
    """
    shutil.rmtree(work_dir, ignore_errors=True)
    private_folder(work_dir)
    try:
        store.download("manifests", [name.file_name], work_dir, MAX_MANIFEST_BYTES)
        path = work_dir / name.file_name
        if not path.is_file() or path.is_symlink():
            raise DamagedError(f"manifest {name.file_name} is not there")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DamagedError(f"manifest {name.file_name} is larger than {MAX_MANIFEST_BYTES}")
        return decode(name, path.read_bytes())
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def newest_readable(
    store: RcloneStore, names: list[ManifestName], work_dir: Path
) -> Manifest | None:
    """Return the first of these manifests that is whole; None if none is.

    An upload that was cut short leaves a torn manifest, which names nothing.

    Raises:
        RemoteError: the remote cannot be read.
    """
    for name in names:
        try:
            return read_manifest(store, name, work_dir)
        except DamagedError:
            continue
    return None
