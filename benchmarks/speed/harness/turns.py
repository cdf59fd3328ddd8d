"""Things measured in turns, since the machines are noisy and only ratios within a run tell."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float


def take_turns(
    turns: Mapping[str, Callable[[], object]], num_rounds: int
) -> dict[str, Float[np.ndarray, " rounds"]]:
    """Return the seconds of each turn; a first round warms up and is not counted.

    A turn waits for the GPU's work where there is one.
    """
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + num_rounds):
        for name, turn in turns.items():
            started = time.perf_counter()
            turn()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def median_ratio(
    slower: Float[np.ndarray, " rounds"], faster: Float[np.ndarray, " rounds"]
) -> dict[str, float]:
    """Return median, least and greatest of the rounds' ratios."""
    ratios = slower / faster
    return {
        "ratio": float(np.median(ratios)),
        "ratio_min": float(ratios.min()),
        "ratio_max": float(ratios.max()),
    }


def peak_resident_bytes() -> int:
    """Return this process's peak resident memory.

    Not `ru_maxrss`, which Linux hands on from the process that started this one.

    Raises:
        RuntimeError: the kernel does not tell.
    """
    return _status_bytes("VmHWM")


def resident_bytes() -> int:
    """Return this process's resident memory now.

    Raises:
        RuntimeError: the kernel does not tell.
    """
    return _status_bytes("VmRSS")


def reset_peak() -> None:
    """Let the peak begin anew at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
