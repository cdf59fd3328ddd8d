"""A sync beside something that runs: rounds at an interval, retries, a last round at the end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ops.store.atomic import write_json
from ops.store.errors import OpsError, RemoteError
from ops.store.manifest import sum_of_sizes
from ops.store.rclone import CallLimits, RcloneStore, RemoteName, end_with_parent
from ops.store.snapshot import SnapshotTaker
from ops.store.uploader import AnotherRunError, RoundResult, Uploader

_TICK_S = 0.1
_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 600.0
_PREFLIGHT_S = 60.0
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """What `dir`, `file` and `run` have in common."""

    interval: float = 60.0
    """Seconds from one round to the next."""
    final_timeout: float = 300.0
    """Seconds that the last round may take, retries included."""
    call_timeout: float = 120.0
    """Seconds for one call of rclone, besides those for its bytes (at 64 KiB/s or more)."""
    keep_last: int | None = None
    """Keep only this many of the newest states on the remote; without it every state stays."""
    exclude: tuple[str, ...] = ()
    """Patterns of paths that are not saved, such as "*.mp4"."""
    bwlimit: str | None = None
    """Largest rate at which rclone sends, such as 4M (bytes a second)."""
    nice: int = 10
    """How much the niceness of the sync and of rclone is raised, so that the command itself runs
    first."""
    quiet_s: float = 1.0
    """A round waits until the folder's files have not changed for this many seconds."""
    new_run: bool = False
    """Save although the remote holds another run; its states stay beside the new ones."""
    quiet: bool = False
    """Print failures only."""

    def __post_init__(self) -> None:
        for name in ("interval", "final_timeout", "call_timeout"):
            if getattr(self, name) <= 0:
                raise OpsError(f"--{name} must be above 0, not {getattr(self, name)}")
        if self.keep_last is not None and self.keep_last < 1:
            raise OpsError(f"--keep_last must be at least 1, not {self.keep_last}")


