"""One of the processes that `accelerate launch` started."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

# A process waits for the slowest one, whose stretch may take hours longer.
WAIT_LIMIT = timedelta(days=30)


@dataclass(frozen=True)
class LaunchedProcess:
    """One of several processes, its device, and the wait for the others.

    Attributes:
        index: 0 to `num_processes - 1`, over all machines.
        num_processes: how many there are, over all machines.
        device: where this one computes, as `--device` names it.
    """

    index: int
    num_processes: int
    device: str
    _state: "PartialState"

    @classmethod
    def current(cls, device: str) -> "LaunchedProcess | None":
        """Join the other processes; None where there are none.

        `auto` and `cuda` give each process of a machine a GPU of its own.
        """
        if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return None
        import torch
        from accelerate import PartialState

        on_cpu = device == "cpu" or not torch.cuda.is_available()
        # Nothing is sent but the wait, which needs no GPU.
        state = PartialState(cpu=on_cpu, backend="gloo", timeout=WAIT_LIMIT)
        own = device if device not in ("auto", "cuda") else str(state.device)
        return cls(state.process_index, state.num_processes, own, state)

    @property
    def is_main(self) -> bool:
        """Whether it does what is done once."""
        return self.index == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        self._state.wait_for_everyone()

    def leave(self) -> None:
        """Leave the group, after which no process waits for this one."""
        self._state.destroy_process_group()
