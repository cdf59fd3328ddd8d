"""A sync beside something that runs: rounds at an interval, retries, a last round at the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ops.errors import OpsError, RemoteError
from ops.rclone_store import CallLimits, RcloneStore
from ops.remote_name import RemoteName
from ops.snapshot import SnapshotOptions
from ops.sync_report import SyncReport
from ops.uploader import AnotherRunError, RoundResult, Uploader

_TICK_S = 0.1
_FIRST_RETRY_S = 5.0
_LONGEST_RETRY_S = 600.0
_PREFLIGHT_S = 60.0


@dataclass(frozen=True)
class SessionOptions:
    """How a session goes.

    Attributes:
        interval_s: from the end of a round to the next.
        final_timeout_s: how long the last round may take, retries included.
        call_timeout_s: for one call of rclone, besides the time for its bytes.
        bwlimit: rclone's --bwlimit.
        keep_last: how many states stay on the remote; None keeps all.
        quiet: print failures only.
        nice: added to the niceness of rclone.
    """

    interval_s: float = 60.0
    final_timeout_s: float = 300.0
    call_timeout_s: float = 120.0
    bwlimit: str | None = None
    keep_last: int | None = None
    quiet: bool = False
    nice: int = 10


class SyncSession:
    """Saves a folder again and again until `ended` says so, and once more then.

    Nothing that goes wrong with the remote or the disk leaves `drive`: it is reported, and tried
    again.

    Args:
        folder: what is saved.
        state_dir: this program's own folder.
        remote: where to.
        snapshot: which files travel.
        options: when, and how long.
    """

    def __init__(
        self,
        folder: Path,
        state_dir: Path,
        remote: RemoteName,
        snapshot: SnapshotOptions,
        options: SessionOptions,
    ) -> None:
        self._options = options
        self._ended: Callable[[], bool] = lambda: False
        self._deadline: float | None = None
        self._aborted = False
        self._failures = 0
        self._checked = False
        limits = CallLimits(
            base_s=options.call_timeout_s,
            bwlimit=options.bwlimit,
            nice=options.nice,
            time_left=self.time_left,
        )
        store = RcloneStore(remote, limits)
        self.report = SyncReport(state_dir / "status.json", str(remote), quiet=options.quiet)
        self._uploader = Uploader(
            store, folder, state_dir, snapshot, keep_last=options.keep_last, pause=self._pause
        )

    def preflight(self) -> None:
        """Refuse to save a folder that has nothing in common with what the remote holds.

        A remote that cannot be read is reported, and asked again before the first round.

        Raises:
            AnotherRunError: see `Uploader.require_same_run`.
        """
        self._deadline = time.monotonic() + _PREFLIGHT_S
        try:
            self._uploader.require_same_run()
            self._checked = True
        except AnotherRunError:
            raise
        except OpsError as error:
            self.report.warn(f"the remote cannot be read yet: {error}")
        finally:
            self._deadline = None

    def accept_another_run(self) -> None:
        """Leave out the check of `preflight`."""
        self._checked = True

    def drive(self, ended: Callable[[], bool]) -> bool:
        """Save until `ended()`, then a last time.

        Returns:
            Whether everything was saved at the end.
        """
        self._ended = ended
        while not self._has_ended():
            saved = self._attempt(final=False)
            self._wait(self._options.interval_s if saved else self._retry_s())
        saved = False
        while not saved and self.time_left() > 0:
            saved = self._attempt(final=True)
            if not saved:
                self._wait_for_last_try()
        try:
            unsaved = self._uploader.unsaved()
        except OSError as error:
            unsaved = [f"all of it, since the folder cannot be read ({error})"]
        self.report.ended(unsaved)
        return saved and not unsaved

    def abort(self) -> None:
        """End the last round now."""
        self._aborted = True

    def time_left(self) -> float:
        """Return the seconds that are left, which are many until the end has come."""
        if self._aborted:
            return 0.0
        if self._deadline is None and self._ended():
            self._deadline = time.monotonic() + self._options.final_timeout_s
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()

    def _has_ended(self) -> bool:
        return self.time_left() < float("inf")

    def _attempt(self, *, final: bool) -> bool:
        started = time.monotonic()
        try:
            self._warn_of_another_run()
            result: RoundResult = self._uploader.round(final=final)
            if final:
                self._uploader.confirm()
        except (OpsError, OSError) as error:
            self._note_failure(str(error), final=final)
            return False
        except Exception as error:  # noqa: BLE001  the boundary: a defect here must not stop a training
            self._note_failure(f"defect: {type(error).__name__}: {error}", final=final)
            return False
        self._failures = 0
        self.report.saved(result, time.monotonic() - started)
        return True

    def _warn_of_another_run(self) -> None:
        if self._checked:
            return
        try:
            self._uploader.require_same_run()
        except AnotherRunError as error:
            self.report.warn(f"this run is saved beside another: {error}")
        self._checked = True

    def _note_failure(self, message: str, *, final: bool) -> None:
        self._failures += 1
        self.report.failed(message, self._failures, None if final else self._retry_s())

    def _retry_s(self) -> float:
        first = min(_FIRST_RETRY_S, self._options.interval_s)
        return float(min(first * 2.0 ** min(self._failures - 1, 20), _LONGEST_RETRY_S))

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._has_ended():
            time.sleep(min(_TICK_S, max(0.0, until - time.monotonic())))

    def _wait_for_last_try(self) -> None:
        until = time.monotonic() + min(2.0 ** min(self._failures - 1, 5), self.time_left())
        while time.monotonic() < until and self.time_left() > 0:
            time.sleep(_TICK_S)

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
