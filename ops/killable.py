"""A command that can be killed with all that it started."""

import os
import resource
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 0.005


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        killed: by this program.
        exit_code: of the command, negative for a signal.
        seconds: from its start to its end.
        log: its output.
    """

    killed: bool
    exit_code: int
    seconds: float
    log: Path

    @property
    def last_lines(self) -> str:
        """Return the end of what it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-800:].strip()


def run_killable(
    command: list[str],
    log: Path,
    *,
    kill_after_s: float | None = None,
    max_file_bytes: int | None = None,
    timeout_s: float = 3600.0,
) -> Outcome:
    """Run a command in a session of its own; kill the whole of it at a moment, if one is given.

    Args:
        command: program and arguments.
        log: receives stdout and stderr.
        kill_after_s: SIGKILL comes after so many seconds, unless the command has ended.
        max_file_bytes: larger files cannot be written (RLIMIT_FSIZE), as on a disk that is full.
        timeout_s: after so long it is killed, and counts as ended with an error.
    """

    def limit() -> None:
        if max_file_bytes is not None:
            # The signal would kill; ignored, a write fails with "File too large" instead.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))

    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            # A pipe to the log's writer would not do: the limit is for the command's files only.
            stdout=output if max_file_bytes is None else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if max_file_bytes is None else subprocess.PIPE,
            start_new_session=True,
            preexec_fn=limit,
        )
    errors = b""
    end = started + (timeout_s if kill_after_s is None else kill_after_s)
    if max_file_bytes is not None:
        try:
            _, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end = 0.0
        log.write_bytes(errors or b"")
    while process.poll() is None and time.monotonic() < end:
        time.sleep(_TICK_S)
    killed = process.poll() is None
    _kill_session(process)
    seconds = time.monotonic() - started
    return Outcome(killed and kill_after_s is not None, process.wait(), seconds, log)


def _kill_session(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the command's process group, and wait until nothing of it is."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            break
        process.poll()
        time.sleep(_TICK_S)
    process.wait()
