"""The manifest: one complete state of a folder, named by what it says, checked before it is used.

On the remote:

    <path>                                       the newest version of each file, under its own name
    .sync/history/<attempt>/<path>               what that attempt replaced
    .sync/manifests/<number>-<writer>-<digest>.json   one complete state each, written last

A manifest is never changed, and what it names lies under its own name or in the history, so a state
stays whole whatever a newer one replaces. The digest is of the manifest's own bytes: a torn
manifest does not match its name.

Older remotes hold `objects/<sha256>` and `manifests/` that name them; they are only read. A
file there is the sequence of its parts, and each part is an object.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
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
_OLD_FORMAT = "ops-sync/1"
_OLD_MANIFESTS = "manifests"
_OLD_OBJECTS = "objects"
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
class OldFileEntry(FileEntry):
    """A file on an older remote, and the checksums and sizes of its parts, in order."""

    parts: tuple[tuple[str, int], ...] = ()


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
    """A complete state of a folder.

    Attributes:
        number: rises with every state.
        writer: random id of the folder that it was written from.
        created: in UTC, for people.
        files: by path.
    """

    number: int
    writer: str
    created: str
    files: dict[str, FileEntry]

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
        name = ManifestName(self.number, self.writer, _digest(text))
        decode(name, text)
        return name, text


def sum_of_sizes(files: Mapping[str, FileEntry]) -> int:
    """Return the bytes of all files together."""
    return sum(entry.size for entry in files.values())


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
    """Return the manifests of a remote, those of the old layout last, and each newest first."""
    folders = (MANIFESTS, _OLD_MANIFESTS)
    filters = [word for folder in folders for word in ("--include", f"/{folder}/*.json")]
    listed = [name.rpartition("/") for name in store.list_files(filters=filters)]
    return [
        name
        for folder in folders
        for name in newest_first((file for place, _, file in listed if place == folder), folder)
    ]


def read_manifest(store: RcloneStore, name: ManifestName, work_dir: Path) -> Manifest:
    """Download a manifest and check it.

    Raises:
        DamagedError: it is missing; see also `decode`.
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
            return decode(name, file.read(MAX_MANIFEST_BYTES + 1))
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def newest_readable(
    store: RcloneStore, names: list[ManifestName], work_dir: Path
) -> Manifest | None:
    """Return the first of these manifests that is whole; a torn one names nothing."""
    for name in names:
        with contextlib.suppress(DamagedError):
            return read_manifest(store, name, work_dir)
    return None


def decode(name: ManifestName, text: bytes) -> Manifest:
    """Read a manifest, which may come from anybody, in the format that its folder has.

    Raises:
        DamagedError: too large, torn, not of this format, or with a path that leaves its folder.
    """
    is_old = name.folder == _OLD_MANIFESTS
    form = _OLD_FORMAT if is_old else FORMAT
    if len(text) > MAX_MANIFEST_BYTES:
        raise DamagedError(f"manifest {name.file_name} is larger than {MAX_MANIFEST_BYTES} bytes")
    if _digest(text) != name.digest:
        raise DamagedError(f"manifest {name.file_name} is torn: its checksum differs")
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != form:
            raise ValueError(f"not of the format {form}")
        number, writer, created = content["number"], content["writer"], content["created"]
        if (number, writer) != (name.number, name.writer) or not isinstance(created, str):
            raise ValueError("its name says that it is another")
        files = _decode_files(content["files"], _decode_old_entry if is_old else _decode_entry)
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


def fetch_old_files(
    store: RcloneStore,
    entries: Iterable[FileEntry],
    incoming: Path,
    retry: Callable[[Callable[[], None]], None],
) -> None:
    """Put the files of an old state into `incoming`, each under its checksum; unverified.

    Args:
        store: the remote.
        entries: those of them that are of a new state are left alone.
        incoming: receives the files, and the parts that they are joined from.
        retry: calls what it is given until the remote answers.

    Raises:
        DamagedError: an object is missing.
    """
    old = [entry for entry in entries if isinstance(entry, OldFileEntry)]
    sizes = {sha256: size for entry in old for sha256, size in entry.parts}
    names = sorted(name for name in sizes if not (incoming / name).is_file())
    if names:
        num_bytes = sum(sizes[name] for name in names)
        retry(functools.partial(store.download, names, incoming, num_bytes, _OLD_OBJECTS))
    if lost := [name for name in names if not (incoming / name).is_file()]:
        raise DamagedError(f"{len(lost)} of its objects are missing")
    for entry in old:
        temporary = incoming / "joined.partial"
        with temporary.open("wb") as file:
            for sha256, _ in entry.parts:
                with (incoming / sha256).open("rb") as content:
                    shutil.copyfileobj(content, file)
        os.replace(temporary, incoming / entry.sha256)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _decode_files(items: Any, decode_entry: Callable[[Any], FileEntry]) -> dict[str, FileEntry]:
    if len(items) > _MAX_FILES:
        raise ValueError(f"more than {_MAX_FILES} files")
    entries = [_checked_entry(decode_entry(item)) for item in items]
    files = {entry.path: entry for entry in entries}
    if len(files) != len(entries):
        raise ValueError("a path twice")
    for path in files:
        folders = path.split("/")[:-1]
        if any("/".join(folders[: depth + 1]) in files for depth in range(len(folders))):
            raise ValueError(f"{path!r} lies inside a file")
    return files


def _decode_entry(item: Any) -> FileEntry:
    entry = FileEntry(*item)
    _check_digits(entry.md5, _MD5_LENGTH)
    return entry


def _decode_old_entry(item: Any) -> FileEntry:
    path, size, sha256, mtime_ns, items = item
    parts = tuple((digits, part) for digits, part in items)
    for digits, part in parts:
        _check_digits(digits)
        _check_size(part)
    if size != sum(part for _, part in parts):
        raise ValueError(f"the parts of {path!r:.200} do not make up its size")
    return OldFileEntry(path, size, sha256, "", mtime_ns, parts)


def _checked_entry(entry: FileEntry) -> FileEntry:
    path = entry.path
    if not isinstance(path, str) or (problem := path_problem(path)):
        raise ValueError(f"path {path!r:.200} {problem if isinstance(path, str) else 'is no text'}")
    _check_size(entry.size)
    _check_digits(entry.sha256)
    if type(entry.mtime_ns) is not int or not 0 <= entry.mtime_ns < 2**62:
        raise ValueError(f"the time of {path!r} is {entry.mtime_ns!r:.50}")
    return entry


def _check_digits(value: Any, length: int = _SHA256_LENGTH) -> None:
    if not isinstance(value, str) or len(value) != length or not _DIGITS.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no checksum of {length} digits")


def _check_size(value: Any) -> None:
    if type(value) is not int or not 0 <= value <= _MAX_FILE_BYTES:
        raise ValueError(f"{value!r:.50} is no size")
