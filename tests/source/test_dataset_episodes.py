"""Where an episode's frames are, in datasets whose metadata and rows do not say the same."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures.lerobot import make_dataset
from world_modality.precompute.dataset_columns import ColumnKeys, scan_columns
from world_modality.source.frame_decoding import frame_blocks, frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingFileError

CAMERA = "observation.image"
VIDEO = f"videos/{CAMERA}"
NUM_FRAMES = 78


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    return {
        "image": make_dataset(folder / "image"),
        "video": make_dataset(folder / "video", camera_dtype="video"),
    }


@pytest.fixture(scope="module")
def frames(roots):
    """The video's frames as `LeRobotDataset[i]` gives them."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/tiny", root=roots["video"], video_backend="pyav")
    images = [dataset[i][CAMERA].permute(1, 2, 0).numpy() for i in range(len(dataset))]
    return (np.stack(images) * 255).round().astype(np.uint8)


@pytest.fixture
def copies(roots, tmp_path):
    return {kind: shutil.copytree(root, tmp_path / kind) for kind, root in roots.items()}


def change_rows(root, change, pattern="meta/episodes/*/*.parquet"):
    """Change the rows, as a list of dicts, of the only file that a pattern finds."""
    (path,) = root.glob(pattern)
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)


def change_value(root, key, row, value, pattern="meta/episodes/*/*.parquet"):
    def change(rows):
        rows[row][key] = value(rows[row][key])
        return rows

    change_rows(root, change, pattern)


def opened(root):
    return open_dataset("local/tiny", dataset_root=root)


def scan(root):
    source = opened(root)
    return scan_columns(source, ColumnKeys.of(source))


def test_frames_are_right_where_the_first_rows_begin_again_in_each_data_file(copies, frames):
    root = copies["video"]
    (path,) = root.glob("data/*/*.parquet")
    table = pq.read_table(path)
    # Two episodes a file; lengths are 12, 13, 14, 12, 13, 14.
    for number, (start, end) in enumerate([(0, 25), (25, 51), (51, 78)]):
        part = table.slice(start, end - start)
        pq.write_table(part, path.with_name(f"file-{number:03d}.parquet"))

    def begin_again(rows):
        for row in rows:
            row["data/file_index"], place = divmod(row["episode_index"], 2)
            row["dataset_from_index"] = place * rows[row["episode_index"] - place]["length"]
            row["dataset_to_index"] = row["dataset_from_index"] + row["length"]
        return rows

    change_rows(root, begin_again)
    np.testing.assert_array_equal(frames_at(opened(root), CAMERA, np.arange(NUM_FRAMES)), frames)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/tiny", root=root, video_backend="pyav")
    read = (dataset[40][CAMERA].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(read, frames[40])


def test_neither_the_order_of_the_metadata_nor_its_first_rows_matter(copies, frames):
    change_rows(
        copies["video"], lambda rows: [{**r, "dataset_from_index": None} for r in rows[::-1]]
    )
    found = frames_at(opened(copies["video"]), CAMERA, np.arange(NUM_FRAMES))
    np.testing.assert_array_equal(found, frames)


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows[:2] + rows[3:], r"lacks episodes that the data's rows have: \[2\]"),
        (lambda rows: [*rows, rows[4]], r"lists several times the episodes: \[4\]"),
        (
            lambda rows: [*rows, {**rows[5], "episode_index": 9}],
            r"lists episodes that the data's rows lack: \[9\]",
        ),
        (
            lambda rows: [
                {**row, "length": row["length"] + (i == 3)} for i, row in enumerate(rows)
            ],
            r"episode 3 has 13 frames, but the data have 12 rows",
        ),
    ],
)
def test_an_episode_that_is_missing_double_unknown_or_of_another_length_is_named(
    copies, kind, change, told
):
    change_rows(copies[kind], change)
    with pytest.raises(InvalidInputError, match=told):
        scan(copies[kind])
    if kind == "video":
        with pytest.raises(InvalidInputError, match=told):
            frames_at(opened(copies[kind]), CAMERA, np.arange(3))


