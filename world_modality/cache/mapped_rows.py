"""An array of the cache that stays on the disk; rows of it are copied out as they are asked for."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from world_modality.system.device import free_bytes

Place = Literal["auto", "device", "disk"]
# `auto` leaves the rest of the device's free memory to the model and its activations.
_DEVICE_SHARE = 0.5


class MappedRows:
    """The N rows of an array's file, indexed as a tensor on the device would be.

    Mapped again for every read: pages that were read stay resident as long as their map.

    Args:
        array: as `Cache.load` returns it.
        device: where the rows go.
    """

    def __init__(self, array: np.ndarray, device: torch.device) -> None:
        if not isinstance(array, np.memmap) or array.filename is None:
            raise ValueError("expected an array mapped from a file")
        # Opened once, closed with this object: a cache that is written again meanwhile becomes
        # another file under this name.
        self._file = Path(array.filename).open("rb")  # noqa: SIM115
        self._offset = array.offset
        self._dtype = array.dtype
        self.shape: tuple[int, ...] = array.shape
        self.device = device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Int[Tensor, "*batch"] | slice) -> Shaped[Tensor, "..."]:
        """Return these rows on the device."""
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        mapped = np.memmap(self._file, self._dtype, "r", self._offset, self.shape)
        # Unlike indexing, `take` lets other threads run meanwhile.
        rows = torch.from_numpy(np.asarray(mapped).take(index.cpu().numpy(), axis=0))
        if self.device.type == "cuda":
            return rows.pin_memory().to(self.device, non_blocking=True)
        return rows


def stays_on_disk(num_bytes: int, device: torch.device, place: Place) -> bool:
    """Return whether arrays of this size are mapped; `auto`, where it maps them, says so.

    `auto` takes the disk for what does not fit into half of the device's free memory.
    """
    if place != "auto":
        return place == "disk"
    free = free_bytes(device)
    if free is None or num_bytes <= _DEVICE_SHARE * free:
        return False
    print(
        f"embeddings stay on the disk: {num_bytes / 1e9:.1f} GB, more than half of the "
        f"{free / 1e9:.1f} GB that are free on {device}"
    )
    return True
