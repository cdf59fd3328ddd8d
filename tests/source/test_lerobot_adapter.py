"""The dataset as it is read in blocks, against what LeRobot itself gives."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures.lerobot import ACTION_DIM, STATE_DIM, TASKS, make_dataset
from world_modality.precompute.dataset_columns import ColumnKeys, scan_columns
from world_modality.source.frame_decoding import frame_blocks, frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_format import lerobot_home, local_dataset_folder
from world_modality.system.errors import InvalidInputError, MissingFileError, MissingKeyError

CAMERA = "observation.image"


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    return {
        "image": make_dataset(folder / "image"),
        "video": make_dataset(folder / "video", camera_dtype="video"),
        "two": make_dataset(folder / "two", cameras=(CAMERA, "observation.wrist"), num_episodes=2),
    }


@pytest.fixture
def copy(roots, tmp_path):
    return shutil.copytree(roots["image"], tmp_path / "copy")


def lerobot_frames(root):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/tiny", root=root, video_backend="pyav")
    images = [dataset[i][CAMERA].permute(1, 2, 0).numpy() for i in range(len(dataset))]
    return (np.stack(images) * 255).round().astype(np.uint8), dataset


def rewrite_column(root, key, change):
    """Change one column of the dataset's only parquet file."""
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    column = table.schema.get_field_index(key)
    values = change(table.column(key).to_pylist())
    pq.write_table(
        table.set_column(column, key, pa.array(values, table.schema.field(key).type)), path
    )