def test_a_last_frame_that_the_next_episode_took_is_noticed(copies):
    change_value(copies["image"], "episode_index", 11, lambda _: 1, "data/*/*.parquet")
    with pytest.raises(InvalidInputError, match="episode 0 has 12 frames, but the data have 11"):
        scan(copies["image"])


def test_another_number_of_episodes_and_no_table_of_them_are_refused(copies):
    path = copies["image"] / "meta" / "info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "total_episodes": 7}))
    with pytest.raises(InvalidInputError, match="says 7 episodes, but the data's rows have 6"):
        scan(copies["image"])
    shutil.rmtree(copies["image"] / "meta" / "episodes")
    with pytest.raises(MissingFileError, match=r"no table of the episodes: expected .*meta"):
        scan(copies["image"])


def test_a_column_that_one_file_lacks_is_named(copies):
    (path,) = copies["image"].glob("data/*/*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["action", CAMERA]), path)
    with pytest.raises(InvalidInputError, match=r"file-000.parquet has no column action.*; it has"):
        scan(copies["image"])
    with pytest.raises(InvalidInputError, match=f"has no column {CAMERA}"):
        frames_at(opened(copies["image"]), CAMERA, np.arange(3))


@pytest.mark.parametrize("name", ["from_timestamp", "chunk_index"])
def test_a_column_that_the_table_of_episodes_lacks_is_named(copies, name):
    (path,) = copies["video"].glob("meta/episodes/*/*.parquet")
    pq.write_table(pq.read_table(path).drop_columns([f"{VIDEO}/{name}"]), path)
    with pytest.raises(InvalidInputError, match=f"has no column {VIDEO}/{name}"):
        frames_at(opened(copies["video"]), CAMERA, np.arange(3))


@pytest.mark.parametrize("steps", [1, -1, 3])
def test_an_episode_that_is_put_elsewhere_in_its_video_is_refused(copies, steps):
    change_value(copies["video"], f"{VIDEO}/from_timestamp", 2, lambda old: old + steps / 10)
    with pytest.raises(InvalidInputError, match=r"episode 2 .*place in|episodes 1 and 2 .*same"):
        frames_at(opened(copies["video"]), CAMERA, np.arange(NUM_FRAMES))


def test_videos_whose_times_begin_again_for_each_episode_are_refused(copies):
    def begin_again(rows):
        for row in rows:
            row[f"{VIDEO}/to_timestamp"] -= row[f"{VIDEO}/from_timestamp"]
            row[f"{VIDEO}/from_timestamp"] = 0.0
        return rows

    change_rows(copies["video"], begin_again)
    with pytest.raises(InvalidInputError, match=r"episodes 0 and \d .* have the same frames of"):
        frames_at(opened(copies["video"]), CAMERA, np.arange(NUM_FRAMES))


@pytest.mark.parametrize(("row", "change"), [(14, 0.1), (14, -0.1), (12, -0.1), (24, 0.1)])
def test_a_timestamp_of_another_frame_is_refused(copies, row, change):
    change_value(copies["video"], "timestamp", row, lambda old: old + change, "data/*/*.parquet")
    with pytest.raises(InvalidInputError, match=r"timestamps of episode 1 .* do not ascend within"):
        frames_at(opened(copies["video"]), CAMERA, np.arange(NUM_FRAMES))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("indices", [[76, 77, 78], [-2, 3]])
def test_frames_that_are_not_there_are_an_error(roots, kind, indices):
    with pytest.raises(InvalidInputError, match=r"78"):
        list(frame_blocks(opened(roots[kind]), CAMERA, np.array(indices), 2))


def test_images_of_other_rows_than_those_asked_for_are_refused(copies):
    change_rows(copies["image"], lambda rows: rows[:5] + rows[6:], "data/*/*.parquet")
    with pytest.raises(InvalidInputError, match="row 5 has index 6, expected 5"):
        frames_at(opened(copies["image"]), CAMERA, np.arange(20))
