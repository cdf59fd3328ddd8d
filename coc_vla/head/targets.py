"""Which episode has which trace, checked against the cache that the policy is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from coc_vla.head.tokenizer import TextTokenizer
from coc_vla.labels.record import GENERATION_COMMAND, CocLabel, read_records
from coc_vla.labels.settings import require_episode_key
from coc_vla.labels.trace import TraceStep
from world_modality.cache.contract import Cache
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class EpisodeTraces:
    """The traces of a label file, by `episode_index`.

    Attributes:
        path: the file.
        steps: of the episodes that have a label.
        instructions: of the same episodes.
        num_errors: episodes whose record is an error.
    """

    path: Path
    steps: dict[int, tuple[TraceStep, ...]]
    instructions: dict[int, str]
    num_errors: int

    def among(self, episode_ids: Sequence[int]) -> dict[int, tuple[TraceStep, ...]]:
        """Return the traces of those of these episodes that have one."""
        return {i: self.steps[i] for i in episode_ids if i in self.steps}


def read_traces(path: Path, cache: Cache, episodes: Episodes) -> EpisodeTraces:
    """Read the labels of a cache's episodes.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: it is damaged, numbers the episodes by another column, or labels episodes
            that the cache lacks or that were told something else.
    """
    require_episode_key(path, cache.episode_key)
    steps: dict[int, tuple[TraceStep, ...]] = {}
    instructions: dict[int, str] = {}
    num_errors = 0
    known = dict(zip(episodes.ids.tolist(), episodes.tasks.tolist(), strict=True))
    for label in read_records(path):
        if label.episode_id not in known:
            raise InvalidInputError(
                f"{path} labels episode {label.episode_id}, which {cache.dataset_name} in "
                f"{cache.folder} does not have ({len(known)} episodes, {min(known)} to "
                f"{max(known)}); give the labels of this dataset, or label it with "
                f"{GENERATION_COMMAND} --dataset_name {cache.dataset_name} …"
            )
        _require_instruction(label, _instructions(cache, known[label.episode_id]), path)
        if label.is_label:
            steps[label.episode_id] = label.coc_text
            instructions[label.episode_id] = label.instruction
        num_errors += not label.is_label
    return EpisodeTraces(path, steps, instructions, num_errors)


def _instructions(cache: Cache, task: int) -> set[str]:
    """Return what an episode of this task may have been told."""
    manifest = cache.manifest
    own = {manifest["dataset"]["tasks"][str(task)]}
    text = manifest.get("text") or {}
    if text.get("source", "task_table") == "task_table":
        return own
    # Texts of a column are listed without their frames.
    return own | set(text["texts"].values())


def _require_instruction(label: CocLabel, expected: set[str], path: Path) -> None:
    if label.instruction.strip() not in {text.strip() for text in expected}:
        shown = " or ".join(repr(text) for text in sorted(expected)[:3])
        raise InvalidInputError(
            f"{path} labels episode {label.episode_id} with the instruction "
            f"{label.instruction!r}, but the cache says {shown}: labels of another dataset?"
        )


@dataclass(frozen=True)
class TextTargets:
    """Traces as token ids, one row for each episode of the cache.

    Attributes:
        tokens: begin mark to end mark, then padding; all padding without a trace.
        is_labelled: which episodes have one.
        of_frame: each frame's row.
    """

    tokens: Int[Tensor, "E L"]
    is_labelled: Bool[Tensor, " E"]
    of_frame: Int[Tensor, " N"]


def text_targets(
    traces: dict[int, tuple[TraceStep, ...]],
    episodes: Episodes,
    tokenizer: TextTokenizer,
    max_tokens: int,
    device: torch.device,
) -> TextTargets:
    """Encode traces.

    Raises:
        InvalidInputError: some are longer than `max_tokens`.
    """
    rows = {int(i): row for row, i in enumerate(episodes.ids)}
    encoded = {rows[i]: tokenizer.encode(steps) for i, steps in traces.items()}
    lengths = np.array([len(ids) for ids in encoded.values()], dtype=np.int64)
    if (lengths > max_tokens).any():
        raise InvalidInputError(
            f"{(lengths > max_tokens).sum()} of {len(lengths)} traces are longer than "
            f"--max_text_tokens {max_tokens}, the longest has {lengths.max()} tokens; raise it to "
            f"{lengths.max()} or more"
        )
    tokens = np.full((len(episodes), max_tokens), tokenizer.pad, dtype=np.int64)
    for row, ids in encoded.items():
        tokens[row, : len(ids)] = ids
    labelled = np.isin(np.arange(len(episodes)), list(encoded))
    return TextTargets(
        tokens=torch.from_numpy(tokens).to(device),
        is_labelled=torch.from_numpy(labelled).to(device),
        of_frame=torch.from_numpy(episodes.of_frame).to(device),
    )


def frames_along(episodes: Episodes, rows: Sequence[int], share: float) -> Int[np.ndarray, " E2"]:
    """Return the frame at this share of each episode's length, 0 the first and 1 the last.

    Args:
        episodes: all of them.
        rows: the positions of those asked for.
        share: in [0, 1].
    """
    chosen = np.asarray(rows, dtype=np.int64)
    steps = np.rint(share * (episodes.lengths[chosen] - 1)).astype(np.int64)
    frames: np.ndarray = episodes.starts[chosen] + steps
    return frames
