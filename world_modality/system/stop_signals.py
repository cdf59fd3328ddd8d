"""SIGTERM and SIGINT as a wish to stop, which a run grants at its next whole step."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from world_modality.system.interruption import REPEAT_S


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
