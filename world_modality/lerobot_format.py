"""The files of a LeRobot v3 dataset folder, as they lie on the disk."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from world_modality.errors import InvalidInputError, MissingFileError

INFO_PATH = Path("meta") / "info.json"
TASKS_PATH = Path("meta") / "tasks.parquet"
STATS_PATH = Path("meta") / "stats.json"
RECORDING_PATH = Path("meta") / "recording.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InvalidInputError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def read_tasks(root: Path) -> dict[int, str]:
    """Read the task texts by `task_index`.

    Raises:
        MissingFileError: the dataset has no `meta/tasks.parquet`.
        InvalidInputError: the file has other columns.
    """
    path = root / TASKS_PATH
    if not path.exists():
        raise MissingFileError(f"no task texts: expected {path}")
    table = pq.read_table(path)
    # pandas stores an unnamed index as `__index_level_0__`; later releases name it `task`.
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise InvalidInputError(
            f"{path} has columns {table.column_names}, expected task_index and one text column"
        )
    indices = table.column("task_index").to_pylist()
    return dict(zip(indices, table.column(texts[0]).to_pylist(), strict=True))


def content_sha256(root: Path, data_files: Sequence[Path]) -> str:
    """Return a hash of what a dataset is, wherever its folder lies.

    Covers the metadata with its statistics and the names and sizes of all data and video files.
    """
    digest = hashlib.sha256()
    for path in (root / INFO_PATH, root / STATS_PATH, root / TASKS_PATH):
        digest.update(path.read_bytes() if path.exists() else b"-")
    for path in [*data_files, *sorted(root.glob("videos/*/*/*.mp4"))]:
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
    return digest.hexdigest()


def to_numpy(column: pa.Array, key: str, path: Path) -> np.ndarray:
    """Return a column of numbers, or of equally long lists of numbers, as [B] or [B, dim, …].

    Raises:
        InvalidInputError: missing values, rows of different lengths, or no numbers.
    """
    shape: tuple[int, ...] = (len(column),)
    while True:
        if isinstance(column.type, pa.BaseExtensionType):
            # What `datasets` writes for two dimensions and more, once it has been imported.
            column = column.storage
        if column.null_count:
            raise InvalidInputError(
                f"column {key} of {path} has {column.null_count} missing values"
            )
        is_even = pa.types.is_fixed_size_list(column.type)
        if not (is_even or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            break
        flat = column.flatten()
        if not is_even and len(column.value_lengths().unique()) > 1:
            raise InvalidInputError(f"column {key} of {path} has rows of different lengths")
        shape = (*shape, len(flat) // max(len(column), 1))
        column = flat
    kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise InvalidInputError(f"column {key} of {path} holds {column.type}, expected numbers")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)
