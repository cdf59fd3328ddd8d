"""A command with a sync beside it: signals are passed on, its exit code is kept."""

import contextlib
import os
import signal
import subprocess
import sys
from types import FrameType

from ops.store.errors import OpsError
from ops.store.rclone import end_with_parent
from ops.store.session import SyncSession


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
