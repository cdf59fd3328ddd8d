"""Memory of the process that asks."""

from pathlib import Path


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