class SyncSession:
    """Saves a folder again and again until `ended` says so, and once more then.

    Nothing that goes wrong with the remote or the disk leaves `drive`: it is reported, and tried
    again.

    Args:
        folder: what is saved.
        state_dir: this program's own folder.
        remote: where to.
        options: when, how long, and which files travel.
        only: the one path that counts, for a single file.

    Raises:
        AnotherRunError: the remote holds another run; see `Uploader.require_same_run`.
    """

    def __init__(
        self,
        folder: Path,
        state_dir: Path,
        remote: RemoteName,
        options: SaveOptions,
        only: str | None = None,
    ) -> None:
        self._options = options
        self._ended: Callable[[], bool] = lambda: False
        self._deadline: float | None = None
        self._aborted = False
        self._failures = 0
        limits = CallLimits(options.call_timeout, options.bwlimit, options.nice, self.time_left)
        self._report = _Report(state_dir / "status.json", str(remote), quiet=options.quiet)
        taker = SnapshotTaker(
            folder,
            state_dir / "staging",
            self._pause,
            only=only,
            exclude=options.exclude,
            quiet_s=options.quiet_s,
        )
        store = RcloneStore(remote, limits)
        self._uploader = Uploader(store, taker, state_dir, keep_last=options.keep_last)
        self._checked = options.new_run or self._is_same_run()

    def drive(self, ended: Callable[[], bool]) -> bool:
        """Save until `ended()`, then a last time.

        Returns:
            Whether everything was saved at the end, by the remote's own listing.
        """
        self._ended = ended
        while self.time_left() == float("inf"):
            saved = self._attempt(final=False)
            self._wait(self._options.interval if saved else self._retry_s())
        saved = False
        while not saved and self.time_left() > 0:
            saved = self._attempt(final=True)
            if not saved:
                self._wait(2.0 ** min(self._failures - 1, 5), at_the_end=True)
        try:
            unsaved = self._uploader.unsaved()
        except OSError as error:
            unsaved = [f"all of it, since the folder cannot be read ({error})"]
        self._report.ended(unsaved, confirmed=saved)
        return saved and not unsaved

    def abort(self) -> None:
        """End the last round now."""
        self._aborted = True

    def time_left(self) -> float:
        """Return the seconds that are left, which are many until the end has come."""
        if self._aborted:
            return 0.0
        if self._deadline is None and self._ended():
            self._deadline = time.monotonic() + self._options.final_timeout
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def _is_same_run(self) -> bool:
        """Refuse another run; if the remote cannot be read it is asked before the first round."""
        self._deadline = time.monotonic() + _PREFLIGHT_S
        try:
            self._uploader.require_same_run()
            return True
        except RemoteError as error:
            self._report.warn(f"the remote cannot be read yet: {error}")
            return False
        finally:
            self._deadline = None

    def _attempt(self, *, final: bool) -> bool:
        started = time.monotonic()
        try:
            if not self._checked:
                try:
                    self._uploader.require_same_run()
                except AnotherRunError as error:
                    self._report.warn(f"this run is saved beside another: {error}")
                self._checked = True
            result = self._uploader.round(final=final)
            if final:
                self._uploader.confirm()
        except Exception as error:  # noqa: BLE001  the boundary: nothing here may stop a training
            expected = isinstance(error, OpsError | OSError)
            message = str(error) if expected else f"defect: {type(error).__name__}: {error}"
            self._failures += 1
            self._report.failed(message, self._failures, None if final else self._retry_s())
            return False
        self._failures = 0
        self._report.saved(result, time.monotonic() - started)
        return True

    def _retry_s(self) -> float:
        first = min(_FIRST_RETRY_S, self._options.interval)
        return float(min(first * 2.0 ** min(self._failures - 1, 20), _LONGEST_RETRY_S))

    def _wait(self, seconds: float, *, at_the_end: bool = False) -> None:
        """Sleep between rounds, until the end comes; or at the end, until no time is left."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.time_left() > 0:
            if not at_the_end and self.time_left() < float("inf"):
                return
            time.sleep(min(_TICK_S, max(0.0, until - time.monotonic())))

    def _pause(self, seconds: float) -> None:
        """Sleep inside a round; the end of all time ends the round too."""
        until = time.monotonic() + seconds
        while True:
            if self.time_left() <= 0:
                raise RemoteError("no time left")
            remaining = until - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(min(_TICK_S, remaining))


def run_with_sync(command: list[str], session: SyncSession, nice: int) -> int:
    """Run a command, save beside it, and save a last time when it has ended.

    SIGTERM, SIGINT and SIGHUP go to the command and its children; the last round follows. A second
    signal after the command has ended cuts that short. The command gets SIGTERM if this process
    dies, so that no training goes on that nobody saves.

    Returns:
        The command's exit code as a shell gives it: 128 + n for one that signal n ended.

    Raises:
        OpsError: the program cannot be started.
    """
    started: list[subprocess.Popen[bytes]] = []
    early: list[int] = []
    after_end: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not started:
            early.append(number)
        elif started[0].poll() is None:
            _pass_on(started[0], number)
        else:
            after_end.append(number)
            if len(after_end) > 1:
                session.abort()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    # A background process group that reads the terminal would be stopped for ever.
    stdin = subprocess.DEVNULL if sys.stdin is None or os.isatty(0) else None
    tie = end_with_parent(signal.SIGTERM)
    try:
        try:
            process = subprocess.Popen(command, stdin=stdin, process_group=0, preexec_fn=tie)
        except OSError as error:
            raise OpsError(f"{command[0]} cannot be started: {error.strerror}") from None
        started.append(process)
        for number in early:
            _pass_on(process, number)
        os.nice(nice)  # after the command's start, which is not to be slowed
        session.drive(lambda: process.poll() is not None)
        code = process.wait()
        return 128 - code if code < 0 else code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_on(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class _Report:
    """Prints lines to stderr and keeps `status.json`; a disk that refuses it is no failure."""

    def __init__(self, path: Path, remote: str, *, quiet: bool) -> None:
        self._path = path
        self._remote = remote
        self._quiet = quiet
        self._last: RoundResult | None = None
        self._status: dict[str, Any] = {"remote": remote, "state": None, "saved_at": None}

    def saved(self, result: RoundResult, seconds: float) -> None:
        last, self._last = self._last, result
        num_files, left_out = len(result.snapshot.entries), result.snapshot.left_out
        if not self._quiet and (result.sent or self._status["state"] != result.number):
            self.warn(
                f"state {result.number} saved: {num_files} files, {len(result.sent)} sent, "
                f"{sum_of_sizes(result.sent) / 1e6:.1f} MB, {seconds:.1f} s"
            )
        if last is None or left_out != last.snapshot.left_out:
            for path, reason in list(left_out.items())[:_SHOWN]:
                self.warn(f"left out: {path} {reason}")
        problem = result.removal_problem
        if problem and (last is None or problem != last.removal_problem):
            self.warn(f"what is no longer needed is still there: {problem}")
        self._write(
            state=result.number,
            saved_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            num_files=num_files,
            left_out=left_out,
            failures=0,
            last_error=None,
            removal_problem=problem,
        )

    def failed(self, message: str, failures: int, next_try_s: float | None) -> None:
        since = self._status["saved_at"] or "the start"
        plan = "" if next_try_s is None else f"; next try in {next_try_s:.0f} s"
        self.warn(f"not saved since {since} (failure {failures}{plan}): {message}")
        self._write(failures=failures, last_error=message, next_try_s=next_try_s)

    def ended(self, unsaved: list[str], *, confirmed: bool) -> None:
        self._write(ended=True, unsaved=unsaved)
        if not confirmed or unsaved:
            shown = ", ".join(unsaved[:_SHOWN]) or "the remote could not be asked for the state"
            more = f" and {len(unsaved) - _SHOWN} more" if len(unsaved) > _SHOWN else ""
            self.warn(f"NOT SAVED on {self._remote}: {shown}{more}")
        elif not self._quiet:
            self.warn(f"everything is saved on {self._remote}")

    def warn(self, message: str) -> None:
        print(f"[sync {time.strftime('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)

    def _write(self, **changes: Any) -> None:
        self._status |= changes
        with contextlib.suppress(OSError):  # a full disk here; the line was printed
            write_json(self._path, self._status)
