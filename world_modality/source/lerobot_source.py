"""A LeRobot v3 dataset on the disk, read in blocks in its global frame order.

The files are read as the v3.0 format lays them out (`meta/info.json`, `meta/tasks.parquet`,
`meta/episodes/`, `data/`, `videos/`), which every lerobot release of that format shares.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from world_modality.source.lerobot_format import (
    INFO_PATH,
    MEND,
    RECORDING_PATH,
    content_sha256,
    damaged_file,
    dimension_names,
    read_info,
    read_json,
    read_tasks,
    to_numpy,
)
from world_modality.system.errors import InvalidInputError, MissingKeyError, missing_key

INDEX_KEY = "index"
TASK_KEY = "task_index"
BLOCK_ROWS = 2_048


@dataclass(frozen=True, eq=False)
class LeRobotSource:
    """One dataset on the disk; what it holds is looked up once, so two are never taken for one.

    Attributes:
        name: repository id, or the name given to a local dataset.
        root: its folder.
        revision: the hub revision it was pinned to, None for whatever the folder holds.
        info: `meta/info.json`.
        tasks: task texts by `task_index`.
        recording: `meta/recording.json`, what a simulator recording says about its rendering.
    """

    name: str
    root: Path
    revision: str | None
    info: dict[str, Any] = field(repr=False)
    tasks: dict[int, str] = field(repr=False)
    recording: dict[str, Any] | None = field(repr=False)

    @classmethod
    def at(cls, root: Path, name: str, revision: str | None = None) -> "LeRobotSource":
        """Read the metadata of a dataset folder; its data files need not be there yet.

        Raises:
            InvalidInputError: not of format v3, or without frames.
        """
        info = read_info(root / INFO_PATH, name, root)
        if info["total_frames"] == 0:
            raise InvalidInputError(f"dataset {name} at {root} is empty: it has no frames")
        recording = root / RECORDING_PATH
        return cls(
            name=name,
            root=root,
            revision=revision,
            info=info,
            tasks=read_tasks(root),
            recording=read_json(recording) if recording.exists() else None,
        )

    @cached_property
    def data_files(self) -> tuple[Path, ...]:
        """The parquet files in frame order."""
        return tuple(sorted(self.root.glob("data/*/*.parquet")))

    @cached_property
    def episode_files(self) -> tuple[Path, ...]:
        """The parquet files of `meta/episodes`, in the order of the episodes."""
        return tuple(sorted(self.root.glob("meta/episodes/*/*.parquet")))

    @property
    def features(self) -> dict[str, dict[str, Any]]:
        """Every column's dtype, shape and names."""
        return dict(self.info["features"])

    @property
    def fps(self) -> float:
        """Frames per second of the recording."""
        return float(self.info["fps"])

    @property
    def num_frames(self) -> int:
        """Number of frames N."""
        return int(self.info["total_frames"])

    @property
    def camera_keys(self) -> list[str]:
        """Columns that hold images or videos."""
        return [k for k, f in self.features.items() if f["dtype"] in ("image", "video")]

    def camera(self, image_key: str | None) -> str:
        """Return the camera to read: the one named, or the only one there is.

        Raises:
            MissingKeyError: no such camera, or several and none named.
        """
        cameras = self.camera_keys
        if image_key is not None:
            if image_key not in cameras:
                raise missing_key("camera", image_key, cameras or self.features, self._where)
            return image_key
        if len(cameras) != 1:
            named = f"{len(cameras)} cameras ({', '.join(cameras)})" if cameras else "no camera"
            raise MissingKeyError(f"{self._where} has {named}; choose one with --image_key")
        return cameras[0]

    def cameras(self, image_keys: Sequence[str]) -> tuple[str, ...]:
        """Return the cameras to read, in this order: those named, or the only one there is.

        Raises:
            MissingKeyError: no such camera, or several and none named.
            InvalidInputError: a camera is named twice.
        """
        if not image_keys:
            return (self.camera(None),)
        for key in image_keys:
            if image_keys.count(key) > 1:
                raise InvalidInputError(
                    f"--image_key names {key} {image_keys.count(key)} times; name each camera once"
                )
        return tuple(self.camera(key) for key in image_keys)

    def require(self, key: str) -> None:
        """Check that a column exists.

        Raises:
            MissingKeyError: lists the columns there are, nearest first.
        """
        if key in self.features or self._is_only_task(key):
            return
        error = missing_key("column", key, self.features, self._where)
        if key == TASK_KEY:
            raise MissingKeyError(
                f"{error}; of its {len(self.tasks)} tasks a column has to say which one a frame "
                "is of: name it with --task_index_key, or add it (a dataset of one task needs none)"
            )
        raise error

    def _is_only_task(self, key: str) -> bool:
        """Say whether this is LeRobot's column of tasks, left out where there is one task alone."""
        return key == TASK_KEY and key not in self.features and len(self.tasks) == 1

    def dim_names(self, key: str, num_dims: int) -> list[str] | None:
        """Return the names of a column's dimensions, or None where each has none of its own."""
        names = dimension_names(self.features[key].get("names"), num_dims)
        return names if names and len(set(names)) == num_dims else None

    def describe(self, image_keys: Sequence[str]) -> dict[str, Any]:
        """Return what a manifest says about the dataset, independent of where it lies.

        All cameras that are read are named where there are several, the first alone otherwise.
        Of a simulator recording it keeps what concerns every frame, the rendering above all, and
        leaves the list of episodes with the dataset.
        """
        recording = self.recording and {k: v for k, v in self.recording.items() if k != "episodes"}
        return {
            "name": self.name,
            "revision": self.revision,
            "content_sha256": content_sha256(self.root, self.data_files, image_keys),
            "num_frames": self.num_frames,
            "num_episodes": int(self.info["total_episodes"]),
            "num_tasks": len(self.tasks),
            "tasks": {str(index): text for index, text in sorted(self.tasks.items())},
            "fps": self.fps,
            "image_key": image_keys[0],
            **({"image_keys": list(image_keys)} if len(image_keys) > 1 else {}),
            "image_dtype": self.features[image_keys[0]]["dtype"],
            "camera_keys": self.camera_keys,
            "recording": recording,
        }

    def columns(
        self, keys: Sequence[str], block_rows: int = BLOCK_ROWS
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yield blocks of rows of some columns, without touching the images beside them.

        Yields:
            key → [B] or [B, dim] array in the file's dtype, in frame order.

        Raises:
            MissingKeyError: a column does not exist.
            InvalidInputError: the frames are not numbered 0…N-1 in order, a column has another
                shape than the metadata say, or a file is damaged.
        """
        for key in keys:
            self.require(key)
        left_out = [key for key in keys if self._is_only_task(key)]
        wanted = list(dict.fromkeys([*keys, INDEX_KEY]))
        wanted = [key for key in wanted if key not in left_out]
        next_index = 0
        for path in self.data_files:
            for batch in self.batches(path, wanted, block_rows):
                block = {key: to_numpy(batch.column(key), key, path) for key in wanted}
                block |= {key: np.full(batch.num_rows, min(self.tasks)) for key in left_out}
                for key in set(keys).difference(left_out):
                    self._require_width(block[key], key, path)
                self.require_order(block[INDEX_KEY], next_index, path)
                next_index += batch.num_rows
                yield {key: block[key] for key in keys}
        if next_index != self.num_frames:
            raise InvalidInputError(
                f"{self._where} says {self.num_frames} frames, but its parquet files hold "
                f"{next_index}; was the recording ended with finalize()?"
            )

    def whole_columns(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return some columns of all frames, key → [N] or [N, dim], as `columns` yields them."""
        blocks = list(self.columns(keys))
        return {key: np.concatenate([block[key] for block in blocks]) for key in keys}

    def raw_blocks(self, key: str, block_rows: int = BLOCK_ROWS) -> Iterator[pa.Array]:
        """Yield a column of any type in blocks of rows, in frame order.

        Raises:
            MissingKeyError: no such column; an image is none either.
        """
        self.require(key)
        if key in self.camera_keys:
            raise MissingKeyError(f"{key} of {self.name} is no column of numbers or texts")
        for path in self.data_files:
            for batch in self.batches(path, [key], block_rows):
                if batch.num_rows:
                    yield batch.column(0)

    def batches(
        self, path: Path, keys: Sequence[str], rows: int, row_group: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield some columns of one of the dataset's parquet files, `rows` at a time.

        Raises:
            InvalidInputError: the file is damaged, or lacks a column.
        """
        file = self.open_parquet(path)
        absent = [key for key in keys if key not in file.schema_arrow.names]
        if absent:
            raise InvalidInputError(
                f"{path} has no column {absent[0]}, expected one in every file of its kind; it has "
                f"{', '.join(file.schema_arrow.names)}"
            )
        groups = None if row_group is None else [row_group]
        try:
            for batch in file.iter_batches(rows, row_groups=groups, columns=list(keys)):
                batch.validate(full=True)  # offsets that lead nowhere, texts that are not UTF-8
                yield batch
        except (pa.ArrowException, OSError) as error:
            raise InvalidInputError(f"{path} is damaged ({error}); {MEND}") from error

    def open_parquet(self, path: Path) -> pq.ParquetFile:
        """Open one of the dataset's parquet files.

        Raises:
            InvalidInputError: truncated, without a footer, or a git-lfs pointer.
        """
        try:
            return pq.ParquetFile(path)
        except pa.ArrowInvalid as error:
            raise damaged_file(path, "a whole parquet file", error) from error

    @property
    def _where(self) -> str:
        return f"dataset {self.name} ({self.root})"

    def _require_width(self, column: np.ndarray, key: str, path: Path) -> None:
        shape = self.features[key].get("shape")
        width = math.prod(column.shape[1:])
        if shape is not None and width != math.prod(shape):
            raise InvalidInputError(
                f"column {key} of {path} has {width} numbers a frame, but {INFO_PATH} says shape "
                f"{list(shape)}; {MEND}"
            )

    def require_order(self, index: Int[np.ndarray, " B"], start: int, path: Path) -> None:
        """Check that rows of a file are the frames from `start` on.

        Raises:
            InvalidInputError: names the first row that is another frame.
        """
        expected = np.arange(start, start + len(index))
        if not np.array_equal(index, expected):
            row = int(np.argmax(index != expected))
            raise InvalidInputError(
                f"{path} row {row} has index {index[row]}, expected {expected[row]}: frames must "
                "be numbered 0 to N-1 in order, also in a subset; lerobot-edit-dataset "
                "--operation.type=delete_episodes cuts one whose frames are numbered again"
            )
