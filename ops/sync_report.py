"""What a person sees of a sync: a line per event, and a status file."""

import sys
import time
from pathlib import Path
from typing import Any

from ops.atomic import write_json
from ops.uploader import RoundResult

_SHOWN = 10


class SyncReport:
    """Prints lines to stderr and keeps `status.json`; a disk that refuses it is no failure.

    Args:
        path: the status file.
        remote: the remote's name, masked.
        quiet: print failures only.
    """

    def __init__(self, path: Path, remote: str, *, quiet: bool) -> None:
        self._path = path
        self._remote = remote
        self._quiet = quiet
        self._left: dict[str, str] = {}
        self._retention_problem: str | None = None
        self._status: dict[str, Any] = {"remote": remote, "state": None, "saved_at": None}

    def saved(self, result: RoundResult, seconds: float) -> None:
        """Report a state that is complete on the remote."""
        if result.num_new or self._status["state"] != result.number:
            self._say(
                f"state {result.number} saved: {result.num_files} files, {result.num_new} new "
                f"objects, {result.num_bytes / 1e6:.1f} MB, {seconds:.1f} s"
            )
        if result.left != self._left:
            self._left = result.left
            for path, reason in list(result.left.items())[:_SHOWN]:
                self.warn(f"left out: {path} {reason}")
        if result.retention_problem and result.retention_problem != self._retention_problem:
            self.warn(f"old states are still there: {result.retention_problem}")
        self._retention_problem = result.retention_problem
        self._status |= {
            "state": result.number,
            "saved_at": _clock("%Y-%m-%dT%H:%M:%S%z"),
            "num_files": result.num_files,
            "left_out": result.left,
            "failures": 0,
            "last_error": None,
            "retention_problem": result.retention_problem,
        }
        self._write()

    def failed(self, message: str, failures: int, next_try_s: float | None) -> None:
        """Report a round that did not save."""
        since = self._status["saved_at"] or "the start"
        plan = "" if next_try_s is None else f"; next try in {next_try_s:.0f} s"
        self.warn(f"not saved since {since} (failure {failures}{plan}): {message}")
        self._status |= {"failures": failures, "last_error": message, "next_try_s": next_try_s}
        self._write()

    def ended(self, unsaved: list[str]) -> None:
        """Say at the end what is not on the remote."""
        self._status |= {"ended": True, "unsaved": unsaved}
        self._write()
        if not unsaved:
            self._say(f"everything is saved on {self._remote}")
            return
        shown = ", ".join(unsaved[:_SHOWN])
        more = f" and {len(unsaved) - _SHOWN} more" if len(unsaved) > _SHOWN else ""
        self.warn(f"NOT SAVED on {self._remote}: {shown}{more}")

    def warn(self, message: str) -> None:
        """Print a line whatever was asked."""
        print(f"[sync {_clock('%H:%M:%S')}] {message}", file=sys.stderr, flush=True)

    def _say(self, message: str) -> None:
        if not self._quiet:
            self.warn(message)

    def _write(self) -> None:
        try:
            write_json(self._path, self._status)
        except OSError:
            return  # a full disk here; the line was printed


def _clock(form: str) -> str:
    return time.strftime(form)
