"""The manifest: one complete state of a folder, named by what it says, checked before it is used.

On the remote:

    objects/<sha256>                            content, each object once
    manifests/<number>-<writer>-<digest>.json   one complete state each, written after its objects

A manifest is never changed and an object never replaced by another content, so a state stays whole
whatever happens to the files here. The digest is of the manifest's own bytes: a torn manifest does
not match its name.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ops.errors import DamagedError

FORMAT = "ops-sync/1"
MAX_MANIFEST_BYTES = 16 * 2**20
STATE_FOLDER_PREFIX = ".sync"
_MAX_FILES = 100_000
_MAX_PATH_BYTES = 1024
_MAX_FILE_BYTES = 2**43
_NAME = re.compile(r"(\d{8})-([0-9a-f]{8})-([0-9a-f]{16})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Part:
    """An object that holds a stretch of a file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class FileEntry:
    """A file of a state: its parts in order, and the checksum of the whole."""

    path: str
    size: int
    sha256: str
    mtime_ns: int
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ManifestName:
    """What a manifest's file name says."""

    number: int
    writer: str
    digest: str

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
        created: UTC, for people.
        files: by path.
    """

    number: int
    writer: str
    created: str
    files: dict[str, FileEntry]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    @property
    def objects(self) -> dict[str, int]:
        """Sizes of the objects that the state needs, by name."""
        return {p.sha256: p.size for entry in self.files.values() for p in entry.parts}

    def encode(self) -> tuple[ManifestName, bytes]:
        """Return the name and the bytes of the manifest's file.

        Raises:
            DamagedError: it would be larger than a reader accepts.
        """
        files = [
            [e.path, e.size, e.sha256, e.mtime_ns, [[p.sha256, p.size] for p in e.parts]]
            for _, e in sorted(self.files.items())
        ]
        content = {
            "format": FORMAT,
            "number": self.number,
            "writer": self.writer,
            "created": self.created,
            "files": files,
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        if len(text) > MAX_MANIFEST_BYTES or len(files) > _MAX_FILES:
            raise DamagedError(
                f"the folder has {len(files)} files; a state holds at most {_MAX_FILES} and a "
                f"manifest {MAX_MANIFEST_BYTES} bytes: sync its parts to remotes of their own"
            )
        digest = hashlib.sha256(text).hexdigest()[:16]
        return ManifestName(self.number, self.writer, digest), text


def parse_name(file_name: str) -> ManifestName | None:
    """Read a manifest's file name; None for any other file."""
    match = _NAME.fullmatch(file_name)
    return ManifestName(int(match[1]), match[2], match[3]) if match else None


def newest_first(file_names: Iterable[str]) -> list[ManifestName]:
    """Return the manifests among these files, the newest first."""
    names = [name for name in map(parse_name, file_names) if name is not None]
    return sorted(names, key=lambda name: (name.number, name.writer, name.digest), reverse=True)


def decode(name: ManifestName, text: bytes) -> Manifest:
    """Read a manifest, which may come from anybody.

    Raises:
        DamagedError: too large, torn, not of this format, or with a path that leaves its folder.
    """
    if len(text) > MAX_MANIFEST_BYTES:
        raise DamagedError(f"manifest {name.file_name} is larger than {MAX_MANIFEST_BYTES} bytes")
    if hashlib.sha256(text).hexdigest()[:16] != name.digest:
        raise DamagedError(f"manifest {name.file_name} is torn: its checksum differs")
    try:
        manifest = _decode(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedError(f"manifest {name.file_name} is refused: {error}") from None
    if (manifest.number, manifest.writer) != (name.number, name.writer):
        raise DamagedError(f"manifest {name.file_name} says that it is another")
    return manifest


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
    if pieces[0].startswith(STATE_FOLDER_PREFIX):
        return "lies in the folder of ops.sync itself"
    return None


def _decode(content: Any) -> Manifest:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"not of the format {FORMAT}")
    if len(content["files"]) > _MAX_FILES:
        raise ValueError("too many files")
    entries = [_decode_entry(item) for item in content["files"]]
    files = {entry.path: entry for entry in entries}
    if len(files) != len(entries):
        raise ValueError("a path twice")
    for path in files:
        folders = path.split("/")[:-1]
        if any("/".join(folders[: depth + 1]) in files for depth in range(len(folders))):
            raise ValueError(f"{path!r} lies inside a file")
    number, writer, created = content["number"], content["writer"], content["created"]
    if type(number) is not int or not isinstance(writer, str) or not isinstance(created, str):
        raise ValueError("number, writer and created are not an integer and two texts")
    return Manifest(number, writer, created, files)


def _decode_entry(item: Any) -> FileEntry:
    path, size, sha256, mtime_ns, parts = item
    if not isinstance(path, str) or (problem := path_problem(path)):
        raise ValueError(f"path {path!r:.200} {problem if isinstance(path, str) else 'is no text'}")
    decoded = tuple(Part(_sha256(part_sha256), _size(s)) for part_sha256, s in parts)
    if _size(size) != sum(part.size for part in decoded):
        raise ValueError(f"the parts of {path!r} do not make up its size")
    if type(mtime_ns) is not int or not 0 <= mtime_ns < 2**62:
        raise ValueError(f"the time of {path!r} is {mtime_ns!r:.50}")
    return FileEntry(path, size, _sha256(sha256), mtime_ns, decoded)


def _sha256(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"{value!r:.80} is no SHA-256")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_FILE_BYTES:
        raise ValueError(f"{value!r:.50} is no size")
    return value
