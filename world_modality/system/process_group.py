"""The processes of one launch: those that train one model together, or those that only wait.

`accelerate launch` (or torchrun) starts them. Started without either, a process is alone, every sum
is its own, and nothing of accelerate is imported.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from world_modality.system.device import resolve_device
from world_modality.system.errors import InvalidInputError, UserError

T = TypeVar("T")

# The others wait for the first one's validation. A process that dies is noticed at once: its
# connections end, and the launcher ends the rest.
_PATIENCE = timedelta(hours=12)
# An independent process waits for the slowest one, whose part may take hours longer.
_INDEPENDENT_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of a launch.

    Those that train one model hold the same weights and make the same steps; each computes its part
    of every batch, and the first alone writes and prints. Independent ones only wait for each
    other.

    Attributes:
        device: where this process computes.
        index: its number over all machines; 0 is the first.
        num_processes: how many there are, over all machines.
    """

    device: torch.device
    index: int = 0
    num_processes: int = 1
    _hosts: Any = None  # for messages that do not wait for what the GPUs still compute

    @classmethod
    @contextmanager
    def joined(cls, device_name: str) -> Iterator["ProcessGroup"]:
        """Yield the group that the launcher's environment variables describe, to train one model.

        The first process alone prints, also the errors and interruptions that all of them meet.

        Args:
            device_name: as `--device` gives it.

        Raises:
            InvalidInputError: the device does not fit, or accelerate is missing.
        """
        if num_launched() == 1:
            _require_asked_for_one()
            yield cls(resolve_device(device_name))
            return
        group = cls._launched(device_name)
        with nullcontext() if group.is_first else _silent():
            yield group
        torch.distributed.destroy_process_group()

    @classmethod
    @contextmanager
    def independent(cls, device_name: str) -> Iterator["ProcessGroup"]:
        """Yield the group of launched processes that work independently of each other.

        It is left whatever happens; after that none of them waits for this process.

        Args:
            device_name: as `--device` gives it. All but `cpu` give each process of a machine a GPU
                of its own, in turn where there are fewer, and the CPU where there is none.
        """
        from accelerate import PartialState

        on_cpu = device_name == "cpu" or not torch.cuda.is_available()
        # Nothing is sent but the wait, which needs no GPU.
        state = PartialState(cpu=on_cpu, backend="gloo", timeout=_INDEPENDENT_PATIENCE)
        try:
            yield cls(state.device, state.process_index, state.num_processes)
        finally:
            torch.distributed.destroy_process_group()

    @classmethod
    def _launched(cls, device_name: str) -> "ProcessGroup":
        device = _own_device(device_name)
        try:
            from accelerate import PartialState
        except ImportError as error:
            raise InvalidInputError(
                f"training in {num_launched()} processes needs accelerate ({error}); "
                "pip install -r requirements.txt, or start the training without a launcher"
            ) from error
        state = PartialState(cpu=device.type == "cpu", timeout=_PATIENCE)
        hosts = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        return cls(device, state.process_index, state.num_processes, hosts)

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.index == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.num_processes == 1

    def part(self, num_rows: int) -> slice:
        """Return which rows of a batch are this process's; none where there are too few."""
        bounds = [num_rows * index // self.num_processes for index in (self.index, self.index + 1)]
        return slice(*bounds)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes."""
        if self.is_alone:
            return values
        from accelerate.utils import reduce

        return reduce(values, reduction="sum")

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their sums over the processes, in one message."""
        if not self.is_alone:
            vector_to_parameters(self.sum(parameters_to_vector(tensors)), tensors)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if not self.is_alone:
            torch.distributed.barrier(self._hosts)

    def any(self, is_so: bool) -> bool:
        """Return whether it is so in any process; every process has to ask."""
        return is_so if self.is_alone else any(self._gather(is_so))

    def from_first(self, make: Callable[[], T]) -> T:
        """Return to all what the first process makes.

        Raises:
            UserError: making it failed; all processes raise the same.
        """
        made = self.together(lambda: make() if self.is_first else None)
        return made if self.is_alone else self._gather(made)[0]  # type: ignore[return-value]

    def together(self, make: Callable[[], T]) -> T:
        """Make something in every process, or in none; `make` exchanges no messages itself.

        Raises:
            UserError: of the first process that has one; all processes raise the same.
        """
        if self.is_alone:
            return make()
        made, error = None, None
        try:
            made = make()
        except UserError as raised:
            error = raised
        for found in self._gather(error):
            if found is not None:
                raise found
        return made  # type: ignore[return-value]

    def draw_own_dropout(self, seed: int, global_step: int) -> None:
        """Let every process but the first drop out other units than the first does."""
        if not self.is_first:
            words = np.random.SeedSequence([seed, self.index, global_step])
            torch.manual_seed(int(words.generate_state(1)[0]))

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.num_processes
        torch.distributed.all_gather_object(values, value, group=self._hosts)
        return values


def num_launched() -> int:
    """Return how many processes a launcher has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher started this process as one of several.

    WORLD_SIZE alone may be a job's, whose processes know nothing of each other.
    """
    return "LOCAL_RANK" in os.environ and num_launched() > 1


@contextmanager
def _silent() -> Iterator[None]:
    """End without a message where the first process prints the same one."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        except UserError:
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(130)


def _own_device(name: str) -> torch.device:
    """Return the device of this process: the GPU of its number on this machine, or the CPU."""
    if name not in ("auto", "cpu", "cuda"):
        raise InvalidInputError(
            f"--device {name} is one GPU, but there are several processes, which take one each; "
            "give auto, cuda or cpu, and choose the GPUs with CUDA_VISIBLE_DEVICES"
        )
    device = resolve_device(name)
    if device.type == "cpu":
        return device
    index, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= num_gpus:
        raise InvalidInputError(
            f"process {index} of this machine has no GPU: torch sees {num_gpus}; launch at most "
            "so many processes a machine, or give --device cpu"
        )
    return torch.device("cuda", index)


def _require_asked_for_one() -> None:
    # Without --multi_gpu and without GPUs, `accelerate launch --num_processes 2` starts a single
    # process. It leaves these variables behind.
    environment = os.environ
    if "WORLD_SIZE" not in environment and {
        "ACCELERATE_MIXED_PRECISION",
        "MASTER_PORT",
    } <= set(environment):
        raise InvalidInputError(
            "accelerate launch was asked for several processes and started one, as it does where "
            "it sees no GPUs; add --multi_gpu before --num_processes (it starts CPU processes "
            "too), or unset MASTER_PORT if one process is meant"
        )
