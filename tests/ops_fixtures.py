"""A machine with a folder, and a remote that is a folder, through the real rclone."""

import hashlib
import json

from ops.store.atomic import private_folder
from ops.store.manifest import MANIFESTS, ManifestName, decode, newest_first
from ops.store.rclone import CallLimits, RcloneStore
from ops.store.remote_name import parse_remote
from ops.store.restore import RestoreOptions, Restorer
from ops.store.snapshot import SnapshotTaker
from ops.store.uploader import Uploader

SHA = "a" * 64
MD5 = "b" * 32


class World:
    """A machine with a folder, and a remote."""

    def __init__(self, path):
        self.path = path
        self.local = path / "local"
        self.local.mkdir()
        self.remote = path / "remote"
        self.manifest_folder = self.remote / MANIFESTS
        self.store = RcloneStore(parse_remote(f":local:{self.remote}"), CallLimits(30.0, nice=0))
        self.said = []

    def uploader(self, local=None, **options):
        local = local or self.local
        state_dir = private_folder(local / ".sync")
        taker = SnapshotTaker(local, state_dir / "staging", quiet_s=0.0)
        return Uploader(self.store, taker, state_dir, **options)

    def restore(self, name="back", **options):
        folder = self.path / name
        state_dir = private_folder(folder / ".sync")
        options = RestoreOptions(**({"retries": 0} | options))
        return Restorer(self.store, folder, state_dir, options, self.said.append).restore()

    def content(self, name="back"):
        folder = self.path / name
        files = [p for p in folder.rglob("*") if p.is_file()]
        paths = {p.relative_to(folder).as_posix(): p.read_text() for p in files}
        return {path: text for path, text in paths.items() if not path.startswith(".sync")}

    def history(self):
        folders = (self.remote / ".sync" / "history").glob("*")
        return [
            (p.relative_to(folder).as_posix(), p.read_text())
            for folder in sorted(folders)
            for p in sorted(folder.rglob("*"))
            if p.is_file()
        ]

    def manifests(self):
        names = newest_first(p.name for p in self.manifest_folder.iterdir())
        return [decode(n, (self.manifest_folder / n.file_name).read_bytes()) for n in names]

    def plant(self, paths, number=99, size=0):
        """Put a manifest on the remote that this program would never write."""
        content = {"format": "ops-sync/2", "number": number, "writer": "0123abcd"}
        content |= {"created": "now", "files": [[path, size, SHA, MD5, 0] for path in paths]}
        plant_json(self.manifest_folder, content)


def plant_json(folder, content):
    text = json.dumps(content).encode()
    name = ManifestName(content["number"], "0123abcd", hashlib.sha256(text).hexdigest()[:16])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name.file_name).write_bytes(text)
