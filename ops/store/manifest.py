"""The manifest: one complete state of a folder, named by what it says, checked before it is used.

On the remote:

    <path>                                       the newest version of each file, under its own name
    .sync/history/<attempt>/<path>               what that attempt replaced
    .sync/manifests/<number>-<writer>-<digest>.json   one complete state each, written last

A manifest is never changed, and what it names lies under its own name or in the history, so a state
stays whole whatever a newer one replaces. The digest is of the manifest's own bytes: a torn
manifest does not match its name.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from ops.store.atomic import private_folder
from ops.store.errors import DamagedError
from ops.store.rclone import STATE_FOLDER, RcloneStore, RemoteFile

FORMAT = "ops-sync/2"
MANIFESTS = f"{STATE_FOLDER}/manifests"
HISTORY = f"{STATE_FOLDER}/history"
MAX_MANIFEST_BYTES = 16 * 2**20
_MAX_FILES = 100_000
_MAX_PATH_BYTES = 1024
_MAX_FILE_BYTES = 2**43
_NAME = re.compile(r"(\d{8})-([0-9a-f]{8})-([0-9a-f]{16})\.json")
_ATTEMPT = re.compile(r"[0-9a-f-]+")
_DIGITS = re.compile(r"[0-9a-f]+")
_SHA256_LENGTH = 64
_MD5_LENGTH = 32


@dataclass(frozen=True)
class FileEntry:
    """A file of a state. The MD5 is for remotes that know no SHA-256; the latter alone verifies."""

    path: str
    size: int
    sha256: str
    md5: str
    mtime_ns: int = field(compare=False)

    def is_listed_as(self, file: RemoteFile | None, *, needs_hash: bool = False) -> bool:
        """Say whether a file of the remote is this one, as far as its listing tells."""
        if file is None or file.size != self.size or (needs_hash and not file.hashes):
            return False
        ours = {"sha256": self.sha256, "md5": self.md5}
        return all(ours[kind] == value for kind, value in file.hashes.items() if kind in ours)


@dataclass(frozen=True)
class ManifestName:
    """What a manifest's file name says, and the folder of the remote where it lies."""

    number: int
    writer: str
    digest: str
    folder: str = MANIFESTS

    @property
    def file_name(self) -> str:
        """Return the file name on the remote."""
        return f"{self.number:08d}-{self.writer}-{self.digest}.json"


@dataclass(frozen=True)
class Manifest:
    """A complete state of a folder."""

    number: int
    """Rises with every state."""
    writer: str
    """Random id of the folder that it was written from."""
    created: str
    """UTC, for people."""
    files: dict[str, FileEntry]
    """By path."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def encode(self) -> tuple[ManifestName, bytes]:
        """Return the name and the bytes of the manifest's file.

        Raises:
            DamagedError: a reader would refuse it.
        """
        content = {
            "format": FORMAT,
            "number": self.number,
            "writer": self.writer,
            "created": self.created,
            "files": [astuple(entry) for _, entry in sorted(self.files.items())],
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        digest = hashlib.sha256(text).hexdigest()[:16]
        name = ManifestName(self.number, self.writer, digest)
        decode(name, text)
        return name, text


def path_of(name: str) -> str | None:
    """Return which file of the run a file of the remote is a version of; None for any other."""
    if name.startswith(f"{HISTORY}/"):
        attempt, _, path = name.removeprefix(f"{HISTORY}/").partition("/")
        return path if path and _ATTEMPT.fullmatch(attempt) else None
    return None if name.startswith(f"{STATE_FOLDER}/") else name


def newest_first(file_names: Iterable[str], folder: str = MANIFESTS) -> list[ManifestName]:
    """Return the manifests among these files of a folder, the newest first."""
    found = [match for match in map(_NAME.fullmatch, file_names) if match]
    names = [ManifestName(int(m[1]), m[2], m[3], folder) for m in found]
    return sorted(names, key=lambda name: (name.number, name.writer, name.digest), reverse=True)


def list_manifests(store: RcloneStore) -> list[ManifestName]:
    """Return the manifests of a remote, the newest first."""
    return newest_first(store.list_files(MANIFESTS))


def read_manifest(store: RcloneStore, name: ManifestName, work_dir: Path) -> bytes:
    """Download the bytes of a manifest.

    Raises:
        DamagedError: missing or too large.
        RemoteError: the remote cannot be read.
    """
    shutil.rmtree(work_dir, ignore_errors=True)
    private_folder(work_dir)
    try:
        store.download([name.file_name], work_dir, MAX_MANIFEST_BYTES, name.folder)
        path = work_dir / name.file_name
        if not path.is_file() or path.is_symlink():
            raise DamagedError(f"manifest {name.file_name} is not there")
        with path.open("rb") as file:
            return file.read(MAX_MANIFEST_BYTES + 1)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def decode(
    name: ManifestName,
    text: bytes,
    form: str = FORMAT,
    decode_entry: "Callable[[Any], FileEntry] | None" = None,
) -> Manifest:
    """Read a manifest, which may come from anybody.

    Args:
        name: its file name.
        text: its bytes.
        form: the format that it has to have.
        decode_entry: reads a file's entry of that format; raises ValueError or TypeError.

    Raises:
        DamagedError: too large, torn, not of this format, or with a path that leaves its folder.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise DamagedError(f"manifest {name.file_name} is larger than {MAX_MANIFEST_BYTES} bytes")
    if hashlib.sha256(text).hexdigest()[:16] != name.digest:
        raise DamagedError(f"manifest {name.file_name} is torn: its checksum differs")
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != form:
            raise ValueError(f"not of the format {form}")
        number, writer, created = content["number"], content["writer"], content["created"]
        if (number, writer) != (name.number, name.writer) or not isinstance(created, str):
            raise ValueError("its name says that it is another")
        files = _decode_files(content["files"], decode_entry or _decode_entry)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"manifest {name.file_name} is refused: {error}") from None
    return Manifest(name.number, name.writer, created, files)


