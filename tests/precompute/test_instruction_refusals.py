"""What the stage that embeds instructions refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.cache import replace_arrays
from tests.fixtures.instruction import (
    NAME,
    NUM_FRAMES,
    OTHER_TEXTS,
    add_column,
    build_home,
    changed,
    columns_of,
    copy_cache,
    copy_dataset,
    written,
)
from tests.fixtures.lerobot import make_dataset
from world_modality import precompute_instruction_embeddings
from world_modality.cache.contract import Cache
from world_modality.encode.text_encoder import TextEncoder
from world_modality.precompute import instruction_texts
from world_modality.precompute_instruction_embeddings import run
from world_modality.system.errors import InvalidInputError, MissingFileError, MissingKeyError

ARRAY = "instruction_embeddings"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    build_home(home)
    return home


@pytest.fixture
def dataset(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "datasets"))
    return copy_dataset(home, tmp_path / "datasets")


@pytest.fixture
def config(home, dataset, tmp_path):
    return copy_cache(home, tmp_path)


def refused(config, message, error=InvalidInputError, **changes):
    with pytest.raises(error, match=message):
        run(changed(config, **changes))
    assert not list(config.cache_dir.glob("**/*instruction_embeddings*"))


def test_bad_settings_are_refused(config, tmp_path):
    path = written(tmp_path, OTHER_TEXTS)
    refused(config, "--split val", split="val")
    refused(config, "--batch_size", batch_size=0)
    refused(config, "give one of them", instruction_key="instruction", tasks_jsonl=path)
    refused(config, "--task_text_field names a field", task_text_field="text")
    refused(config, "--max_length 1", max_length=1)
    refused(config, "expected https, not http", tasks_jsonl="http://localhost/tasks.jsonl")
    refused(config, "no such file", MissingFileError, tasks_jsonl=path + "x")
    refused(config, "no text model", text_model_name="no/such-model")
    elsewhere = {"instruction_key": "instruction", "dataset_root": tmp_path}
    refused(config, "no LeRobot dataset in --dataset_root", MissingFileError, **elsewhere)


def test_a_wrong_key_lists_the_keys_there_are(config):
    key = MissingKeyError
    refused(
        config, "no column 'instructions'.*: instruction, ", key, instruction_key="instructions"
    )
    # LeRobot's samples have a `task`, its files do not.
    refused(config, "without --instruction_key the dataset's own", key, instruction_key="task")
    refused(config, "no column 'episode'.*there are: episode_", key, episode_id_key="episode")
    refused(config, "no column 'task_id'.*there are: task_index", key, task_index_key="task_id")
    refused(config, "holds int64, expected texts", instruction_key="skill")
    refused(config, "is no column of numbers or texts", key, instruction_key="observation.image")
    refused(config, "holds float32", task_index_key="timestamp")


@pytest.mark.parametrize("block_rows", [1, 12, 13, 16_384])
def test_an_episode_key_with_other_borders_is_refused(config, dataset, monkeypatch, block_rows):
    monkeypatch.setattr(instruction_texts, "BLOCK_ROWS", block_rows)
    # The first episode has 12 frames, and 40 is in the middle of one.
    refused(config, "--episode_id_key frame_index: at frame 1 that", episode_id_key="frame_index")
    episodes, _ = columns_of(dataset)
    add_column(dataset, "session", (episodes // 2).tolist())
    refused(config, "--episode_id_key session: at frame 12 that", episode_id_key="session")
    split = [f"{e} {frame >= 40}" for frame, e in enumerate(episodes.tolist())]
    add_column(dataset, "split", split)
    refused(config, "--episode_id_key split: at frame 40 that", episode_id_key="split")
    run(changed(config, episode_id_key="episode_id"))


@pytest.mark.parametrize(
    ("text", "fault"), [("", "is blank"), (None, "is blank"), ("x" * 2_001, "2001")]
)
def test_a_frame_without_a_text_is_named(config, dataset, text, fault):
    texts = ["push"] * NUM_FRAMES
    texts[40] = texts[41] = text
    add_column(dataset, "instruction", texts)
    message = rf"column instruction .* in 2 frames, first in frame 40, where the text .*{fault}"
    refused(config, message, instruction_key="instruction")


def test_a_task_without_a_text_is_named(config, tmp_path):
    path = written(tmp_path, {0: "push", 1: "lift"})
    # The episodes 2 and 5 have task 2; before them come 12 and 13 frames.
    message = r"1 task indices .*tasks\.jsonl: 2 \(28 frames, first frame 25\); it has 2 tasks"
    refused(config, message, tasks_jsonl=path)
    cache = Cache(config.cache_dir, NAME)
    dataset = {**cache.manifest["dataset"], "tasks": {"0": "push", "1": " ", "2": "open"}}
    replace_arrays(cache, {}, {"dataset": dataset})
    refused(config, "text of task_index 1 in the task table .* is blank; 26 frames .* frame 12")


def test_too_many_texts_are_no_instructions(config, dataset, monkeypatch):
    add_column(dataset, "instruction", [f"frame {i}" for i in range(NUM_FRAMES)])
    monkeypatch.setattr(instruction_texts, "MAX_DISTINCT_TEXTS", NUM_FRAMES - 1)
    refused(config, "more than 77 different texts", instruction_key="instruction")
    monkeypatch.setattr(instruction_texts, "MAX_DISTINCT_TEXTS", NUM_FRAMES)
    run(changed(config, instruction_key="instruction"))


def test_a_cache_of_another_dataset_is_refused(config, tmp_path):
    other = make_dataset(tmp_path / "other", seed=1)
    add_column(other, "instruction", ["push"] * NUM_FRAMES)
    settings = {"instruction_key": "instruction", "dataset_root": other}
    refused(config, "frame 0 has another observation.state .*precompute_world_tokens", **settings)
    shorter = make_dataset(tmp_path / "shorter", num_episodes=2)
    settings["dataset_root"] = shorter
    refused(config, "has 25 frames, the cache 78", **settings)


def test_a_cache_that_world_tokens_did_not_begin_is_refused(config):
    refused(config, "no cache at .*precompute_world_tokens", MissingFileError, dataset_name="a/b")
    cache = Cache(config.cache_dir, NAME)
    replace_arrays(cache, {}, {"dataset": None})
    refused(config, "does not say .*run .*precompute_world_tokens", MissingFileError)


def test_a_full_disk_is_noticed_before_anything_is_written(config, monkeypatch):
    usage = shutil.disk_usage(config.cache_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InvalidInputError, match="instruction_embeddings need"):
        run(config)
    assert not list(config.cache_dir.glob("**/*instruction_embeddings*.npy*"))


def test_an_embedding_that_float16_cannot_hold_is_refused(config, monkeypatch):
    monkeypatch.setattr(
        TextEncoder, "encode", lambda self, texts, batch_size: np.full((3, 32), 1e5, np.float32)
    )
    with pytest.raises(InvalidInputError, match="overflows float16"):
        run(config)


def test_the_stage_is_the_one_that_the_cache_names(config):
    module = Path(precompute_instruction_embeddings.__file__).stem
    cache = Cache(config.cache_dir, NAME)
    with pytest.raises(MissingFileError, match=rf"python -m world_modality\.{module} "):
        cache.load(ARRAY)
