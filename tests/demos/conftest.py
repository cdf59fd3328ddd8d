import json
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq


def frames(root: Path) -> dict[str, list]:
    """Read a dataset's frames as stored: PNG bytes and numbers."""
    return pq.read_table(sorted((root / "data").rglob("*.parquet"))).to_pydict()


def recording(root: Path) -> dict:
    """Read how a dataset's frames were made."""
    return json.loads((root / "meta" / "recording.json").read_text("utf-8"))


def described(frame: dict) -> dict[str, tuple]:
    """Return shape and type of what LeRobot loads of a frame, by feature."""
    return {
        key: (tuple(value.shape), str(value.dtype))
        for key, value in frame.items()
        if key.startswith(("observation", "action"))
    }


def child_processes(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    return [
        int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
    ]


def wait_until_ended(pids: Sequence[int], limit_s: float) -> None:
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + limit_s
    while any(map(_is_running, pids)):
        assert time.monotonic() < deadline, "a worker outlives the command that started it"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