@pytest.mark.parametrize("kind", ["image", "video"])
def test_frames_and_columns_equal_what_lerobot_gives(roots, kind):
    expected, dataset = lerobot_frames(roots[kind])
    source = open_dataset("local/tiny", dataset_root=roots[kind])
    blocks = list(frame_blocks(source, CAMERA, np.arange(source.num_frames), 10))
    assert [len(block) for block in blocks] == [10] * (len(expected) // 10) + [len(expected) % 10]
    np.testing.assert_array_equal(np.concatenate(blocks), expected)
    keys = ["observation.state", "action", "episode_index", "task_index"]
    read = list(source.columns(keys, 7))
    columns = [np.concatenate([block[key] for block in read]) for key in keys]
    for key, column in zip(keys, columns, strict=True):
        stacked = np.stack([dataset[i][key] for i in range(len(dataset))])
        np.testing.assert_array_equal(column, stacked)
    assert {source.tasks[i] for i in columns[3].tolist()} == set(TASKS)
    assert all(dataset[i]["task"] == source.tasks[int(columns[3][i])] for i in (0, 20, 70))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_any_frames_come_in_the_order_asked_for(roots, kind):
    expected, _ = lerobot_frames(roots[kind])
    source = open_dataset("local/tiny", dataset_root=roots[kind])
    wanted = np.array([71, 5, 5, 40, 0, 26])
    np.testing.assert_array_equal(frames_at(source, CAMERA, wanted), expected[wanted])
    middle = np.concatenate(list(frame_blocks(source, CAMERA, np.arange(31, 78), 9)))
    np.testing.assert_array_equal(middle, expected[31:])


def test_frames_across_row_groups_and_files_keep_the_global_order(roots, copy):
    path = next(copy.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 33), path, row_group_size=5)
    pq.write_table(table.slice(33), path.with_name("file-001.parquet"), row_group_size=4)
    whole = open_dataset("local/tiny", dataset_root=roots["image"])
    split = open_dataset("local/tiny", dataset_root=copy)
    wanted = np.array([0, 4, 5, 32, 33, 36, 37, 77])
    np.testing.assert_array_equal(
        frames_at(split, CAMERA, wanted), frames_at(whole, CAMERA, wanted)
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


def test_the_only_camera_is_taken_and_two_have_to_be_named(roots):
    assert open_dataset("x", dataset_root=roots["image"]).camera(None) == CAMERA
    two = open_dataset("x", dataset_root=roots["two"])
    assert two.camera("observation.wrist") == "observation.wrist"
    with pytest.raises(MissingKeyError, match=r"2 cameras .*observation.wrist.*--image_key"):
        two.camera(None)
    with pytest.raises(MissingKeyError, match=r"'observation.wirst'.*there are: observation.wrist"):
        two.camera("observation.wirst")


def test_the_second_camera_sees_its_own_frames(roots):
    source = open_dataset("x", dataset_root=roots["two"])
    first, second = (frames_at(source, key, np.arange(5)) for key in (CAMERA, "observation.wrist"))
    assert (first != second).any()


def test_a_missing_column_lists_those_there_are(roots):
    source = open_dataset("x", dataset_root=roots["image"])
    with pytest.raises(MissingKeyError, match=r"'observation.stat' .*there are: observation.state"):
        ColumnKeys.of(source, state="observation.stat")
    with pytest.raises(MissingKeyError, match="no column 'episode_id'"):
        ColumnKeys.of(source, episode="episode_id")


def test_the_scan_describes_the_columns(roots):
    source = open_dataset("x", dataset_root=roots["image"])
    scan = scan_columns(source, ColumnKeys.of(source))
    assert scan.dims == {"states": STATE_DIM, "actions": ACTION_DIM}
    assert scan.episode_index.tolist()[11:13] == [0, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused_with_their_place(copy, value):
    def spoil(rows):
        rows[30][1] = rows[31][0] = value
        return rows

    rewrite_column(copy, "action", spoil)
    source = open_dataset("x", dataset_root=copy)
    with pytest.raises(
        InvalidInputError, match=r"action .*2 frames, first in frame 30 \(episode 2\)"
    ):
        scan_columns(source, ColumnKeys.of(source))


def test_frames_out_of_order_are_refused(copy):
    rewrite_column(copy, "index", lambda rows: [*rows[:5], rows[6], rows[5], *rows[7:]])
    source = open_dataset("x", dataset_root=copy)
    with pytest.raises(InvalidInputError, match="row 5 has index 6, expected 5"):
        list(source.columns(["action"]))


def test_a_task_without_text_is_refused(copy):
    rewrite_column(copy, "task_index", lambda rows: [9, *rows[1:]])
    source = open_dataset("x", dataset_root=copy)
    with pytest.raises(InvalidInputError, match=r"values \[9\]"):
        scan_columns(source, ColumnKeys.of(source))


def test_fewer_rows_than_the_metadata_says_are_refused(copy):
    path = next(copy.glob("data/*/*.parquet"))
    pq.write_table(pq.read_table(path).slice(0, 50), path)
    with pytest.raises(InvalidInputError, match="78 frames, but its parquet files hold 50"):
        list(open_dataset("x", dataset_root=copy).columns(["action"]))


def test_a_palettes_image_and_a_damaged_image_are_refused(copy):
    import io

    from PIL import Image

    def encoded(mode):
        buffer = io.BytesIO()
        Image.new(mode, (40, 48)).save(buffer, "png")
        return buffer.getvalue()

    def replace(content):
        return lambda rows: [
            {**row, "bytes": content if i == 3 else row["bytes"]} for i, row in enumerate(rows)
        ]

    rewrite_column(copy, CAMERA, replace(encoded("P")))
    source = open_dataset("x", dataset_root=copy)
    with pytest.raises(
        InvalidInputError, match=r"frame 3 of camera observation.image is PNG of mode P;"
    ):
        frames_at(source, CAMERA, np.arange(8))
    rewrite_column(copy, CAMERA, replace(b"no image"))
    with pytest.raises(InvalidInputError, match=r"frame 3 .*no readable image"):
        frames_at(source, CAMERA, np.arange(8))


def test_a_video_without_a_frame_is_refused(roots, tmp_path):
    root = shutil.copytree(roots["video"], tmp_path / "video")
    rewrite_column(root, "timestamp", lambda rows: [*rows[:20], rows[20] + 0.03, *rows[21:]])
    source = open_dataset("x", dataset_root=root)
    with pytest.raises(InvalidInputError, match=r"no frame at 2\.03\d* s"):
        frames_at(source, CAMERA, np.arange(78))
    next(root.glob("videos/*/*/*.mp4")).unlink()
    with pytest.raises(MissingFileError, match=r"video .* is missing"):
        frames_at(source, CAMERA, np.arange(3))


def test_an_empty_dataset_an_old_format_and_no_dataset_are_refused(copy, tmp_path):
    info_path = copy / "meta" / "info.json"
    info = json.loads(info_path.read_text())
    info_path.write_text(json.dumps({**info, "codebase_version": "v2.1"}))
    with pytest.raises(InvalidInputError, match=r"codebase_version v2\.1, expected v3"):
        open_dataset("x", dataset_root=copy)
    info_path.write_text(json.dumps({**info, "total_frames": 0}))
    with pytest.raises(InvalidInputError, match="is empty"):
        open_dataset("x", dataset_root=copy)
    with pytest.raises(MissingFileError, match=r"expected .*info.json"):
        open_dataset("x", dataset_root=tmp_path / "none")
    with pytest.raises(InvalidInputError, match="--revision"):
        open_dataset("x", dataset_root=copy, revision="v3.0")


def test_a_file_without_its_footer_is_refused(copy):
    path = next(copy.glob("data/*/*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match=r"never closed .*finalize"):
        list(open_dataset("x", dataset_root=copy).columns(["action"]))


def test_a_dataset_that_no_hub_gives_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    with pytest.raises(MissingFileError, match=r"no dataset nobody/nothing .*--dataset_root"):
        open_dataset("nobody/nothing")


def test_the_identity_of_a_dataset_does_not_depend_on_its_folder(roots, copy):
    original = open_dataset("x", dataset_root=roots["image"]).describe(CAMERA)
    assert open_dataset("x", dataset_root=copy).describe(CAMERA) == original
    assert original["recording"] == {"simulator": "drawn", "seed": 0}
    (copy / "meta" / "stats.json").write_text("{}")
    assert open_dataset("x", dataset_root=copy).describe(CAMERA) != original


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
    info = json.loads((copy / "meta" / "info.json").read_text())
    info["features"]["observation.state"]["names"] = names
    (copy / "meta" / "info.json").write_text(json.dumps(info))
    source = open_dataset("x", dataset_root=copy)
    assert source.dim_names("observation.state", STATE_DIM) == expected


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc"])
def test_a_name_that_leaves_the_folder_of_datasets_is_refused(name):
    with pytest.raises(InvalidInputError, match="does not name a folder inside"):
        local_dataset_folder(name)
    with pytest.raises(InvalidInputError, match="does not name a folder inside"):
        open_dataset(name)
