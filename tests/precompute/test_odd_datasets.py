"""Datasets as people have them, from the recording to the error on held-out episodes."""

import json
import shutil
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures.instruction import NAME, tiny_cache
from tests.fixtures.lerobot import (
    EPISODES,
    ROWS,
    change_feature,
    change_info,
    change_rows,
    make_dataset,
    put_column,
    values,
)
from tests.fixtures.lerobot_v21 import write_v21
from tests.fixtures.policy import tiny_train_config
from tests.fixtures.video import VideoFormat, write_video
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as eval_offline
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingKeyError
from world_modality.training.single import run as train

TOP, WRIST = "observation.top", "observation.wrist"
LENGTHS = [12, 13, 14, 12, 13, 14]
CODECS = {"AV1": "libsvtav1", "H.264": "libx264", "HEVC": "libx265"}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Return the same two cameras as images, and as videos."""
    folder = tmp_path_factory.mktemp("recordings")
    shared = {"cameras": (TOP, WRIST), "image_size": (48, 64)}
    return {
        "image": make_dataset(folder / "image", **shared),
        "video": make_dataset(folder / "video", camera_dtype="video", **shared),
    }


def keep_episodes(root, kept, *, numbered_again=True):
    """Cut a subset that keeps the episodes' numbers."""

    def chosen(rows):
        return [row for row in rows if row["episode_index"] in kept]

    def numbered(rows):
        return [{**row, "index": i} for i, row in enumerate(chosen(rows))]

    change_rows(root, numbered if numbered_again else chosen)
    change_rows(root, chosen, EPISODES)
    change_info(root, total_episodes=len(kept), total_frames=sum(LENGTHS[i] for i in kept))


def encode_again(root, codec):
    source = open_dataset(NAME, dataset_root=root)
    for camera in (TOP, WRIST):
        frames = frames_at(source, camera, np.arange(source.num_frames))
        (path,) = root.glob(f"videos/{camera}/*/*.mp4")
        write_video(path, frames, VideoFormat(codec, "yuv420p", size=(48, 64)))


def rename(root, names):
    (path,) = root.glob(ROWS)
    table = pq.read_table(path)
    table = table.rename_columns([names.get(key, key) for key in table.column_names])
    pq.write_table(table.replace_schema_metadata(None), path)
    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    change_info(root, features={names.get(k, k): v for k, v in info["features"].items()})


def leave_tasks_out(root):
    (path,) = root.glob(ROWS)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["task_index"]), path)
    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    change_info(root, features={k: v for k, v in info["features"].items() if k != "task_index"})


def keep_one_task(root):
    """Keep the two episodes of the first task, numbered 0 and 3, and no other task."""
    keep_episodes(root, (0, 3))
    change_rows(root, lambda rows: [row for row in rows if row["task_index"] == 0], "meta/tasks*")
    leave_tasks_out(root)


def widen_actions(root):
    wide = np.tile(np.array(values(root, "action"), dtype=np.float32), 15)
    put_column(root, "action", pa.array(wide.tolist(), pa.list_(pa.float32(), 30)))
    change_feature(root, "action", shape=[30], names=[f"joint_{i}" for i in range(30)])


def older(root):
    made = write_v21(root, root.with_name("older"))
    shutil.rmtree(root)
    made.rename(root)


@dataclass(frozen=True)
class Case:
    """What is done to a recording, the flags that it then needs, and what the cache has."""

    change: Any
    flags: dict[str, Any] = field(default_factory=dict)
    kind: str = "image"
    episodes: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    action_dim: int = 2
    num_views: int = 1


ONE = {"image_key": (TOP,)}
RENAMED = {"observation.state": "state", "action": "actions", TOP: "image"}
FOREIGN = {"image_key": ("image",), "proprio_key": "state", "action_key": "actions"}
CASES = {
    "a gap in the numbers": Case(
        lambda root: keep_episodes(root, (0, 2, 5)), ONE, "image", (0, 2, 5)
    ),
    "two cameras": Case(lambda root: None, {"image_key": (TOP, WRIST)}, num_views=2),
    **{
        name: Case(lambda root, codec=codec: encode_again(root, codec), ONE, "video")
        for name, codec in CODECS.items()
    },
    "other keys": Case(lambda root: rename(root, RENAMED), FOREIGN),
    "one task without its column": Case(keep_one_task, ONE, episodes=(0, 3)),
    "actions of 30 numbers": Case(widen_actions, ONE, action_dim=30),
    "format v2.1": Case(older, {**ONE, "convert": True}),
}


OFTEN = ("a gap in the numbers", "two cameras", "one task without its column")
"""Cases of the default suite, seconds each; the others are as long, and change more rarely."""


@pytest.mark.parametrize(
    "name",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_it_is_embedded_trained_on_and_evaluated(recordings, tmp_path, name):
    case = CASES[name]
    root = shutil.copytree(recordings[case.kind], tmp_path / "tiny")
    case.change(root)
    cache = tiny_cache(root, tmp_path / "cache", val_fraction=0.3, **case.flags)
    split = cache.manifest["split"]
    assert sorted(split["train"] + split["val"]) == list(case.episodes)
    num_frames = sum(LENGTHS[episode] for episode in case.episodes)
    assert cache.load("actions").shape == (num_frames, case.action_dim)
    assert cache.observation_shape.num_views == case.num_views
    config = tiny_train_config(cache, tmp_path / "run", "C", num_epochs=1, batch_size=256)
    result = train(config)
    report = eval_offline(
        EvalOfflineConfig(
            checkpoint=result.checkpoint, dataset_name=NAME, cache_dir=cache.cache_dir, device="cpu"
        )
    )
    assert np.isfinite(report.actions["model"]["mse"].value)


def refused(root, message, error=InvalidInputError, **flags):
    with pytest.raises(error, match=message):
        tiny_cache(root, root.parent / "cache", **flags)


@pytest.fixture
def root(recordings, tmp_path):
    return shutil.copytree(recordings["image"], tmp_path / "tiny")


def test_a_subset_whose_frames_keep_their_numbers_is_refused_with_what_cuts_one(root):
    keep_episodes(root, (0, 2, 5), numbered_again=False)
    refused(root, r"index 25, expected 12.*lerobot-edit-dataset", **ONE)


def test_several_tasks_without_their_column_are_refused_with_what_to_do(root):
    leave_tasks_out(root)
    refused(
        root, r"no column 'task_index'.*of its 3 tasks.*--task_index_key", MissingKeyError, **ONE
    )


def test_other_keys_are_listed_where_the_flags_do_not_name_them(root):
    rename(root, RENAMED)
    refused(root, r"no camera .*there are: observation\.wrist, image", MissingKeyError, **ONE)
    refused(
        root,
        r"column 'observation\.state'.*there are: .*state",
        MissingKeyError,
        image_key=("image",),
    )
    flags = {"image_key": ("image",), "proprio_key": "state"}
    refused(root, r"no column 'action'.*there are: actions", MissingKeyError, **flags)


def test_the_older_format_is_refused_with_the_flag(root):
    older(root)
    refused(root, r"give the same command with --convert, which writes .*tiny_v3", **ONE)
