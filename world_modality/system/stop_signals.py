"""SIGTERM and SIGINT as a request to stop, which a run answers at its next whole step."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

REPEAT_S = 2.0
"""Signals that follow the first so soon are its echoes."""


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt in the main thread, as SIGINT does, and each once.

    What ends a process group and then its members one by one (a scheduler, a script that passes
    signals on) would otherwise interrupt the cleaning up after the first signal. A later signal
    does, since a library may have swallowed the first. After the block, an interrupted process
    ignores both signals, since it is about to end. A SIGINT that was ignored before stays ignored.
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


class StopSignals:
    """Notes SIGTERM and SIGINT while it is entered; a second signal interrupts at once.

    A signal that follows the first within `REPEAT_S` is its echo: a scheduler that ends all
    processes of a job and a program that passes signals on both reach the training.

    Outside the main thread, where no signal arrives, it changes nothing.

    Attributes:
        requested: name of the signal that asked to stop, or None.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._first_s = -math.inf
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # Ignored means that the caller wants it so (nohup, a background job).
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt inside this block, which has no steps to finish."""
        self._at_once = True
        try:
            if self.requested is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_first = self.requested is None
        if not is_first and time.monotonic() - self._first_s <= REPEAT_S:
            return
        if is_first:
            self.requested = signal.Signals(number).name
            self._first_s = time.monotonic()
        if not is_first or self._at_once:
            raise KeyboardInterrupt
