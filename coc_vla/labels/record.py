"""A file of labels: one JSON line an episode, either a checked trace or an error, and one writer.

An episode may have several lines, since one that failed is tried again; its newest label counts,
or its newest error where it has no label.
"""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from coc_vla.labels.trace import TraceStep, format_trace
from world_modality.cache.contract import with_checksum, without_checksum
from world_modality.system.atomic import LineFile, replacing
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.system.output_lock import OutputLock

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
        checked = without_checksum(content)
        values = {name: checked[name] for name in _FIELDS}
        # Only the raw answer is kept whatever it holds; half a surrogate pair cannot be printed.
        json.dumps({**values, "raw_text": ""}, ensure_ascii=False).encode()
        values["keyframe_indices"] = tuple(indices)
        values["coc_text"] = tuple(_step(step) for step in content["coc_text"])
        return cls(**values)


# What JSON holds of each field, in the order of a line.
_FIELDS: dict[str, tuple[type, ...]] = {
    "episode_id": (int,),
    "instruction": (str,),
    "keyframe_indices": (list,),
    "coc_text": (list,),
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
    """A line that is no record, counted from 1, and what is wrong with it.

    It is torn where it is the last one and has no end: a kill interrupted its writing.
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
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            num_lines += 1
            is_torn = not line.endswith(b"\n")
            try:
                if is_torn:
                    raise ValueError("has no end; its writing was interrupted")
                record = CocLabel.from_json(line.decode())
            except (ValueError, RecursionError) as error:
                damaged.append(DamagedLine(number, str(error)[:200], is_torn))
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
    """Read the newest label of each episode that has one, as `read_records` does with errors."""
    return [record for record in read_records(path) if record.is_label]


def error_kind(error: str) -> str:
    """Return an error without what differs between episodes: quotations and numbers."""
    return re.sub(r"\d+", "N", re.sub(r"'[^']*'", "'…'", error))[:160]


class LabelFile(AbstractContextManager["LabelFile"]):
    """An open file of labels, which no other process can open for writing.

    The lock is on `<file>.lock`. Lines are appended whole and are on the disk when `append`
    returns.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock, and make the folder; what the file holds stays as it is.

        Raises:
            InvalidInputError: another process writes it, or the folder cannot be written.
        """
        self.path = path
        self._lines: LineFile | None = None
        if path.is_dir():
            raise InvalidInputError(f"--output_jsonl {path} is a folder; name a file in it")
        self._lock = OutputLock.of_file(path, "--output_jsonl")
        self._lock.acquire()

    @property
    def has_lines(self) -> bool:
        """Whether an earlier run wrote something."""
        return self.path.exists() and self.path.stat().st_size > 0

    def empty(self) -> None:
        """Throw away what an earlier run wrote."""
        if self.path.exists():
            self._opened().clear()

    def repair(self) -> LabelScan:
        """Take out what is no record, the torn last line of a kill above all; return what was."""
        if not self.path.exists():
            return LabelScan({}, (), 0, 0, ())
        scan = scan_labels(self.path)
        if all(line.is_torn for line in scan.damaged):
            self._opened().cut_torn_line()
            return scan
        damaged = {line.number for line in scan.damaged}
        with self.path.open("rb") as old, replacing(self.path) as partial:
            kept = (line for number, line in enumerate(old, 1) if number not in damaged)
            with partial.open("wb") as new:
                new.writelines(kept)
        return scan

    def append(self, labels: Sequence[CocLabel]) -> None:
        """Write lines whole and flush them to the disk before returning.

        Labels that are finished at the same time share one flush, which costs milliseconds.

        Raises:
            OSError: the disk is full or gone; what was written of the lines is taken back where
                that is possible, and is repaired by the next run where not.
        """
        self._opened().append([label.to_json() for label in labels])

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
        self._lock.release()

    def _opened(self) -> LineFile:
        if self._lines is None:
            self._lines = LineFile(self.path)
        return self._lines