def path_problem(path: str) -> str | None:
    """Say why a relative path may not be written to, or None."""
    pieces = path.split("/")
    try:
        num_bytes = len(path.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not path or num_bytes > _MAX_PATH_BYTES:
        return f"is empty or longer than {_MAX_PATH_BYTES} bytes"
    if any(piece in ("", ".", "..") for piece in pieces):
        return "is absolute or leaves its folder"
    if any(ord(sign) < 32 or ord(sign) == 127 or sign == "\\" for sign in path):
        return "holds a control character or a backslash"
    if pieces[0].startswith(STATE_FOLDER):
        return "lies in the folder of ops.sync itself"
    return None


def _decode_files(items: Any, decode_entry: Callable[[Any], FileEntry]) -> dict[str, FileEntry]:
    if len(items) > _MAX_FILES:
        raise ValueError(f"more than {_MAX_FILES} files")
    entries = [decode_entry(item) for item in items]
    files = {entry.path: entry for entry in entries}
    if len(files) != len(entries):
        raise ValueError("a path twice")
    for path in files:
        folders = path.split("/")[:-1]
        if any("/".join(folders[: depth + 1]) in files for depth in range(len(folders))):
            raise ValueError(f"{path!r} lies inside a file")
    return files


def _decode_entry(item: Any) -> FileEntry:
    entry = checked_entry(FileEntry(*item))
    checked_digits(entry.md5, _MD5_LENGTH)
    return entry


def checked_entry(entry: FileEntry) -> FileEntry:
    """Check all of an entry but its MD5.

    Raises:
        ValueError: it may not be used, or is not what it should be.
    """
    path = entry.path
    if not isinstance(path, str) or (problem := path_problem(path)):
        raise ValueError(f"path {path!r:.200} {problem if isinstance(path, str) else 'is no text'}")
    checked_size(entry.size)
    checked_digits(entry.sha256, _SHA256_LENGTH)
    if type(entry.mtime_ns) is not int or not 0 <= entry.mtime_ns < 2**62:
        raise ValueError(f"the time of {path!r} is {entry.mtime_ns!r:.50}")
    return entry


def checked_digits(value: Any, length: int = _SHA256_LENGTH) -> str:
    """Return a checksum, or raise ValueError."""
    if not isinstance(value, str) or len(value) != length or not _DIGITS.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no checksum of {length} digits")
    return value


def checked_size(value: Any) -> int:
    """Return a size, or raise ValueError."""
    if type(value) is not int or not 0 <= value <= _MAX_FILE_BYTES:
        raise ValueError(f"{value!r:.50} is no size")
    return value
