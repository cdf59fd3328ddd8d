"""A command with a sync beside it: signals are passed on, its exit code is kept."""

import os
import signal
import subprocess
import sys
from types import FrameType

from ops.store.errors import OpsError
from ops.store.rclone import end_with_parent
from ops.store.session import SyncSession


class SupervisedCommand:
    """A command in a process group of its own.

    It gets SIGTERM if this process dies, so that no training goes on that nobody saves.

    Args:
        command: program and arguments; no shell reads them.

    Raises:
        OpsError: the program cannot be started.
    """

    def __init__(self, command: list[str]) -> None:
        # A background process group that reads the terminal would be stopped for ever.
        stdin = subprocess.DEVNULL if sys.stdin is None or os.isatty(0) else None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=stdin,
                process_group=0,
                preexec_fn=end_with_parent(signal.SIGTERM),
            )
        except OSError as error:
            raise OpsError(f"{command[0]} cannot be started: {error.strerror}") from None

    def ended(self) -> bool:
        """Say whether the command has ended."""
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        """Pass a signal on to the command and its children."""
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    @property
    def exit_code(self) -> int:
        """Return the code as a shell gives it: 128 + n for a command that signal n ended."""
        code = self._process.wait()
        return 128 - code if code < 0 else code


def run_with_sync(command: list[str], session: SyncSession, nice: int) -> int:
    """Run a command, save beside it, and save a last time when it has ended.

    SIGTERM, SIGINT and SIGHUP go to the command; the last round follows. A second signal after
    the command has ended cuts the last round short.

    Returns:
        The command's exit code.
    """
    supervised: list[SupervisedCommand] = []
    after_end = 0
    early: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal after_end
        if not supervised:
            early.append(number)
        elif not supervised[0].ended():
            supervised[0].signal(number)
        else:
            after_end += 1
            if after_end > 1:
                session.abort()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        supervised.append(SupervisedCommand(command))
        for number in early:
            supervised[0].signal(number)
        os.nice(nice)  # after the command's start, which is not to be slowed
        session.drive(supervised[0].ended)
        return supervised[0].exit_code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
