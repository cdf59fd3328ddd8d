"""Which device computes."""

import ctypes
from pathlib import Path

import torch

from world_modality.system.errors import InvalidInputError

# glibc's mallopt (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES = 1 << 30


def torch_build() -> str:
    """Say which torch this is and what it was built for, as in `2.10.0 for CUDA 12.8`."""
    if torch.version.hip is not None:
        target = f"ROCm {torch.version.hip}"
    elif torch.version.cuda is not None:
        target = f"CUDA {torch.version.cuda}"
    else:
        target = "CPU"
    return f"{torch.__version__} for {target}"


def resolve_device(name: str) -> torch.device:
    """Return the torch device that `--device` names.

    `auto` is the GPU where torch sees one, else the CPU. A ROCm build calls its GPUs `cuda`, too.

    Raises:
        InvalidInputError: torch knows no such device, or sees no GPU of that number.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if num_gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidInputError(
            f"--device {name} is none of auto, cpu, cuda, cuda:<number>"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise InvalidInputError(
            f"--device {name}: torch {torch_build()} sees {num_gpus} GPUs; "
            "use --device cpu, or see what python -m world_modality.doctor says about the GPU"
        )
    return device


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on the device, or None where the system does not tell.

    A CPU's is what the kernel could give without swapping, the cached files included.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def keep_freed_memory() -> None:
    """Let this process use the memory of large tensors again, instead of asking for it each time.

    glibc gives a freed block above 32 MiB back to the kernel, which fills a new one with zeros:
    half of a convolutional network's time on a CPU. One arena, since those of threads are too small
    for such blocks; an arena that there is already stays, and a later thread may get it, so call
    this before the process starts its first thread. Up to 1 GiB stays with the process. Other C
    libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)
