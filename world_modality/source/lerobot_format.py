"""The files of a LeRobot v3 dataset folder, as they lie on the disk."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from world_modality.system.errors import InvalidInputError, MissingFileError

INFO_PATH = Path("meta") / "info.json"
TASKS_PATH = Path("meta") / "tasks.parquet"
STATS_PATH = Path("meta") / "stats.json"
RECORDING_PATH = Path("meta") / "recording.json"
# What every `meta/info.json` says, and by values of which types.
INFO_ENTRIES: dict[str, tuple[type, ...]] = {
    "features": (dict,),
    "fps": (int, float),
    "total_frames": (int,),
    "total_episodes": (int,),
}

# What LeRobot's converter makes v3 of.
CONVERTED_FORMAT = "v2.1"
# What to do about a dataset whose parts contradict each other.
MEND = "fetch, record or convert the dataset again"
# What git-lfs leaves instead of a file that it has not fetched.
LFS_MARK = b"version https://git-lfs.github.com/spec/"


def damaged_file(path: Path, kind: str, error: Exception) -> InvalidInputError:
    """Build the error for a file that cannot be read as what it should be."""
    with path.open("rb") as file:
        is_pointer = file.read(len(LFS_MARK)) == LFS_MARK
    if is_pointer:
        return InvalidInputError(
            f"{path} is a git-lfs pointer of {path.stat().st_size} bytes, expected {kind}: its "
            "content was not fetched; run git lfs pull in the dataset's folder"
        )
    reason = " ".join(str(error).split())[:200]
    return InvalidInputError(
        f"{path} is not {kind}, or was never closed ({path.stat().st_size} bytes: {reason}); copy "
        "it again, or end the recording with finalize()"
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested without end
        raise damaged_file(path, "JSON", error) from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def read_info(path: Path, name: str, folder: Path, where: str | None = None) -> dict[str, Any]:
    """Read the `meta/info.json` of a dataset that lies, or would lie, in `folder`.

    An error calls the file `where`, or by its path.

    Raises:
        InvalidInputError: it is damaged, of another format than v3, or lacks an entry.
    """
    info = read_json(path)
    where = where or str(path)
    require_format_v3(str(info.get("codebase_version")), where, name, folder)
    absent = [key for key in INFO_ENTRIES if key not in info]
    if absent:
        raise InvalidInputError(f"{where} lacks {', '.join(absent)}, which format v3 has")
    for key, types in INFO_ENTRIES.items():
        if not isinstance(info[key], types) or isinstance(info[key], bool):
            raise InvalidInputError(f"{where} has {key} {info[key]!r:.80}, which format v3 has not")
    if not 0 < info["fps"] < math.inf:
        raise InvalidInputError(f"{where} has fps {info['fps']}, expected frames per second")
    for key, feature in info["features"].items():
        shape = feature.get("shape", []) if isinstance(feature, dict) else None
        is_shape = isinstance(shape, list) and all(type(size) is int for size in shape)
        if not is_shape or not isinstance(feature.get("dtype"), str):
            raise InvalidInputError(
                f"{where} describes the column {key} by {str(feature)[:80]}, expected its dtype "
                "and shape"
            )
    return info


def require_format_v3(version: str, where: str, name: str, folder: Path) -> None:
    """Refuse a dataset of another format, with the command that converts it in its `folder`.

    The version is as `codebase_version` or the hub's tag has it, "v2.1"; `where` is what says so.

    Raises:
        InvalidInputError: the version is not v3.x.
    """
    if version.startswith("v3."):
        return
    found = f"{where} has codebase_version {version}, expected v3.x; "
    major = version.removeprefix("v").split(".")[0]
    if major.isdecimal() and int(major) > 3:
        raise InvalidInputError(
            f"{found}this project reads no newer format: on the hub, name a revision of format v3 "
            "with --revision"
        )
    earlier = ""
    if version != CONVERTED_FORMAT:
        earlier = (
            f"only LeRobot's earlier releases convert it to {CONVERTED_FORMAT} (lerobot 0.3: "
            "python -m lerobot.datasets.v2.convert_dataset_v1_to_v2, lerobot.datasets.v21."
            "convert_dataset_v20_to_v21); from there, "
        )
    depth = len(Path(name).parts)
    repo_id, parent = folder.name, folder.parent
    if folder.parts[-depth:] == Path(name).parts:
        repo_id, parent = name, folder.parents[depth - 1]
    if version == CONVERTED_FORMAT:
        earlier = (
            f"give the same command with --convert, which writes {converted_folder(folder)} and "
            "reads that (LeRobot's converter, no network); or, in its place, "
        )
    # The two releases mean different folders by --root.
    raise InvalidInputError(
        f"{found}{earlier}convert it with python -m lerobot.datasets.v30."
        f"convert_dataset_v21_to_v30 --repo-id={repo_id} --root={parent} --push-to-hub=false "
        f"(lerobot 0.4) or python -m lerobot.scripts.convert_dataset_v21_to_v30 "
        f"--repo-id={repo_id} --root={folder} --push-to-hub=false (lerobot 0.6)"
    )


def converted_folder(folder: Path) -> Path:
    """Return where the conversion of a dataset of format v2.1 lies: beside it."""
    folder = Path(os.path.abspath(folder))
    return folder.with_name(f"{folder.name}_v3")


def read_tasks(root: Path) -> dict[int, str]:
    """Read the task texts by `task_index`.

    Raises:
        MissingFileError: the dataset has no `meta/tasks.parquet`.
        InvalidInputError: the file is damaged or has other columns, an index is missing or has two
            texts, or a text is missing or none.
    """
    path = root / TASKS_PATH
    if not path.exists():
        raise MissingFileError(f"no task texts: expected {path}")
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # texts that are not UTF-8
    except (pa.ArrowException, OSError) as error:
        raise damaged_file(path, "a whole parquet file", error) from error
    # pandas stores an unnamed index as `__index_level_0__`; later releases name it `task`.
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise InvalidInputError(
            f"{path} has columns {table.column_names}, expected task_index and one text column"
        )
    tasks: dict[int, str] = {}
    pairs = zip(*(table.column(key).to_pylist() for key in ("task_index", texts[0])), strict=True)
    for row, (index, text) in enumerate(pairs):
        if type(index) is not int or not isinstance(text, str):
            raise InvalidInputError(
                f"{path} row {row} has task_index {index!r} and {texts[0]} {text!r}, expected a "
                "whole number and a text; mend the table"
            )
        if tasks.setdefault(index, text) != text:
            raise InvalidInputError(
                f"{path} gives task_index {index} two texts, {tasks[index]!r} and {text!r}; mend "
                "the table"
            )
    return tasks


def dimension_names(names: Any, num_dims: int) -> list[str] | None:
    """Return one name for each dimension, or None where `names` does not give that.

    LeRobot leaves `names` in `meta/info.json` free. There are lists, lists within lists, lists
    under headings (`{"motors": […]}`), positions by name (`{"delta_x": 0, …}`, as its gamepads
    write), one word for the whole vector, and nothing.
    """
    flat = _flat(names)
    return flat if len(flat) == num_dims else None


def _flat(names: Any) -> list[str]:
    if isinstance(names, dict):
        if names and all(type(position) is int for position in names.values()):
            in_order = sorted(names, key=names.__getitem__)
            is_counted = [names[name] for name in in_order] == list(range(len(names)))
            return [str(name) for name in in_order] if is_counted else []
        names = list(names.values())
    if isinstance(names, list):
        return [name for part in names for name in _flat(part)]
    return [] if names is None else [str(names)]


def content_sha256(root: Path, data_files: Sequence[Path], image_keys: Sequence[str]) -> str:
    """Return a hash of what a dataset is, wherever its folder lies.

    Covers the metadata with its statistics and the names and sizes of all data files and of these
    cameras' videos, in whatever order: of a hub's dataset, no other camera has to be there.
    """
    digest = hashlib.sha256()
    for path in (root / INFO_PATH, root / STATS_PATH, root / TASKS_PATH):
        digest.update(path.read_bytes() if path.exists() else b"-")
    patterns = [f"videos/{escape(key)}/*/*.mp4" for key in sorted(image_keys)]
    videos = [path for pattern in patterns for path in sorted(root.glob(pattern))]
    for path in [*data_files, *videos]:
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


def lerobot_home() -> Path:
    """Return HF_LEROBOT_HOME, or where lerobot and the hub's client put it by default."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    hub_home = os.environ.get("HF_HOME") or f"{user_cache}/huggingface"
    return Path(os.environ.get("HF_LEROBOT_HOME") or f"{hub_home}/lerobot").expanduser()


def local_dataset_folder(name: str) -> Path:
    """Return where a dataset of that name lies locally, `HF_LEROBOT_HOME/<name>`.

    Raises:
        InvalidInputError: the name is empty, absolute, or would leave that folder.
    """
    path = Path(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise InvalidInputError(
            f"--dataset_name {name!r} does not name a folder inside {lerobot_home()}; expected a "
            "name like HuggingFaceVLA/libero, or the folder itself in --dataset_root"
        )
    return lerobot_home() / path
