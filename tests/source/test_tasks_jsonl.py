"""Task texts from JSON lines: what is read, and what is wrong with which line."""

import json

import pytest

from world_modality.source import task_texts
from world_modality.source.task_texts import location_record, read_tasks_jsonl
from world_modality.system.errors import InvalidInputError, MissingFileError, MissingKeyError

GOOD = '{"task_index": 0, "task": "push"}\n'


@pytest.fixture
def read(tmp_path):
    def reader(content, index_field="task_index", text_field="task"):
        path = tmp_path / "tasks.jsonl"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read_tasks_jsonl(str(path), index_field=index_field, text_field=text_field)

    return reader


def test_lines_become_texts_by_index(read):
    lines = GOOD + '\n{"task_index": 7, "task": "öffne die Lade", "other": [1]}\r\n' + GOOD
    assert read(lines) == {0: "push", 7: "öffne die Lade"}
    assert read("\ufeff" + GOOD) == {0: "push"}


def test_a_line_separator_inside_a_text_ends_no_line(read):
    line = json.dumps({"task_index": 1, "task": "push\u2028the block"}, ensure_ascii=False)
    assert read(line) == {1: "push\u2028the block"}


def test_the_fields_can_have_other_names(read):
    assert read('{"id": 3, "text": "lift"}', "id", "text") == {3: "lift"}
    # The column has another name than the field, which LeRobot always calls task_index.
    assert read(GOOD, "id", "task") == {0: "push"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 2 is not JSON.*'not json'"),
        ('{"task_index": 1, "task": "cut', "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"task_index": ' + "1" * 5_000 + "}", "line 2 is not JSON"),
        ("[1]", "line 2 holds list"),
        ('{"task_index": "1", "task": "a"}', "line 2: the task's index is '1'"),
        ('{"task_index": true, "task": "a"}', "line 2: the task's index is True"),
        ('{"task_index": 1.0, "task": "a"}', "line 2: the task's index is 1.0"),
        ('{"task_index": 1, "task": null}', "line 2: task is None, expected a text"),
        ('{"task_index": 1, "task": ""}', "line 2: the text of task 1 is blank"),
        ('{"task_index": 1, "task": " \\t"}', "line 2: the text of task 1 is blank"),
        ('{"task_index": 1, "task": "' + "a" * 2_001 + '"}', "line 2: .* 2001 characters"),
        ('{"task_index": 1, "task": "\\ud800"}', "line 2: .*half a surrogate pair"),
        ('{"task_index": 0, "task": "lift"}', "index 0 two texts: 'push' in line 1 and 'lift' in"),
    ],
)
def test_a_bad_line_is_named(read, line, message):
    with pytest.raises(InvalidInputError, match=message):
        read(GOOD + line)


def test_a_missing_field_lists_the_fields_there_are(read):
    with pytest.raises(MissingKeyError, match=r"no field 'task'.*line 1; there are: tasks.*--task"):
        read('{"task_index": 0, "tasks": "push"}')
    with pytest.raises(MissingKeyError, match=r"no field 'task_index'.*there are: index"):
        read('{"index": 0, "task": "push"}')


def test_an_unreadable_file_is_named(read, tmp_path, monkeypatch):
    with pytest.raises(InvalidInputError, match=r"not UTF-8 \(byte 1\)"):
        read(b'"\xff')
    with pytest.raises(InvalidInputError, match="is empty"):
        read("\n\n")
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(MissingFileError, match="no such file"):
            read_tasks_jsonl(str(path), index_field="task_index", text_field="task")
    monkeypatch.setattr(task_texts, "MAX_BYTES", len(GOOD))
    assert read(GOOD) == {0: "push"}
    with pytest.raises(InvalidInputError, match="more than"):
        read(GOOD + " ")


def test_the_record_is_the_same_on_every_machine():
    assert location_record("/home/someone/tasks.jsonl") == "tasks.jsonl"
    assert (
        location_record("https://host/meta/tasks.jsonl?token=x") == "https://host/meta/tasks.jsonl"
    )
