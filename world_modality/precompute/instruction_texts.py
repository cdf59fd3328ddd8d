"""Which text each frame of a cache has: through its task's number, or in a column of its own."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from world_modality.cache.contract import PRECOMPUTE_COMMAND, Cache
from world_modality.source.instruction_text import text_fault
from world_modality.system.errors import InvalidInputError, MissingFileError

BLOCK_ROWS = 16_384
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
        rows_sha256: of every frame's position in `distinct`.
        num_episodes_with_several: episodes whose text changes on the way.
        blocks: yields every frame's position in `distinct`, in frame order.
    """

    source: TextSource
    keys: dict[str, str | None]
    texts: dict[str, str]
    distinct: tuple[str, ...]
    rows_sha256: str
    num_episodes_with_several: int
    blocks: Blocks = field(repr=False)


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


def cached_blocks(cache: Cache, name: str) -> Iterator[Int[np.ndarray, " B"]]:
    """Yield a per-frame array of the cache, which `Cache.load` has checked before, in blocks.

    Mapped anew for every block: pages that were read stay resident as long as their map.
    """
    path = cache.array_path(name)
    num_frames = cache.manifest["arrays"][name]["shape"][0]
    for start in range(0, num_frames, BLOCK_ROWS):
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        yield np.array(mapped[start : start + BLOCK_ROWS])


@dataclass(frozen=True)
class RowSurvey:
    """What one pass over the frames' texts found."""

    sha256: str
    num_frames: int
    num_episodes_with_several: int


def survey_rows(cache: Cache, blocks: Iterator[Int[np.ndarray, " B"]]) -> RowSurvey:
    """Hash the frames' texts and count the episodes that have more than one."""
    path = cache.array_path("episode_index")
    digest = hashlib.sha256()
    several: set[int] = set()
    before: tuple[int, int] | None = None
    start = 0
    for rows in blocks:
        digest.update(rows.astype("<i4").tobytes())
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        episodes = np.array(mapped[start : start + len(rows)])
        if before is not None and before[0] == episodes[0] and before[1] != rows[0]:
            several.add(int(episodes[0]))
        changes = (rows[1:] != rows[:-1]) & (episodes[1:] == episodes[:-1])
        several.update(episodes[1:][changes].tolist())
        before = (int(episodes[-1]), int(rows[-1]))
        start += len(rows)
    return RowSurvey(digest.hexdigest(), start, len(several))


def texts_by_task(
    cache: Cache,
    tasks: Mapping[int, str],
    *,
    source: TextSource,
    where: str,
    keys: dict[str, str | None],
    index_blocks: Blocks,
) -> InstructionTexts:
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
    texts = {str(index): tasks[index] for index in sorted(used)}
    for index, (count, first) in sorted(used.items()):
        fault = text_fault(tasks[index])
        if fault is not None:
            raise InvalidInputError(
                f"the text of task_index {index} in {where} {fault}; {count} frames need it, the "
                f"first is frame {first}"
            )
    distinct = tuple(dict.fromkeys(texts.values()))
    position = {text: row for row, text in enumerate(distinct)}
    indices = np.array(sorted(used), dtype=np.int64)
    row_of = np.array([position[tasks[int(index)]] for index in indices], dtype=np.int32)

    def blocks() -> Iterator[np.ndarray]:
        for block in index_blocks():
            yield row_of[np.searchsorted(indices, block)]

    survey = survey_rows(cache, blocks())
    return InstructionTexts(
        source=source,
        keys=keys,
        texts=texts,
        distinct=distinct,
        rows_sha256=survey.sha256,
        num_episodes_with_several=survey.num_episodes_with_several,
        blocks=blocks,
    )


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
