import json
from pathlib import Path

import pyarrow.parquet as pq


def frames(root: Path) -> dict[str, list]:
    """Read a dataset's frames as stored: PNG bytes and numbers."""
    return pq.read_table(sorted((root / "data").rglob("*.parquet"))).to_pydict()


def recording(root: Path) -> dict:
    """Read how a dataset's frames were made."""
    return json.loads((root / "meta" / "recording.json").read_text())


def described(frame: dict) -> dict[str, tuple]:
    """Return shape and type of what LeRobot loads of a frame, by feature."""
    return {
        key: (tuple(value.shape), str(value.dtype))
        for key, value in frame.items()
        if key.startswith(("observation", "action"))
    }
