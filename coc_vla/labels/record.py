"""The label record: one JSON line an episode, either a checked trace or an error.

An episode may have several lines, since one that failed is tried again; its newest label counts,
or its newest error where it has no label.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from coc_vla.labels.trace import TraceStep, format_trace
from world_modality.cache.contract import with_checksum, without_checksum
from world_modality.system.errors import InvalidInputError, MissingFileError

GENERATION_COMMAND = "python -m coc_vla.coc_generation"


@dataclass(frozen=True)
class CocLabel:
    """What one line holds.

    Attributes:
        episode_id: the dataset's `episode_index`.
        instruction: what the robot was told.
        keyframe_indices: frames within the episode, the first is 0.
        coc_text: the steps; empty in an error record, and only there.
        raw_text: the author's last answer as it came.
        model_name: who wrote it.
        backend: through what.
        prompt_sha256: of the prompt file, None for the rules, which read none.
        seed: of the episode's first question; each further one has the next.
        error: why there is no label, None in a label.
        seconds: time that its answers took; in a batch, its share.
        tokens: generated over all attempts, None where nobody counts.
        attempts: questions asked.
    """

    episode_id: int
    instruction: str
    keyframe_indices: tuple[int, ...]
    coc_text: tuple[TraceStep, ...]
    raw_text: str
    model_name: str
    backend: str
    prompt_sha256: str | None
    seed: int
    error: str | None
    seconds: float
    tokens: int | None
    attempts: int

    def __post_init__(self) -> None:
        if (self.error is None) != bool(self.coc_text):
            raise ValueError("a record has either steps or an error")

    @property
    def is_label(self) -> bool:
        """Whether it holds a trace."""
        return self.error is None

    @property
    def text(self) -> str:
        """The steps as numbered lines, empty in an error record."""
        return format_trace(self.coc_text)

    def to_json(self) -> str:
        """Return the line, without its end."""
        content = {name: getattr(self, name) for name in _FIELDS}
        content["coc_text"] = [{"what": step.what, "why": step.why} for step in self.coc_text]
        content["keyframe_indices"] = list(self.keyframe_indices)
        # ASCII only: half a surrogate pair in a model's answer could not be written as UTF-8.
        return json.dumps(with_checksum(content), ensure_ascii=True, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "CocLabel":
        """Read a line; one that was changed by hand is taken once its `checksum` is deleted.

        Raises:
            ValueError: it is no such record; says why.
        """
        content = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(content, dict):
            raise ValueError(f"holds {type(content).__name__}, expected an object")
        missing = [name for name in _FIELDS if name not in content]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        for name, types in _FIELDS.items():
            if not isinstance(content[name], types) or isinstance(content[name], bool):
                raise ValueError(f"has {name} {content[name]!r}")
        indices = content["keyframe_indices"]
        is_counted = all(type(index) is int and index >= 0 for index in indices)
        if not indices or not is_counted or any(a >= b for a, b in pairwise(indices)):
            raise ValueError(f"has keyframe_indices {indices!r}, expected frames in their order")
        values = {name: without_checksum(content)[name] for name in _FIELDS}
        # Only the raw answer is kept whatever it holds; half a surrogate pair cannot be printed.
        json.dumps({**values, "raw_text": ""}, ensure_ascii=False).encode()
        values["keyframe_indices"] = tuple(content["keyframe_indices"])
        values["coc_text"] = tuple(_step(step) for step in content["coc_text"])
        return cls(**values)


_FIELDS: dict[str, tuple[type, ...]] = {
    "episode_id": (int,),
    "instruction": (str,),
    "keyframe_indices": (list, tuple),
    "coc_text": (list, tuple),
    "raw_text": (str,),
    "model_name": (str,),
    "backend": (str,),
    "prompt_sha256": (str, type(None)),
    "seed": (int,),
    "error": (str, type(None)),
    "seconds": (float, int),
    "tokens": (int, type(None)),
    "attempts": (int,),
}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"has {name}, which is no number")


def _step(content: Any) -> TraceStep:
    if not isinstance(content, dict) or not all(
        isinstance(content.get(half), str) and content[half] for half in ("what", "why")
    ):
        raise ValueError(f"has a step {content!r}, expected what and why")
    return TraceStep(content["what"], content["why"])


@dataclass(frozen=True)
class DamagedLine:
    """A line that is no record.

    Attributes:
        number: counted from 1.
        reason: what is wrong with it.
        is_torn: whether it is the last one and has no end: a kill interrupted its writing.
    """

    number: int
    reason: str
    is_torn: bool


@dataclass(frozen=True)
class LabelScan:
    """What a file of labels holds.

    Attributes:
        records: by episode: its newest label, or its newest error where it has no label.
        damaged: lines that are no records.
        num_lines: lines that are not empty.
        num_superseded: records that a later one of the same episode replaces.
        repeated: episodes with more than one label, which a single run never writes.
    """

    records: dict[int, CocLabel]
    damaged: tuple[DamagedLine, ...]
    num_lines: int
    num_superseded: int
    repeated: tuple[int, ...]

    @property
    def labelled(self) -> set[int]:
        """The episodes that have a label."""
        return {episode for episode, record in self.records.items() if record.is_label}


def scan_labels(path: Path) -> LabelScan:
    """Read a file of labels whatever state it is in.

    Raises:
        MissingFileError: no such file.
    """
    if not path.is_file():
        raise MissingFileError(
            f"no labels in {path}; {GENERATION_COMMAND} --output_jsonl {path} … writes them"
        )
    records: dict[int, CocLabel] = {}
    damaged: list[DamagedLine] = []
    repeated: dict[int, None] = {}
    num_lines = num_superseded = 0
    for number, line, is_whole in _lines(path):
        num_lines += 1
        try:
            if not is_whole:
                raise ValueError("has no end; its writing was interrupted")
            record = CocLabel.from_json(line.decode())
        except (ValueError, RecursionError) as error:
            damaged.append(DamagedLine(number, str(error)[:200], not is_whole))
            continue
        earlier = records.get(record.episode_id)
        num_superseded += earlier is not None
        if earlier is not None and earlier.is_label:
            if not record.is_label:
                continue
            repeated[record.episode_id] = None
        records[record.episode_id] = record
    return LabelScan(records, tuple(damaged), num_lines, num_superseded, tuple(repeated))


def read_records(path: Path) -> list[CocLabel]:
    """Read the record of each episode, by episode: labels and errors.

    A torn last line is left out, and named, since a run may be writing at this moment.

    Raises:
        MissingFileError: no such file.
        InvalidInputError: another line is damaged.
    """
    scan = scan_labels(path)
    for line in scan.damaged:
        if line.is_torn:
            print(f"note: {path} line {line.number} {line.reason}; it is left out")
    damaged = [line for line in scan.damaged if not line.is_torn]
    if damaged:
        raise InvalidInputError(
            f"{path} has {len(damaged)} damaged lines, the first is line {damaged[0].number}: it "
            f"{damaged[0].reason}; {GENERATION_COMMAND} --resume … takes them out and labels their "
            "episodes again"
        )
    return [scan.records[episode] for episode in sorted(scan.records)]


def read_labels(path: Path) -> list[CocLabel]:
    """Read the newest label of each episode that has one, by episode; errors are left out.

    Raises:
        MissingFileError: no such file.
        InvalidInputError: a line other than a torn last one is damaged.
    """
    return [record for record in read_records(path) if record.is_label]


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yield each line's number, content, and whether it has its end; empty ones are left out."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line, line.endswith(b"\n")
