"""A dataset's own columns, read beside a cache that was made from it; no image is touched."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from world_modality.cache.contract import PRECOMPUTE_COMMAND, Cache
from world_modality.precompute.dataset_columns import column_array, joined_columns
from world_modality.precompute.instruction_texts import (
    BLOCK_ROWS,
    InstructionTexts,
    dataset_section,
    survey_rows,
)
from world_modality.source.dataset_episodes import whole_numbers
from world_modality.source.instruction_text import text_fault
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingKeyError, missing_key

# Their embeddings and the manifest hold every one of them.
MAX_DISTINCT_TEXTS = 100_000
ALIGNED = {
    "state_key": "states",
    "action_key": "actions",
    "episode_key": "episode_index",
    "task_key": "task_index",
}


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
    paths = {name: cache.array_path(name) for name in keys if cache.load(name).size}
    start = 0
    for block in source.columns(
        [c for key in keys.values() for c in joined_columns(key)], BLOCK_ROWS
    ):
        for name, path in paths.items():
            found = column_array(name, keys[name], block, source.name)
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            cached = np.array(mapped[start : start + len(found)])
            if name == "episode_index" and ids is not None:
                cached = np.asarray(ids)[cached]
            differs = (found != cached).reshape(len(found), -1).any(axis=1)
            if differs.any():
                raise InvalidInputError(
                    f"frame {start + int(np.argmax(differs))} has another {keys[name]} in the "
                    f"dataset than in the cache: {remake}"
                )
        start += len(found)


def require_same_episodes(cache: Cache, source: LeRobotSource, key: str) -> None:
    """Check that a column draws the episodes' borders where the cache has them.

    Raises:
        MissingKeyError: no such column.
        InvalidInputError: the borders differ.
    """
    recorded = np.load(cache.array_path("episode_index"), mmap_mode="r", allow_pickle=False)
    start = 0
    last: object = None
    for column in raw_blocks(source, key):
        cached = np.asarray(recorded[max(start - 1, 0) : start + len(column)])
        # With the frame before, so that a border between two blocks counts.
        values = ([last] if start else []) + column.to_pylist()
        cached_border = cached[1:] != cached[:-1]
        border = np.array([b != a for a, b in pairwise(values)], dtype=bool)
        if not np.array_equal(cached_border, border):
            frame = max(start - 1, 0) + 1 + int(np.argmax(cached_border != border))
            raise InvalidInputError(
                f"--episode_id_key {key}: at frame {frame} that column and the cache's episodes "
                f"({dataset_section(cache)['episode_key']}) differ on whether an episode begins; "
                f"give {PRECOMPUTE_COMMAND} the same --episode_id_key"
            )
        last = values[-1]
        start += len(column)


def raw_blocks(source: LeRobotSource, key: str) -> Iterator[pa.Array]:
    """Yield a column of any type in blocks of rows, in frame order.

    Raises:
        MissingKeyError: no such column; an image is none either.
    """
    source.require(key)
    if key in source.camera_keys:
        raise MissingKeyError(f"{key} of {source.name} is no column of numbers or texts")
    for path in source.data_files:
        for batch in source.batches(path, [key], BLOCK_ROWS):
            if batch.num_rows:
                yield batch.column(0)


def integer_blocks(source: LeRobotSource, key: str) -> Iterator[Int[np.ndarray, " B"]]:
    """Yield a column of whole numbers.

    Raises:
        MissingKeyError: no such column.
        InvalidInputError: it holds something else.
    """
    for block in source.columns([key], BLOCK_ROWS):
        yield whole_numbers(block[key], key, source.name)


def texts_of_column(
    cache: Cache, source: LeRobotSource, key: str, keys: dict[str, str | None]
) -> InstructionTexts:
    """Read every frame's text from a column of the dataset.

    Args:
        cache: made from the same dataset.
        source: the dataset.
        key: the column.
        keys: what the manifest keeps of where the texts are from.

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
    positions: dict[str, int] = {}

    def blocks() -> Iterator[np.ndarray]:
        for column in raw_blocks(source, key):
            yield _positions_of(column, positions, f"column {key} of {source.name}")

    survey = survey_rows(cache, blocks())
    _refuse_faults(positions, blocks(), f"column {key} of {source.name}")
    return InstructionTexts(
        source="instruction_key",
        keys=keys,
        texts={str(row): text for text, row in positions.items()},
        distinct=tuple(positions),
        rows_sha256=survey.sha256,
        num_episodes_with_several=survey.num_episodes_with_several,
        blocks=blocks,
    )


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
    count, first, start = 0, None, 0
    for rows in blocks:
        bad = np.flatnonzero(np.isin(rows, list(faults)))
        if first is None and len(bad):
            first = (start + int(bad[0]), faults[int(rows[bad[0]])])
        count += len(bad)
        start += len(rows)
    assert first is not None
    raise InvalidInputError(
        f"{where} cannot be used in {count} frames, first in frame {first[0]}, where the text "
        f"{first[1]}; mend these texts, or leave --instruction_key out to use the task table"
    )
