"""A state of torch's random generators of one's own, beside those of others in the process."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RandomState:
    """One seed's own state of torch's generators, at first as they are when it is made.

    Args:
        device: whose generator draws, beside the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._cpu = torch.get_rng_state()
        self._of_gpu = gpu_generator(device) if device.type == "cuda" else None
        # A recorded step draws from the very state that was in place at its recording, so that
        # the state itself is exchanged on a GPU, and not its content.
        self._gpu = None if self._of_gpu is None else self._of_gpu.clone_state()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let torch draw from this state inside the block, and remember where it stopped."""
        torch.set_rng_state(self._cpu)
        with self._gpu_lent():
            yield
        self._cpu = torch.get_rng_state()

    @contextmanager
    def _gpu_lent(self) -> Iterator[None]:
        if self._of_gpu is None or self._gpu is None:
            yield
            return
        before = self._of_gpu.graphsafe_get_state()
        self._of_gpu.graphsafe_set_state(self._gpu)
        try:
            yield
        finally:
            self._of_gpu.graphsafe_set_state(before)


def gpu_generator(device: torch.device) -> torch.Generator:
    """Return the generator that draws on this GPU where no other is named."""
    torch.cuda.init()
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
