"""Episode ids of any size through every stage, and the column types that LeRobot reads."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.coc_generation import run as label
from coc_vla.events.motion_columns import MotionFlags
from coc_vla.events.recorded import recorded_events
from coc_vla.head.text_head import read_traces
from coc_vla.labels.record import read_labels
from coc_vla.labels.settings import require_episode_key
from coc_vla.score_labels import ScoreConfig
from coc_vla.score_labels import run as score
from tests.fixtures.instruction import NAME, add_column, tiny_cache
from tests.fixtures.lerobot import change_feature, put_column, values
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.precompute.dataset_columns import ColumnKeys, scan_columns
from world_modality.precompute.instruction_texts import require_same_episodes, require_same_frames
from world_modality.source.episodes import Episodes
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError

CPU = torch.device("cpu")
LENGTHS = [12, 13, 14, 12, 13, 14]
# As recorders make them from the date; apart by 2**32, they were one and the same in int32.
FIRST_ID = 20251120101500000
IDS = [FIRST_ID + 2**32 * i for i in (3, 0, 1, 2, 5, 4)]


@pytest.fixture(scope="module")
def recorded(roots, tmp_path_factory):
    root = shutil.copytree(roots["image"], tmp_path_factory.mktemp("data") / NAME)
    add_column(root, "recording", np.repeat(IDS, LENGTHS).tolist())
    change_feature(root, "action", names=["hand_dx", "gripper_effort"])
    return root


@pytest.fixture
def copy(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "copy")


@pytest.fixture(scope="module")
def cache(recorded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    return tiny_cache(recorded, folder, episode_id_key="recording", val_fraction=0.3)


def opened(root):
    return open_dataset(NAME, dataset_root=root)


def scan(root, **keys):
    source = opened(root)
    return scan_columns(source, ColumnKeys.of(source, **keys))


def test_large_ids_are_counted_in_the_cache_and_named_everywhere(recorded, cache):
    numbers = cache.load("episode_index")
    assert numbers.dtype == np.int32
    assert numbers.tolist() == np.repeat(range(6), LENGTHS).tolist()
    assert cache.manifest["dataset"]["episode_ids"] == IDS
    split = cache.manifest["split"]
    assert sorted(split["train"] + split["val"]) == sorted(IDS)
    tensors = FrameTensors.from_cache(cache, CPU)
    assert tensors.episodes.ids.tolist() == IDS
    assert tensors.episodes.lengths.tolist() == LENGTHS
    assert tensors.episodes.frames_of([IDS[1]]).tolist() == list(range(12, 25))
    events = recorded_events(opened(recorded), MotionFlags(), "recording")
    assert list(events.by_episode) == IDS


def test_labels_and_instructions_join_by_large_ids(recorded, cache, tmp_path):
    output = tmp_path / "coc.jsonl"
    dataset = {"dataset_name": NAME, "dataset_root": recorded, "episode_id_key": "recording"}
    label(CocGenerationConfig(output_jsonl=output, backend="rules", **dataset))
    labels = read_labels(output)
    assert [one.episode_id for one in labels] == sorted(IDS)
    episodes = FrameTensors.from_cache(cache, CPU).episodes
    traces = read_traces(output, cache, episodes)
    assert traces.steps == {one.episode_id: one.coc_text for one in labels}
    with pytest.raises(InvalidInputError, match=r"by the column recording .* episode_index"):
        require_episode_key(output, "episode_index")
    scored = score(ScoreConfig(labels_jsonl=output, num_shuffles=1, **dataset))
    assert scored.num_labels == len(IDS)
    source = opened(recorded)
    require_same_frames(cache, source)
    require_same_episodes(cache, source, "episode_index")


def test_other_ids_than_the_caches_are_noticed(copy, cache):
    other = [i + (i == IDS[4]) for i in values(copy, "recording")]
    put_column(copy, "recording", pa.array(other))
    with pytest.raises(InvalidInputError, match="frame 51 has another recording"):
        require_same_frames(cache, opened(copy))


def test_ids_that_the_cache_holds_stay_as_they_are(recorded):
    found = scan(recorded)
    assert found.numbered_ids is None
    assert found.episode_index.tolist() == np.repeat(range(6), LENGTHS).tolist()
    counted = np.array([0, 0, 1, 2], dtype=np.int32)
    episodes = Episodes.from_frames(counted, np.zeros(4, dtype=np.int32), [70, 2**60, 5])
    assert episodes.ids.tolist() == [70, 2**60, 5]


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([0.2, 0.9, 1.5, 2, 3, 4], "holds float64"),
        ([0, -1, 2, 3, 4, 5], "has the number -1; episodes are numbered from 0"),
        (np.array([0, 1, 2, 3, 4, 2**64 - 1], dtype=np.uint64), str(2**64 - 1)),
    ],
)
def test_a_column_that_does_not_number_episodes_is_refused(copy, ids, told):
    put_column(copy, "recording", pa.array(np.repeat(ids, LENGTHS)))
    with pytest.raises(InvalidInputError, match=told):
        scan(copy, episode="recording")


def test_a_task_number_that_the_cache_cannot_hold_is_refused(copy):
    put_column(copy, "task_index", pa.array([t + 2**32 for t in values(copy, "task_index")]))
    with pytest.raises(InvalidInputError, match=r"task_index of .* has the number 429496729\d"):
        scan(copy)


@pytest.mark.parametrize("listed", [[1, 2], [*range(5), "5"], "0", [*range(5), 2**63]])
def test_a_damaged_list_of_ids_is_refused(cache, tmp_path, listed):
    folder = tmp_path / NAME
    shutil.copytree(cache.folder, folder)
    manifest = json.loads((folder / "train_manifest.json").read_text("utf-8"))
    manifest["dataset"]["episode_ids"] = listed
    (folder / "train_manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InvalidInputError, match="ids"):
        FrameTensors.from_cache(Cache(tmp_path, NAME), CPU)


def two_dimensional(root):
    """Write the state as `datasets` writes a feature of shape [2, 2]; return its numbers."""
    from datasets import Array2D

    numbers = values(root, "observation.state")
    kind = Array2D((2, 2), "float32")()
    nested = pa.array([[row[:2], row[2:]] for row in numbers], kind.storage_dtype)
    put_column(root, "observation.state", pa.ExtensionArray.from_storage(kind, nested))
    change_feature(root, "observation.state", shape=[2, 2], names=None)
    return np.array(numbers, dtype=np.float32)


def read_state(root):
    return np.concatenate(
        [b["observation.state"] for b in opened(root).columns(["observation.state"])]
    )


def test_a_state_of_two_dimensions_is_read_whether_datasets_is_imported_or_not(copy):
    expected = two_dimensional(copy)
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(NAME, root=copy)
    np.testing.assert_array_equal(dataset[20]["observation.state"].reshape(4), expected[20])
    np.testing.assert_array_equal(read_state(copy).reshape(-1, 4), expected)
    assert scan(copy).dims["states"] == 4
    code = (
        "import sys; from pathlib import Path\n"
        "from world_modality.source.lerobot_adapter import open_dataset\n"
        f"source = open_dataset('x', dataset_root=Path({str(copy)!r}))\n"
        "print(sum(b['observation.state'].sum() for b in source.columns(['observation.state'])))\n"
        "assert 'datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert float(done.stdout) == pytest.approx(expected.sum(), rel=1e-4), done.stderr


def test_long_lists_are_read(copy):
    expected = values(copy, "observation.state")
    put_column(copy, "observation.state", pa.array(expected, pa.large_list(pa.float32())))
    np.testing.assert_array_equal(read_state(copy), np.array(expected, dtype=np.float32))


def test_truth_values_are_read_as_numbers_but_number_no_episodes(copy):
    add_column(copy, "grasped", [0] * sum(LENGTHS))
    put_column(copy, "grasped", pa.array([i % 2 == 1 for i in range(sum(LENGTHS))]))
    assert scan(copy, state="observation.state+grasped").dims["states"] == 5
    with pytest.raises(InvalidInputError, match=r"grasped .* holds bool"):
        scan(copy, episode="grasped")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda rows: [*rows[:7], [*rows[7][:3], None], *rows[8:]], "1 missing values"),
        (lambda rows: [[*row, 1.0] for row in rows], r"5 numbers a frame, but .* shape \[4\]"),
    ],
)
def test_rows_that_lerobot_cannot_read_are_refused(copy, spoil, told):
    put_column(copy, "observation.state", pa.array(spoil(values(copy, "observation.state"))))
    with pytest.raises(InvalidInputError, match=told):
        read_state(copy)
