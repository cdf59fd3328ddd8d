"""SIGTERM as a second way to say Ctrl-C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_S = 2.0
"""Signals that follow the first so soon are its echoes."""


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the main thread, as SIGINT does, and each once.

    Whoever ends a process group and its members one by one (a scheduler, a script that passes
    signals on) would otherwise interrupt the cleaning up after the first signal. A later one does,
    since a library may have swallowed the first. After an interruption the process is about to end
    and ignores them. A SIGINT that was ignored before stays so.
    """
    first_s: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first_s
        now = time.monotonic()
        if first_s is None or now - first_s > REPEAT_S:
            first_s = now
            raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGINT)
        if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if first_s is None else signal.SIG_IGN)
