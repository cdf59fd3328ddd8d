"""The episodes of a dataset: those of its rows, joined by `episode_index` with `meta/episodes`.

`dataset_from_index` and `dataset_to_index` of `meta/episodes` are not read: some converters let
them begin again in each data file. Where an episode lies is what the rows themselves say.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Int, Shaped

from world_modality.source.episodes import Episodes
from world_modality.source.lerobot_format import MEND, to_numpy
from world_modality.source.lerobot_source import TASK_KEY, LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingFileError

EPISODE_KEY = "episode_index"
LENGTH_KEY = "length"
LISTED_KEY = "tasks"
TIME_KEY = "timestamp"
# Of the distance between frames: a converter may keep the clock's own times.
FPS_TOLERANCE = 0.01
BATCH_EPISODES = 4_096


def whole_numbers(column: np.ndarray, key: str, where: str) -> Int[np.ndarray, " B"]:
    """Return a column of whole numbers as int64, none of them changed.

    Raises:
        InvalidInputError: other numbers, several a row, or some that int64 does not hold.
    """
    if not np.issubdtype(column.dtype, np.integer) or column.size != len(column):
        raise InvalidInputError(
            f"column {key} of {where} holds {column.dtype} {list(column.shape[1:])}, expected one "
            "whole number a frame"
        )
    if column.dtype == np.uint64 and column.size and column.max() > np.iinfo(np.int64).max:
        raise InvalidInputError(
            f"column {key} of {where} has the number {column.max()}, expected at most "
            f"{np.iinfo(np.int64).max}"
        )
    return column.reshape(-1).astype(np.int64)


def episode_ids(column: np.ndarray, key: str, where: str) -> Int[np.ndarray, " B"]:
    """Return a column that numbers episodes as int64.

    Raises:
        InvalidInputError: it holds something else than whole numbers from 0.
    """
    ids = whole_numbers(column, key, where)
    if len(ids) and ids.min() < 0:
        raise InvalidInputError(
            f"column {key} of {where} has the number {ids.min()}; episodes are numbered from 0"
        )
    return ids


def read_episodes(
    source: LeRobotSource, episode_key: str = EPISODE_KEY, task_key: str | None = None
) -> Episodes:
    """Find the episodes that a column numbers, after a check of LeRobot's own; no image is touched.

    Args:
        source: the dataset.
        episode_key: the column.
        task_key: column that numbers the tasks; without one every episode has task 0.

    Raises:
        MissingKeyError: no such column.
        InvalidInputError: a column is damaged or holds no whole numbers, or the metadata have
            other episodes than the rows.
    """
    own = own_episodes(source)
    if (episode_key, task_key) == (EPISODE_KEY, None):
        return own
    columns = source.whole_columns([key for key in (episode_key, task_key) if key is not None])
    index = episode_ids(columns[episode_key], episode_key, source.name)
    if task_key is None:
        return Episodes.from_frames(index, np.zeros_like(index))
    return Episodes.from_frames(index, whole_numbers(columns[task_key], task_key, source.name))


def episode_table(
    source: LeRobotSource, keys: Sequence[str]
) -> tuple[Episodes, dict[str, np.ndarray]]:
    """Join the dataset's own episodes with columns of numbers of `meta/episodes`.

    Returns:
        the episodes of the rows, by LeRobot's `episode_index`, and key → [E], in the same order.

    Raises:
        MissingFileError, InvalidInputError: as `own_episodes`, or a column is missing.
    """
    episodes = own_episodes(source)
    table = _read_numbers(source, keys)
    rows = _rows_of(episodes, table[EPISODE_KEY])
    return episodes, {key: table[key][rows] for key in keys}


@lru_cache(maxsize=1)
def own_episodes(source: LeRobotSource) -> Episodes:
    """Return the episodes of the rows, checked once a source: each pass over frames asks for them.

    Raises:
        MissingFileError: there is no such table.
        InvalidInputError: an episode is missing there, double, of another length or other tasks,
            or has no rows; or the timestamps are not those of the recording's fps.
    """
    keys = [EPISODE_KEY, *(key for key in (TASK_KEY, TIME_KEY) if key in source.features)]
    rows = source.whole_columns(keys)
    index = episode_ids(rows[EPISODE_KEY], EPISODE_KEY, source.name)
    episodes = Episodes.from_frames(index, np.zeros_like(index))
    table = _read_numbers(source, [LENGTH_KEY])
    where = f"meta/episodes of {source.name} ({source.root})"
    ids, counts = np.unique(table[EPISODE_KEY], return_counts=True)
    for fault, found in (
        ("lacks episodes that the data's rows have", np.setdiff1d(episodes.ids, ids)),
        ("lists several times the episodes", ids[counts > 1]),
        ("lists episodes that the data's rows lack", np.setdiff1d(ids, episodes.ids)),
    ):
        if len(found):
            raise InvalidInputError(
                f"{where} {fault}: {found[:5].tolist()} ({len(found)} in all); {MEND}"
            )
    lengths = table[LENGTH_KEY][_rows_of(episodes, table[EPISODE_KEY])]
    wrong = np.flatnonzero(lengths != episodes.lengths)
    if len(wrong):
        first = int(wrong[0])
        raise InvalidInputError(
            f"{where} says that episode {episodes.ids[first]} has {lengths[first]} "
            f"frames, but the data have {episodes.lengths[first]} rows of it ({len(wrong)} such "
            f"episodes in all); {MEND}"
        )
    if source.info.get("total_episodes") != len(episodes):
        raise InvalidInputError(
            f"meta/info.json of {source.name} ({source.root}) says "
            f"{source.info.get('total_episodes')} episodes, but the data's rows have "
            f"{len(episodes)}; {MEND}"
        )
    if TASK_KEY in rows:
        _require_listed_tasks(source, episodes, rows[TASK_KEY])
    if TIME_KEY in rows:
        _require_fps(source, episodes, rows[TIME_KEY])
    return episodes


def _require_listed_tasks(
    source: LeRobotSource, episodes: Episodes, tasks: Shaped[np.ndarray, "N ..."]
) -> None:
    """Check the tasks of each episode's rows against the texts that `meta/episodes` lists for it.

    Some converters list none.
    """
    paths = source.episode_files
    if not all(LISTED_KEY in source.open_parquet(path).schema_arrow.names for path in paths):
        return
    listed: dict[int, list[str] | None] = {}
    for path in paths:
        for batch in source.batches(path, [EPISODE_KEY, LISTED_KEY], BATCH_EPISODES):
            ids, texts = (batch.column(key).to_pylist() for key in (EPISODE_KEY, LISTED_KEY))
            listed.update(zip(ids, texts, strict=True))
    of_frame = episodes.ids[episodes.of_frame]
    pairs = np.unique(np.stack([of_frame, tasks.reshape(-1)], axis=1), axis=0)
    for episode, task in pairs.tolist():
        text = source.tasks.get(task)
        # A task without a text is refused by whoever needs one.
        if text is not None and text not in (listed[episode] or ()):
            raise InvalidInputError(
                f"episode {episode} of {source.name} ({source.root}) has rows of task {task}, "
                f"{text!r} in meta/tasks.parquet, but meta/episodes lists "
                f"{listed[episode]} for it; {MEND}"
            )


def _require_fps(
    source: LeRobotSource, episodes: Episodes, times: Shaped[np.ndarray, "N ..."]
) -> None:
    steps = np.diff(times.reshape(-1).astype(np.float64))[np.diff(episodes.of_frame) == 0]
    step = float(np.median(steps)) if len(steps) else 1 / source.fps
    if not abs(step * source.fps - 1) <= FPS_TOLERANCE:
        raise InvalidInputError(
            f"meta/info.json of {source.name} ({source.root}) says {source.fps:g} frames per "
            f"second, but the timestamps of its rows are {step:.6g} s apart; {MEND}"
        )


def _rows_of(episodes: Episodes, ids: Int[np.ndarray, " E"]) -> Int[np.ndarray, " E"]:
    """Return each episode's row in a table of theirs; the data may have them in another order."""
    order = np.argsort(ids)
    rows: np.ndarray = order[np.searchsorted(ids, episodes.ids, sorter=order)]
    return rows


def _read_numbers(source: LeRobotSource, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read columns of numbers of `meta/episodes`, the episodes' own among them."""
    if not source.episode_files:
        raise MissingFileError(
            f"no table of the episodes: expected {source.root / 'meta/episodes'}/*/*.parquet; "
            f"{MEND}"
        )
    keys = [EPISODE_KEY, *keys]
    parts = [
        {key: to_numpy(batch.column(key), key, path).reshape(-1) for key in keys}
        for path in source.episode_files
        for batch in source.batches(path, keys, BATCH_EPISODES)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in keys}
