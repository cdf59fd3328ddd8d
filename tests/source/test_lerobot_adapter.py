"""The dataset as it is read in blocks, against what LeRobot itself gives."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fixtures.lerobot import (
    ACTION_DIM,
    ROWS,
    STATE_DIM,
    TASKS,
    change_feature,
    change_info,
    change_rows,
    change_value,
)
from tests.source.conftest import CAMERA, refused
from world_modality.precompute.dataset_columns import ColumnKeys, scan_columns
from world_modality.source.frame_decoding import frame_blocks, frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_format import lerobot_home, local_dataset_folder
from world_modality.system.errors import MissingFileError, MissingKeyError

WRIST = "observation.wrist"


def opened(root):
    return open_dataset("local/tiny", dataset_root=root)


def scan(root, **keys):
    source = opened(root)
    return scan_columns(source, ColumnKeys.of(source, **keys))


def read(root, num_frames=78):
    return frames_at(opened(root), CAMERA, np.arange(num_frames))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_frames_and_columns_equal_what_lerobot_gives(roots, lerobots, kind):
    dataset, expected = lerobots[kind]
    source = opened(roots[kind])
    blocks = list(frame_blocks(source, CAMERA, np.arange(source.num_frames), 10))
    assert [len(block) for block in blocks] == [10] * (len(expected) // 10) + [len(expected) % 10]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    middle = np.concatenate(list(frame_blocks(source, CAMERA, np.arange(31, 78), 9)))
    np.testing.assert_array_equal(middle, expected[31:])
    any_order = np.array([71, 5, 5, 40, 0, 26])
    np.testing.assert_array_equal(frames_at(source, CAMERA, any_order), expected[any_order])
    read = list(source.columns(["observation.state", "action", "episode_index", "task_index"], 7))
    columns = {key: np.concatenate([block[key] for block in read]) for key in read[0]}
    for key, column in columns.items():
        stacked = np.stack([dataset[i][key] for i in range(len(dataset))])
        np.testing.assert_array_equal(column, stacked)
    tasks = columns["task_index"].tolist()
    assert {source.tasks[task] for task in tasks} == set(TASKS)
    assert all(dataset[i]["task"] == source.tasks[tasks[i]] for i in (0, 20, 70))


def test_frames_across_row_groups_and_files_keep_the_global_order(roots, copy):
    path = next(copy.glob(ROWS))
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 33), path, row_group_size=5)
    pq.write_table(table.slice(33), path.with_name("file-001.parquet"), row_group_size=4)
    wanted = np.array([0, 4, 5, 32, 33, 36, 37, 77])
    np.testing.assert_array_equal(
        frames_at(opened(copy), CAMERA, wanted), frames_at(opened(roots["image"]), CAMERA, wanted)
    )


@pytest.mark.parametrize("variable", [None, "XDG_CACHE_HOME", "HF_HOME", "HF_LEROBOT_HOME"])
def test_the_home_of_local_datasets_is_lerobots(variable, monkeypatch, tmp_path):
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_LEROBOT_HOME"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(tmp_path))
    # A new process: lerobot reads the variables when it is imported.
    code = "from lerobot.utils.constants import HF_LEROBOT_HOME; print(HF_LEROBOT_HOME)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert lerobot_home() == Path(done.stdout.strip())


def test_a_dataset_is_found_in_the_home(monkeypatch, roots):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(roots["image"].parent))
    assert open_dataset("image").root == roots["image"]
    refused(
        r"no dataset nobody/nothing .*--dataset_root",
        open_dataset,
        "nobody/nothing",
        error=MissingFileError,
    )


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc"])
def test_a_name_that_leaves_the_folder_of_datasets_is_refused(name):
    refused("does not name a folder inside", local_dataset_folder, name)
    refused("does not name a folder inside", open_dataset, name)


def test_the_only_camera_is_taken_and_two_have_to_be_named(roots):
    assert opened(roots["image"]).camera(None) == CAMERA
    two = opened(roots["two"])
    assert two.camera(WRIST) == WRIST
    first, second = (frames_at(two, key, np.arange(5)) for key in (CAMERA, WRIST))
    assert (first != second).any()
    key = MissingKeyError
    refused(rf"2 cameras .*{WRIST}.*--image_key", two.camera, None, error=key)
    told = rf"'observation.wirst'.*there are: {WRIST}"
    refused(told, two.camera, "observation.wirst", error=key)


def test_the_scan_describes_the_columns_and_a_missing_one_lists_those_there_are(roots):
    found = scan(roots["image"])
    assert found.dims == {"states": STATE_DIM, "actions": ACTION_DIM}
    assert found.episode_index.tolist()[11:13] == [0, 1]
    told = r"'observation.stat' .*there are: observation.state"
    refused(told, scan, roots["image"], state="observation.stat", error=MissingKeyError)
    refused("no column 'id'", scan, roots["image"], episode="id", error=MissingKeyError)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_place(copy, value):
    change_value(copy, "action", 30, lambda old: [old[0], value])
    change_value(copy, "action", 31, lambda old: [value, old[1]])
    refused(r"action .*2 frames, first in frame 30 \(episode 2\)", scan, copy)


def test_rows_out_of_order_cut_off_or_without_a_task_are_refused(copy):
    path = next(copy.glob(ROWS))
    whole = path.read_bytes()
    change_rows(copy, lambda rows: [*rows[:5], rows[6], rows[5], *rows[7:]])
    refused("row 5 has index 6, expected 5", scan, copy)
    path.write_bytes(whole)
    change_value(copy, "task_index", 0, lambda _: 9)
    refused(r"values \[9\]", scan, copy)
    change_rows(copy, lambda rows: rows[:50])
    refused("78 frames, but its parquet files hold 50", scan, copy)
    path.write_bytes(whole[:-100])
    refused(r"never closed .*finalize", scan, copy)


def test_a_damaged_image_is_refused(copy):
    change_value(copy, CAMERA, 3, lambda old: {**old, "bytes": b"no image"})
    refused(r"frame 3 .*no readable image", read, copy)


def test_a_video_without_a_frame_is_refused(copies):
    change_value(copies["video"], "timestamp", 20, lambda old: old + 0.03)
    refused(r"no frame at 2\.03\d* s", read, copies["video"])
    next(copies["video"].glob("videos/*/*/*.mp4")).unlink()
    refused(r"video .* is missing", read, copies["video"], error=MissingFileError)


def test_an_empty_dataset_an_old_format_and_no_dataset_are_refused(copy, tmp_path):
    change_info(copy, codebase_version="v2.1")
    refused(r"codebase_version v2\.1, expected v3", opened, copy)
    change_info(copy, total_frames=0, codebase_version="v3.0")
    refused("is empty", opened, copy)
    refused(r"expected .*info.json", opened, tmp_path / "none", error=MissingFileError)
    refused("--revision", open_dataset, "x", dataset_root=copy, revision="v3.0")


def test_the_identity_of_a_dataset_does_not_depend_on_its_folder(roots, copy):
    original = opened(roots["image"]).describe([CAMERA])
    assert opened(copy).describe([CAMERA]) == original
    assert original["recording"] == {"simulator": "drawn", "seed": 0}
    (copy / "meta" / "stats.json").write_text("{}")
    assert opened(copy).describe([CAMERA]) != original


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        ({"motors": ["a", "b", "c", "d"]}, ["a", "b", "c", "d"]),
        ([["a", "b", "c", "d"]], ["a", "b", "c", "d"]),
        ({"a": 0, "c": 2, "b": 1, "d": 3}, ["a", "b", "c", "d"]),
        (["state"], None),
        (["a", "a", "b", "c"], None),
        ({"x": 0, "y": 1}, None),
        (None, None),
    ],
)
def test_dimensions_are_named_only_where_there_is_one_name_for_each(copy, names, expected):
    change_feature(copy, "observation.state", names=names)
    assert opened(copy).dim_names("observation.state", STATE_DIM) == expected
