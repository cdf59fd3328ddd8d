"""Batches in turn, while what is on the disk of the next ones is read in the background."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from jaxtyping import Int
from torch import Tensor

# Batches that are read before their turn; one would do if every read took the same time.
NUM_AHEAD = 4

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """What was read for batches that are about to be used."""

    def __init__(self) -> None:
        # By the batch's very tensor: comparing contents would wait for the device.
        self._reads: dict[Tensor, Future[T]] = {}

    def over(
        self,
        batches: Sequence[Int[Tensor, " _"]],
        read: Callable[[Int[Tensor, " B"]], T],
    ) -> Iterator[Int[Tensor, " _"]]:
        """Yield the batches, having started to read for the next `NUM_AHEAD`.

        Args:
            batches: frames, on any device.
            read: called in a background thread with the frames on the host.
        """
        on_host = [frames.cpu() for frames in batches]
        submitted = 0
        with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
            try:
                for number, frames in enumerate(batches):
                    while submitted < min(number + 1 + NUM_AHEAD, len(batches)):
                        future = reader.submit(read, on_host[submitted])
                        self._reads[batches[submitted]] = future
                        submitted += 1
                    yield frames
                    self._reads.pop(frames, None)
            finally:
                for frames in batches[:submitted]:
                    self._reads.pop(frames, None)

    def take(self, frames: Int[Tensor, " B"]) -> T | None:
        """Return what was read for this batch, waiting for it; None if `over` does not know it."""
        future = self._reads.pop(frames, None)
        return None if future is None else future.result()
