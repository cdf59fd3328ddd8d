"""The low-dimensional columns of a dataset: checked, hashed, and written into the cache."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from world_modality.cache.writer import CacheWriter
from world_modality.source.dataset_episodes import episode_ids, own_episodes, whole_numbers
from world_modality.source.episodes import Episodes
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError

ENVIRONMENT_STATE_KEY = "observation.environment_state"
MAX_INT32 = np.iinfo(np.int32).max
_JOIN = "+"


@dataclass(frozen=True)
class ColumnKeys:
    """Which columns of the dataset become which arrays of the cache.

    A key such as `observation.state+observation.environment_state` stands for several columns, one
    behind the other.
    """

    state: str = "observation.state"
    action: str = "action"
    episode: str = "episode_index"
    task: str = "task_index"
    environment_state: str | None = None

    @classmethod
    def of(cls, source: LeRobotSource, **keys: str | None) -> "ColumnKeys":
        """Check the keys; without an `environment_state` LeRobot's own is taken where it exists.

        Raises:
            MissingKeyError: lists the columns there are, nearest first.
        """
        given = {name: key for name, key in keys.items() if key is not None}
        if "environment_state" not in given and ENVIRONMENT_STATE_KEY in source.features:
            given["environment_state"] = ENVIRONMENT_STATE_KEY
        chosen = cls(**given)
        for key in chosen.columns:
            source.require(key)
        return chosen

    @property
    def columns(self) -> list[str]:
        """Every column of the dataset that is read."""
        return [part for key in self.arrays.values() for part in joined_columns(key)]

    @property
    def arrays(self) -> dict[str, str]:
        """Cache array name → column."""
        arrays = {
            "states": self.state,
            "actions": self.action,
            "episode_index": self.episode,
            "task_index": self.task,
        }
        if self.environment_state is not None:
            arrays["environment_states"] = self.environment_state
        return arrays

    @property
    def record(self) -> dict[str, str | None]:
        """The keys as the manifest's `dataset` section names them."""
        return {
            "state_key": self.state,
            "action_key": self.action,
            "episode_key": self.episode,
            "task_key": self.task,
            "environment_state_key": self.environment_state,
        }


@dataclass(frozen=True)
class ColumnScan:
    """What one pass over the columns found.

    Attributes:
        sha256: of all their values; part of the dataset's identity.
        dims: numbers per frame of each array that has a second axis.
        episodes: of the frames, with the dataset's own ids.
        task_index: of every frame.
    """

    sha256: str
    dims: dict[str, int]
    episodes: Episodes = field(repr=False)
    task_index: Int[np.ndarray, " N"] = field(repr=False)

    @property
    def numbered_ids(self) -> list[int] | None:
        """The ids where the cache counts the episodes, since its int32 does not hold their ids."""
        ids = self.episodes.ids
        return None if ids.max() <= MAX_INT32 else ids.tolist()

    @property
    def episode_index(self) -> Int[np.ndarray, " N"]:
        """Each frame's episode as the cache has it: its id, or its number in `numbered_ids`."""
        of_frame = self.episodes.of_frame
        numbers = of_frame if self.numbered_ids is not None else self.episodes.ids[of_frame]
        return numbers.astype(np.int32)


def joined_columns(key: str) -> list[str]:
    """Return the columns that a key stands for."""
    return key.split(_JOIN)


def column_array(name: str, key: str, block: dict[str, np.ndarray], where: str) -> np.ndarray:
    """Bring a block's columns into the rank of their cache array; ids stay as they are, in int64.

    `where` says whose columns they are, for errors.

    Raises:
        InvalidInputError: an index is no whole number, or one that the cache cannot hold.
    """
    if name == "episode_index":
        return episode_ids(block[key], key, where)
    if name == "task_index":
        tasks = whole_numbers(block[key], key, where)
        if len(tasks) and np.abs(tasks).max() > MAX_INT32:
            raise InvalidInputError(
                f"column {key} of {where} has the number {tasks[np.argmax(np.abs(tasks))]}, "
                f"expected at most {MAX_INT32}; is --task_index_key {key} right?"
            )
        return tasks
    parts = [block[column].astype(np.float32) for column in joined_columns(key)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def scan_columns(source: LeRobotSource, keys: ColumnKeys) -> ColumnScan:
    """Read every column once and check it.

    Raises:
        InvalidInputError: a number is not finite (names the first frame and its episode), a
            frame's task has no text, the episodes are not those of the metadata, or an index is
            none.
    """
    own_episodes(source)
    digest = hashlib.sha256()
    dims: dict[str, int] = {}
    indices: dict[str, list[np.ndarray]] = {"episode_index": [], "task_index": []}
    bad: dict[str, int] = {}
    first: dict[str, tuple[int, int]] = {}
    start = 0
    for block in source.columns(keys.columns):
        ids = column_array("episode_index", keys.episode, block, source.name)
        for name, key in keys.arrays.items():
            array = column_array(name, key, block, source.name)
            digest.update(f"{name} {array.shape[1:]}".encode())
            digest.update(_narrow(array).tobytes())
            if name in indices:
                indices[name].append(array)
                continue
            dims[name] = array.shape[1]
            rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
            if len(rows):
                bad[name] = bad.get(name, 0) + len(rows)
                first.setdefault(name, (start + int(rows[0]), int(ids[rows[0]])))
        start += len(ids)
    for name, count in bad.items():
        frame, episode = first[name]
        raise InvalidInputError(
            f"column {keys.arrays[name]} of {source.name} has numbers that are not finite in "
            f"{count} frames, first in frame {frame} (episode {episode}); mend or leave out these "
            "episodes"
        )
    task_index = np.concatenate(indices["task_index"]).astype(np.int32)
    without_text = sorted(set(np.unique(task_index).tolist()) - set(source.tasks))
    if without_text:
        raise InvalidInputError(
            f"column {keys.task} of {source.name} has values {without_text[:5]} that "
            f"meta/tasks.parquet does not list; is --task_index_key {keys.task} right?"
        )
    episodes = Episodes.from_frames(np.concatenate(indices["episode_index"]), task_index)
    return ColumnScan(digest.hexdigest(), dims, episodes, task_index)


def _narrow(array: np.ndarray) -> np.ndarray:
    """Return indices as the int32 that the cache holds, where it holds them all."""
    fits = array.dtype == np.int64 and (not array.size or array.max() <= MAX_INT32)
    return array.astype(np.int32) if fits else array


def column_shapes(
    source: LeRobotSource, keys: ColumnKeys, scan: ColumnScan
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each cache array that the columns become."""
    num_frames = source.num_frames
    return {
        name: (num_frames, scan.dims[name]) if name in scan.dims else (num_frames,)
        for name in keys.arrays
    }


def write_columns(
    writer: CacheWriter, source: LeRobotSource, keys: ColumnKeys, scan: ColumnScan
) -> None:
    """Write the columns in blocks; the caller publishes them."""
    shapes = column_shapes(source, keys, scan)
    done = min(writer.open(name, shape) for name, shape in shapes.items())
    indices = {"episode_index": scan.episode_index, "task_index": scan.task_index}
    start = 0
    for block in source.columns(keys.columns):
        end = start + len(block[keys.task])
        if end > done:
            arrays = {
                name: indices[name][start:end]
                if name in indices
                else column_array(name, key, block, source.name)
                for name, key in keys.arrays.items()
            }
            writer.write(start, arrays)
        start = end
