"""What a text has to be to serve as an instruction, and task texts from a JSON-lines file.

The file is as LeRobot v2's `meta/tasks.jsonl`, one object a line:
`{"task_index": 0, "task": "push the block"}`.
"""

import json
from pathlib import Path
from typing import Any

from world_modality.system.errors import (
    InvalidInputError,
    MissingFileError,
    MissingKeyError,
    missing_key,
)
from world_modality.system.network import download_https, is_url, without_query

MAX_TEXT_CHARS = 2_000
MAX_BYTES = 16_000_000
INDEX_FIELD = "task_index"


def text_fault(text: object) -> str | None:
    """Say what keeps a text from being an instruction; None where nothing does."""
    if not isinstance(text, str):
        return f"is {text!r}, which is no text"
    if not text.strip():
        return "is blank"
    if len(text) > MAX_TEXT_CHARS:
        return f"has {len(text)} characters, more than {MAX_TEXT_CHARS}"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half a surrogate pair, which is no character"
    return None


def location_record(location: str) -> str:
    """Return what a manifest says about where the file was, the same on every machine."""
    return without_query(location) if is_url(location) else Path(location).name


def read_tasks_jsonl(location: str, *, index_field: str, text_field: str) -> dict[int, str]:
    """Read the text of every task.

    Args:
        location: a path, or an https URL.
        index_field: field of the task's number; `task_index` where a line has no such field.
        text_field: field of its text.

    Raises:
        MissingFileError: no such file.
        MissingKeyError: a line lacks a field (lists the fields it has).
        InvalidInputError: an unreadable or too large file, or a line that is none of these objects,
            contradicts another, or has no text that can be an instruction.
    """
    shown = without_query(location) if is_url(location) else location
    tasks: dict[int, str] = {}
    first_lines: dict[int, int] = {}
    # Not splitlines(): a JSON string may hold U+2028, which that takes for the end of a line.
    for number, line in enumerate(_read_text(location, shown).split("\n"), start=1):
        if not line.strip():
            continue
        index, text = _parse_line(line, f"{shown} line {number}", index_field, text_field)
        if tasks.setdefault(index, text) != text:
            raise InvalidInputError(
                f"{shown} gives {INDEX_FIELD} {index} two texts: {tasks[index]!r} in line "
                f"{first_lines[index]} and {text!r} in line {number}"
            )
        first_lines.setdefault(index, number)
    if not tasks:
        raise InvalidInputError(f"{shown} is empty; expected one JSON object a line")
    return tasks


def _read_text(location: str, shown: str) -> str:
    if is_url(location):
        content = download_https(location, max_bytes=MAX_BYTES)
    else:
        path = Path(location)
        if not path.is_file():
            raise MissingFileError(f"--tasks_jsonl {shown}: there is no such file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InvalidInputError(
                f"{shown} has more than {MAX_BYTES / 1e6:g} MB; is it the right file?"
            )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{shown} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from error


def _parse_line(line: str, where: str, index_field: str, text_field: str) -> tuple[int, str]:
    try:
        content: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{where} is not JSON ({str(error)[:100]}): {line.strip()[:60]!r}"
        ) from error
    if not isinstance(content, dict):
        raise InvalidInputError(
            f"{where} holds {type(content).__name__}, expected an object with {INDEX_FIELD} and "
            f"{text_field}"
        )
    index = content.get(index_field, content.get(INDEX_FIELD))
    if index is None:
        raise missing_key("field", index_field, content, where)
    if text_field not in content:
        raise MissingKeyError(
            f"{missing_key('field', text_field, content, where)}; name it with --task_text_field"
        )
    text = content[text_field]
    if type(index) is not int:  # True is an int, too
        raise InvalidInputError(f"{where}: the task's index is {index!r}, expected a whole number")
    fault = text_fault(text)
    if fault is not None:
        raise InvalidInputError(f"{where}: the text of task {index} {fault}")
    return index, text
