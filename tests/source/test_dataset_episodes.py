"""Where an episode's frames are, in datasets whose metadata and rows do not say the same."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fixtures.lerobot import EPISODES, ROWS, change_info, change_rows, change_value
from tests.source.conftest import CAMERA, refused
from world_modality.precompute.dataset_columns import ColumnKeys, scan_columns
from world_modality.source.frame_decoding import frame_blocks, frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingFileError

VIDEO = f"videos/{CAMERA}"
NUM_FRAMES = 78


def read(root, num_frames=NUM_FRAMES):
    source = open_dataset("local/tiny", dataset_root=root)
    return frames_at(source, CAMERA, np.arange(num_frames))


def scan(root):
    source = open_dataset("local/tiny", dataset_root=root)
    return scan_columns(source, ColumnKeys.of(source))


def drop_columns(root, pattern, *keys):
    (path,) = root.glob(pattern)
    pq.write_table(pq.read_table(path).drop_columns(list(keys)), path)


def test_frames_are_right_where_the_first_rows_begin_again_in_each_data_file(copies, lerobots):
    root, frames = copies["video"], lerobots["video"][1]
    (path,) = root.glob(ROWS)
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

    change_rows(root, begin_again, EPISODES)
    np.testing.assert_array_equal(read(root), frames)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/tiny", root=root, video_backend="pyav")
    by_lerobot = (dataset[40][CAMERA].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(by_lerobot, frames[40])


def test_neither_the_order_of_the_metadata_nor_its_first_rows_matter(copies, lerobots):
    change_rows(
        copies["video"],
        lambda rows: [{**row, "dataset_from_index": None} for row in rows[::-1]],
        EPISODES,
    )
    np.testing.assert_array_equal(read(copies["video"]), lerobots["video"][1])


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
    change_rows(copies[kind], change, EPISODES)
    refused(told, scan, copies[kind])
    if kind == "video":
        refused(told, read, copies[kind])


def test_a_last_frame_that_the_next_episode_took_is_noticed(copy):
    change_value(copy, "episode_index", 11, lambda _: 1)
    refused("episode 0 has 12 frames, but the data have 11", scan, copy)


def test_another_number_of_episodes_and_no_table_of_them_are_refused(copy):
    change_info(copy, total_episodes=7)
    refused("says 7 episodes, but the data's rows have 6", scan, copy)
    shutil.rmtree(copy / "meta" / "episodes")
    refused(r"no table of the episodes: expected .*meta", scan, copy, error=MissingFileError)


def test_a_column_that_one_file_lacks_is_named(copy):
    drop_columns(copy, ROWS, "action", CAMERA)
    refused(r"file-000.parquet has no column action.*; it has", scan, copy)
    refused(f"has no column {CAMERA}", read, copy)


@pytest.mark.parametrize("name", ["from_timestamp", "chunk_index"])
def test_a_column_that_the_table_of_episodes_lacks_is_named(copies, name):
    drop_columns(copies["video"], EPISODES, f"{VIDEO}/{name}")
    refused(f"has no column {VIDEO}/{name}", read, copies["video"])


@pytest.mark.parametrize("steps", [1, -1, 3])
def test_an_episode_that_is_put_elsewhere_in_its_video_is_refused(copies, steps):
    key = f"{VIDEO}/from_timestamp"
    change_value(copies["video"], key, 2, lambda old: old + steps / 10, EPISODES)
    refused(r"episode 2 .*place in|episodes 1 and 2 .*same", read, copies["video"])


def test_videos_whose_times_begin_again_for_each_episode_are_refused(copies):
    def begin_again(rows):
        for row in rows:
            row[f"{VIDEO}/to_timestamp"] -= row[f"{VIDEO}/from_timestamp"]
            row[f"{VIDEO}/from_timestamp"] = 0.0
        return rows

    change_rows(copies["video"], begin_again, EPISODES)
    refused(r"episodes 0 and \d .* have the same frames of", read, copies["video"])


@pytest.mark.parametrize(("row", "change"), [(14, 0.1), (14, -0.1), (12, -0.1), (24, 0.1)])
def test_a_timestamp_of_another_frame_is_refused(copies, row, change):
    change_value(copies["video"], "timestamp", row, lambda old: old + change)
    refused(r"timestamps of episode 1 .* do not ascend within", read, copies["video"])


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("indices", [[76, 77, 78], [-2, 3]])
def test_frames_that_are_not_there_are_an_error(roots, kind, indices):
    source = open_dataset("local/tiny", dataset_root=roots[kind])
    with pytest.raises(InvalidInputError, match=r"78"):
        list(frame_blocks(source, CAMERA, np.array(indices), 2))


def test_images_of_other_rows_than_those_asked_for_are_refused(copy):
    change_rows(copy, lambda rows: rows[:5] + rows[6:])
    refused("row 5 has index 6, expected 5", read, copy)
