"""Calls of one function on a GPU, recorded once and then replayed as a CUDA graph.

A CPU takes some ten microseconds to launch a kernel, a GPU as long or less to compute a small one.
A recorded call is a single launch of all its kernels (torch.cuda.CUDAGraph; HIP graphs on ROCm):
the same kernels in the same order, with the random numbers that they would have drawn.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
_Shapes = tuple[tuple[str, torch.Size, torch.dtype], ...]

# Calls of a shape that are computed directly first: libraries make their handles and workspaces,
# and AdamW its state, which must not happen inside a recording. torch's own examples take three.
NUM_DIRECT = 3


class RecordedCalls:
    """A function whose calls are recorded, one recording for each set of input shapes.

    The first `NUM_DIRECT` calls of each shape are computed directly, the next is recorded. What
    the function reads beside its inputs, such as weights, must stay where it lies in memory.

    Args:
        function: of tensors on the device, to one tensor there; it must not wait for the device.
        device: a GPU.
        name: of what is computed; with it a function that cannot be recorded (one that waits for
            the device) is computed directly for good, and a line says so. Without it that is an
            error.
    """

    def __init__(
        self, function: Callable[[Tensors], Tensor], device: torch.device, name: str | None = None
    ) -> None:
        self._function = function
        self._device = device
        self._name = name
        # Recordings cannot be made on the default stream, nor start with what ran on it.
        self._stream = torch.cuda.Stream(device)
        self._num_direct: Counter[_Shapes] = Counter()
        self._recordings: dict[_Shapes, _Recording] = {}
        self._is_refused = False

    def __call__(self, inputs: Tensors) -> Tensor:
        """Return what the function returns, without waiting for it.

        Raises:
            RuntimeError: the function cannot be recorded.
        """
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        if shapes not in self._recordings:
            if self._is_refused or self._num_direct[shapes] < NUM_DIRECT:
                self._num_direct[shapes] += 1
                return self._direct(inputs)
            try:
                self._recordings[shapes] = self._record(inputs)
            except RuntimeError as error:
                if self._name is None:
                    raise
                self._is_refused = True
                print(
                    f"{self._name} cannot be recorded as a CUDA graph, so its kernels are launched "
                    f"one by one ({str(error).splitlines()[0]})"
                )
                return self._direct(inputs)
        return self._recordings[shapes].replay(inputs)

    def _direct(self, inputs: Tensors) -> Tensor:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = self._function(inputs)
        current.wait_stream(self._stream)
        output.record_stream(current)
        return output

    def _record(self, inputs: Tensors) -> "_Recording":
        kept = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        generator = gpu_generator(self._device)
        unrecorded = generator.clone_state()
        try:
            # Other threads, which write checkpoints or read ahead, may go on meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                output = self._function(kept)
        except RuntimeError:
            # A recording that was broken off leaves its state of the generator unusable.
            generator.graphsafe_set_state(unrecorded)
            raise
        return _Recording(graph, kept, output)


@dataclass(frozen=True)
class _Recording:
    """A graph, and the tensors that it reads from and writes to."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    output: Tensor

    def replay(self, inputs: Tensors) -> Tensor:
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        self.graph.replay()
        return self.output.clone()


class RandomState:
    """One seed's own state of torch's random generators, beside those of others in the process.

    At first it is as the generators are when it is made.

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
    def active(self) -> Iterator[None]:
        """Let torch draw from this state inside the block, and remember where it stopped."""
        torch.set_rng_state(self._cpu)
        with self._gpu_active():
            yield
        self._cpu = torch.get_rng_state()

    @contextmanager
    def _gpu_active(self) -> Iterator[None]:
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
