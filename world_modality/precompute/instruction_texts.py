"""Which text each frame of a cache has: through its task's number, or in a column of its own.

A column that the cache lacks is read from the dataset beside it, which then has to be the dataset
that the cache was made from; no image is touched.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from world_modality.cache.contract import PRECOMPUTE_COMMAND, Cache
from world_modality.precompute.dataset_columns import column_array, joined_columns
from world_modality.source.dataset_episodes import whole_numbers
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.source.task_texts import text_fault
from world_modality.system.errors import (
    InvalidInputError,
    MissingFileError,
    MissingKeyError,
    missing_key,
)

BLOCK_ROWS = 16_384
# Their embeddings and the manifest hold every one of them.
MAX_DISTINCT_TEXTS = 100_000
ALIGNED = {
    "state_key": "states",
    "action_key": "actions",
    "episode_key": "episode_index",
    "task_key": "task_index",
}
TextSource = Literal["instruction_key", "tasks_jsonl", "task_table"]
Blocks = Callable[[], Iterator[np.ndarray]]


@dataclass(frozen=True)
class InstructionTexts:
    """The text of every frame, in a form whose size does not depend on the number of frames.

    Attributes:
        source: `instruction_key` (a column of texts), `tasks_jsonl`, or `task_table` (the
            dataset's own).
        keys: the columns, fields and file that they came from.
        texts: as the manifest lists them: by task index, or numbered by first appearance.
        distinct: the different ones among them.
        blocks: yields every frame's position in `distinct`, in frame order.
        rows_sha256: of these positions.
        num_episodes_with_several: episodes whose text changes on the way.
    """

    source: TextSource
    keys: dict[str, str | None]
    texts: dict[str, str]
    distinct: tuple[str, ...]
    blocks: Blocks = field(repr=False)
    rows_sha256: str
    num_episodes_with_several: int

    @classmethod
    def by_task(
        cls,
        cache: Cache,
        tasks: Mapping[int, str],
        source: TextSource,
        where: str,
        keys: dict[str, str | None],
        index_blocks: Blocks,
    ) -> "InstructionTexts":
        """Give each frame the text of its task; texts that no frame uses are left out.

        Args:
            cache: whose frames.
            tasks: text by task index.
            source: where the texts are from.
            where: the same for an error's reader.
            keys: what the manifest keeps of it.
            index_blocks: yields every frame's task index.

        Raises:
            InvalidInputError: a frame's task has no text, or a blank or overlong one.
        """
        used = _used_indices(index_blocks(), tasks, where)
        for index, (count, first) in sorted(used.items()):
            fault = text_fault(tasks[index])
            if fault is not None:
                raise InvalidInputError(
                    f"the text of task_index {index} in {where} {fault}; {count} frames need it, "
                    f"the first is frame {first}"
                )
        texts = {str(index): tasks[index] for index in sorted(used)}
        distinct = tuple(dict.fromkeys(texts.values()))
        indices = np.array(sorted(used), dtype=np.int64)
        position = {text: row for row, text in enumerate(distinct)}
        row_of = np.array([position[text] for text in texts.values()], dtype=np.int32)

        def blocks() -> Iterator[np.ndarray]:
            for block in index_blocks():
                yield row_of[np.searchsorted(indices, block)]

        return cls(source, keys, texts, distinct, blocks, *_survey(cache, blocks()))

    @classmethod
    def of_column(
        cls, cache: Cache, source: LeRobotSource, key: str, keys: dict[str, str | None]
    ) -> "InstructionTexts":
        """Read every frame's text from a column of the dataset that the cache was made from.

        Raises:
            MissingKeyError: no such column.
            InvalidInputError: it holds no texts, a frame's text is missing, blank or overlong, or
                there are too many different ones.
        """
        if key not in source.features:
            missing = missing_key("column", key, source.features, f"dataset {source.name}")
            raise MissingKeyError(
                f"{missing}; without --instruction_key the dataset's own task texts are taken"
            )
        where = f"column {key} of {source.name}"
        positions: dict[str, int] = {}

        def blocks() -> Iterator[np.ndarray]:
            for column in source.raw_blocks(key, BLOCK_ROWS):
                yield _positions_of(column, positions, where)

        survey = _survey(cache, blocks())
        _refuse_faults(positions, blocks(), where)
        texts = {str(row): text for text, row in positions.items()}
        return cls("instruction_key", keys, texts, tuple(positions), blocks, *survey)


def dataset_section(cache: Cache) -> dict[str, Any]:
    """Return what the manifest says about the dataset.

    Raises:
        MissingFileError: there is no cache, or it was not made from a dataset.
    """
    section = cache.manifest.get("dataset")
    absent = [name for name in ("episode_index", "task_index") if not cache.has(name)]
    if not isinstance(section, dict) or "tasks" not in section or absent:
        raise MissingFileError(
            f"{cache.manifest_path} does not say which frame belongs to which task; run "
            f"{PRECOMPUTE_COMMAND} --dataset_name {cache.dataset_name} --cache_dir "
            f"{cache.cache_dir} … first"
        )
    return section


def task_blocks(
    cache: Cache, source: LeRobotSource | None, key: str
) -> Iterator[Int[np.ndarray, " B"]]:
    """Yield every frame's task index in blocks: of a dataset's column, or without one the cache's.

    Raises:
        MissingKeyError: no such column.
        InvalidInputError: it holds something else than whole numbers.
    """
    if source is not None:
        for block in source.columns([key], BLOCK_ROWS):
            yield whole_numbers(block[key], key, source.name)
        return
    for start in range(0, cache.manifest["arrays"]["task_index"]["shape"][0], BLOCK_ROWS):
        yield _cached_rows(cache, "task_index", start, start + BLOCK_ROWS)


def require_same_frames(cache: Cache, source: LeRobotSource) -> None:
    """Check that the dataset's frames are the cache's, in the same order.

    Compares states, actions, episodes and tasks, number by number: a text belongs to a frame by
    its position alone.

    Raises:
        InvalidInputError: names the first frame that differs.
    """
    section = dataset_section(cache)
    keys = {name: section[role] for role, name in ALIGNED.items()}
    remake = (
        f"{cache.folder} was made from another dataset than the one in {source.root}; run "
        f"{PRECOMPUTE_COMMAND} again, or give the --dataset_root that it had"
    )
    if source.num_frames != section["num_frames"]:
        raise InvalidInputError(
            f"the dataset has {source.num_frames} frames, the cache {section['num_frames']}: "
            f"{remake}"
        )
    ids = cache.episode_ids
    names = [name for name in keys if cache.load(name).size]
    columns = [column for key in keys.values() for column in joined_columns(key)]
    start = 0
    for block in source.columns(columns, BLOCK_ROWS):
        end = start + len(block[keys["task_index"]])
        for name in names:
            found = column_array(name, keys[name], block, source.name)
            cached = _cached_rows(cache, name, start, end)
            if name == "episode_index" and ids is not None:
                cached = np.asarray(ids)[cached]
            differs = (found != cached).reshape(len(found), -1).any(axis=1)
            if differs.any():
                raise InvalidInputError(
                    f"frame {start + int(np.argmax(differs))} has another {keys[name]} in the "
                    f"dataset than in the cache: {remake}"
                )
        start = end


def require_same_episodes(cache: Cache, source: LeRobotSource, key: str) -> None:
    """Check that a column draws the episodes' borders where the cache has them.

    Raises:
        MissingKeyError: no such column.
        InvalidInputError: the borders differ.
    """
    start = 0
    last: object = None
    for column in source.raw_blocks(key, BLOCK_ROWS):
        # With the frame before, so that a border between two blocks counts.
        before = max(start - 1, 0)
        cached = _cached_rows(cache, "episode_index", before, start + len(column))
        values = ([last] if start else []) + column.to_pylist()
        cached_border = cached[1:] != cached[:-1]
        border = np.array([b != a for a, b in pairwise(values)], dtype=bool)
        if not np.array_equal(cached_border, border):
            frame = before + 1 + int(np.argmax(cached_border != border))
            raise InvalidInputError(
                f"--episode_id_key {key}: at frame {frame} that column and the cache's episodes "
                f"({dataset_section(cache)['episode_key']}) differ on whether an episode begins; "
                f"give {PRECOMPUTE_COMMAND} the same --episode_id_key"
            )
        last = values[-1]
        start += len(column)


def _cached_rows(cache: Cache, name: str, start: int, end: int) -> np.ndarray:
    """Read some rows of an array that `Cache.load` has checked before.

    Mapped again for every block: pages that were read stay resident as long as their map.
    """
    mapped = np.load(cache.array_path(name), mmap_mode="r", allow_pickle=False)
    return np.array(mapped[start:end])


def _survey(cache: Cache, blocks: Iterator[Int[np.ndarray, " B"]]) -> tuple[str, int]:
    """Return the hash of the frames' texts, and how many episodes have more than one."""
    digest = hashlib.sha256()
    several: set[int] = set()
    before: tuple[int, int] | None = None
    start = 0
    for rows in blocks:
        digest.update(rows.astype("<i4").tobytes())
        episodes = _cached_rows(cache, "episode_index", start, start + len(rows))
        if before is not None and before[0] == episodes[0] and before[1] != rows[0]:
            several.add(int(episodes[0]))
        changes = (rows[1:] != rows[:-1]) & (episodes[1:] == episodes[:-1])
        several.update(episodes[1:][changes].tolist())
        before = (int(episodes[-1]), int(rows[-1]))
        start += len(rows)
    return digest.hexdigest(), len(several)


def _used_indices(
    blocks: Iterator[np.ndarray], tasks: Mapping[int, str], where: str
) -> dict[int, tuple[int, int]]:
    """Return how many frames each task index has and the first of them; all have a text."""
    used: dict[int, tuple[int, int]] = {}
    start = 0
    for block in blocks:
        found = np.unique(block, return_index=True, return_counts=True)
        for index, first, count in zip(*(part.tolist() for part in found), strict=True):
            before, earliest = used.get(index, (0, start + first))
            used[index] = (before + count, earliest)
        start += len(block)
    missing = sorted(set(used) - set(tasks))
    if missing:
        listed = ", ".join(
            f"{index} ({used[index][0]} frames, first frame {used[index][1]})"
            for index in missing[:5]
        )
        raise InvalidInputError(
            f"{len(missing)} task indices of the frames have no text in {where}: {listed}; it has "
            f"{len(tasks)} tasks, {min(tasks, default='none')} to {max(tasks, default='none')}; "
            "is --task_index_key right?"
        )
    return used


def _positions_of(column: pa.Array, positions: dict[str, int], where: str) -> np.ndarray:
    """Return each text's position, numbering the new ones."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise InvalidInputError(f"{where} holds {column.type}, expected texts")
    encoded = column.fill_null("").dictionary_encode()
    rows = [positions.setdefault(text, len(positions)) for text in encoded.dictionary.to_pylist()]
    if len(positions) > MAX_DISTINCT_TEXTS:
        raise InvalidInputError(
            f"{where} has more than {MAX_DISTINCT_TEXTS} different texts; does it hold "
            "instructions?"
        )
    return np.array(rows, dtype=np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]


def _refuse_faults(positions: dict[str, int], blocks: Iterator[np.ndarray], where: str) -> None:
    faults = {row: fault for text, row in positions.items() if (fault := text_fault(text))}
    if not faults:
        return
    rows = np.concatenate(list(blocks))
    bad = np.flatnonzero(np.isin(rows, list(faults)))
    raise InvalidInputError(
        f"{where} cannot be used in {len(bad)} frames, first in frame {bad[0]}, where the text "
        f"{faults[int(rows[bad[0]])]}; mend these texts, or leave --instruction_key out to use the "
        "task table"
    )
