"""The stage that embeds instructions: its sources of texts, its command lines, reuse, refusals."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.cache import replace_arrays
from tests.fixtures.instruction import (
    NAME,
    NUM_FRAMES,
    OTHER_TEXTS,
    add_column,
    build_home,
    columns_of,
    copy_cache,
    copy_dataset,
    jsonl,
    written,
)
from tests.fixtures.lerobot import TASKS, change_rows, make_dataset
from tests.fixtures.servers import https_server
from world_modality import precompute_instruction_embeddings
from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.encode.text_encoder import TextEncoder, load_text_encoder
from world_modality.precompute import instruction_texts
from world_modality.precompute_instruction_embeddings import main, run
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


def array_bytes(config):
    return Cache(config.cache_dir, NAME).array_path(ARRAY).read_bytes()


def other_texts(dataset):
    return [OTHER_TEXTS[task] for task in columns_of(dataset)[1].tolist()]


def refused(config, message, error=InvalidInputError, **changes):
    with pytest.raises(error, match=message):
        run(replace(config, **changes))
    assert not list(config.cache_dir.glob("**/*instruction_embeddings*"))


def check_rows(config, texts_of_frames):
    """Each row has to be the embedding of that frame's own text, one frame after another."""
    cache = Cache(config.cache_dir, NAME)
    record, device = cache.manifest["text"], torch.device("cpu")
    encoder = load_text_encoder(record, device, model_name=config.text_model_name)
    stored = cache.load(ARRAY)
    assert stored.shape == (len(texts_of_frames), 32)
    assert stored.dtype == np.float16
    expected = np.concatenate([encoder.encode([text]) for text in texts_of_frames])
    np.testing.assert_allclose(stored, expected, atol=2e-3)
    # The texts differ by far more than the tolerance.
    distinct = np.stack([encoder.encode([text])[0] for text in set(texts_of_frames)])
    gaps = np.abs(distinct[:, None] - distinct[None]).max(axis=2) + np.eye(len(distinct))
    assert gaps.min() > 0.1


CASE_A = """python -m world_modality.precompute_instruction_embeddings \\
  --dataset_name <DATASET> \\
  --cache_dir cache \\
  --instruction_key instruction \\
  --episode_id_key episode_id \\
  --text_model_name distilbert-base-uncased \\
  --max_length 64"""
URL = "https://huggingface.co/datasets/HuggingFaceVLA/metaworld_mt50/raw/main/meta/tasks.jsonl"
CASE_B = f"""python -m world_modality.precompute_instruction_embeddings \\
  --dataset_name HuggingFaceVLA/metaworld_mt50 \\
  --cache_dir cache \\
  --episode_id_key episode_index \\
  --tasks_jsonl {URL} \\
  --task_index_key task_index \\
  --task_text_field task \\
  --text_model_name distilbert-base-uncased \\
  --max_length 64"""


def arguments(command, config=None, **found):
    """Return a documented command's words, with what is on this machine instead of the hub's."""
    if config is not None:
        found |= {"<DATASET>": NAME, "HuggingFaceVLA/metaworld_mt50 ": f"{NAME} "}
        found["--cache_dir cache"] = f"--cache_dir {config.cache_dir}"
    for documented, local in found.items():
        command = command.replace(documented, local)
    return shlex.split(command.replace("\\\n", " "))


def test_the_documented_command_for_a_string_column(config, dataset, monkeypatch, capsys):
    model = {"distilbert-base-uncased": config.text_model_name}
    monkeypatch.setattr(sys, "argv", arguments(CASE_A, config, **model)[2:])
    main()
    out = capsys.readouterr().out
    assert "3 distinct over 78 frames, from a column of the dataset" in out
    assert "L=32, pooling mean, max_length 64" in out
    assert "smallest" in out
    check_rows(config, other_texts(dataset))


def download_of(folder, hub):
    """Lay a model out as a download from the hub and return its revision."""
    revision = "0123456789" * 4
    repository = hub / "models--distilbert-base-uncased"
    shutil.copytree(folder, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    return revision


def test_the_documented_command_for_a_url(config, dataset, tmp_path):
    revision = download_of(config.text_model_name, tmp_path / "hub")
    with https_server(tmp_path, jsonl(OTHER_TEXTS).encode()) as (address, certificate):
        command = arguments(CASE_B, config, **{URL: f"{address}/tasks.jsonl?token=secret"})
        environment = {**os.environ, "SSL_CERT_FILE": str(certificate), "no_proxy": "localhost"}
        environment["HF_HUB_CACHE"] = str(tmp_path / "hub")
        done = subprocess.run(
            [sys.executable, *command[1:]], capture_output=True, text=True, env=environment
        )
    assert done.returncode == 0, done.stderr
    assert "3 of 3 texts are not those of the dataset's own task table" in done.stdout
    assert "secret" not in done.stdout
    check_rows(config, other_texts(dataset))
    text = Cache(config.cache_dir, NAME).manifest["text"]
    assert text["keys"]["tasks_jsonl"] == f"{address}/tasks.jsonl"
    assert (text["name"], text["kind"]) == ("distilbert-base-uncased", "hub")
    assert (text["revision"], text["pooling"]) == (revision, "mean")


@pytest.mark.parametrize("command", [CASE_A, CASE_B])
def test_the_documented_commands_name_what_has_to_be_run_first(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", arguments(command)[2:])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "world_modality.precompute_world_tokens" in capsys.readouterr().err


def test_without_a_source_the_task_table_serves_and_no_dataset_is_opened(config, dataset):
    texts = [TASKS[task] for task in columns_of(dataset)[1].tolist()]
    shutil.rmtree(dataset)
    result = run(config)
    check_rows(config, texts)
    assert result.cache.manifest["text"]["source"] == "task_table"


def test_no_image_is_decoded(config, dataset):
    junk = {"observation.image": {"bytes": b"no image", "path": "x"}}
    change_rows(dataset, lambda rows: [{**row, **junk} for row in rows])
    run(replace(config, instruction_key="instruction"))
    check_rows(config, other_texts(dataset))


def test_the_manifest_says_what_the_embeddings_are_made_of(config, tmp_path):
    before = Cache(config.cache_dir, NAME)
    plain = before.fingerprint()
    texts = {**OTHER_TEXTS, 2: OTHER_TEXTS[0], 9: "never used"}
    cache = run(replace(config, tasks_jsonl=written(tmp_path, texts), max_length=5)).cache
    text = cache.manifest["text"]
    assert text["texts"] == {"0": "shove the cube", "1": "raise the cube", "2": "shove the cube"}
    assert (text["num_distinct"], text["num_truncated"], text["max_length"]) == (2, 0, 5)
    assert text["keys"] == {
        "episode_id_key": "episode_index",
        "task_index_key": "task_index",
        "task_text_field": "task",
        "tasks_jsonl": "tasks.jsonl",
    }
    assert text["cosines"]["smallest"] == text["cosines"]["largest"]
    assert len(text["weights_sha256"]) == len(text["texts_sha256"]) == 64
    saved = cache.folder / "train_precompute_instruction_embeddings_config.json"
    assert json.loads(saved.read_text("utf-8"))["max_length"] == 5
    # A policy without language does not mind; one with language depends on every word.
    reread = Cache(config.cache_dir, NAME)
    assert reread.fingerprint() == plain
    spoken = reread.fingerprint(with_language=True)
    run(config)
    assert Cache(config.cache_dir, NAME).fingerprint(with_language=True) != spoken


def test_each_text_is_encoded_once_and_a_second_run_encodes_none(config, monkeypatch):
    encoded = []
    encode = TextEncoder.encode

    def counted(self, texts, batch_size=64):
        encoded.extend(texts)
        return encode(self, texts, batch_size)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    assert not run(config).reused
    assert sorted(encoded) == sorted(TASKS)
    before = array_bytes(config)
    assert run(config).reused
    assert len(encoded) == 3
    assert not run(replace(config, max_length=4)).reused
    assert array_bytes(config) != before
    assert not run(config).reused
    assert array_bytes(config) == before


def test_the_same_texts_at_other_frames_are_embedded_again(config, dataset):
    texts = ["push"] * 40 + ["lift"] * (NUM_FRAMES - 40)
    for text_of_frame_30 in ("push", "lift"):
        texts[30] = text_of_frame_30
        add_column(dataset, "instruction", texts)
        assert not run(replace(config, instruction_key="instruction")).reused
        check_rows(config, texts)


def test_a_damaged_array_is_written_again(config, capsys):
    run(config)
    before = array_bytes(config)
    path = Cache(config.cache_dir, NAME).array_path(ARRAY)
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert not run(config).reused
    assert array_bytes(config) == before
    assert "written again" in capsys.readouterr().out


def test_interrupted_it_goes_on_and_blocks_do_not_show(config, monkeypatch):
    texts = replace(config, instruction_key="instruction")
    run(texts)
    before = array_bytes(config)
    run(config)  # something else in between
    assert array_bytes(config) != before
    monkeypatch.setattr(instruction_texts, "BLOCK_ROWS", 7)
    write, starts = CacheWriter.write, []

    def fails(self, start, blocks):
        starts.append(start)
        if len(starts) == 4:
            raise KeyboardInterrupt
        write(self, start, blocks)

    monkeypatch.setattr(CacheWriter, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        run(texts)
    run(texts)
    assert starts[3:5] == [21, 21]
    assert array_bytes(config) == before
    folder = Cache(config.cache_dir, NAME).folder
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob("*progress*"))


# 63, the last frame of episode 4, is the first of a block of 7.
@pytest.mark.parametrize("block_rows", [7, 16_384])
def test_the_text_may_change_within_an_episode(config, dataset, monkeypatch, capsys, block_rows):
    monkeypatch.setattr(instruction_texts, "BLOCK_ROWS", block_rows)
    episodes, _ = columns_of(dataset)
    texts = [OTHER_TEXTS[e % 2] for e in episodes.tolist()]
    first = int(np.flatnonzero(episodes == 1)[0])
    texts[first + 4] = TASKS[2]
    last = int(np.flatnonzero(episodes == 4)[-1])
    texts[last] = TASKS[2]
    add_column(dataset, "instruction", texts)
    run(replace(config, instruction_key="instruction"))
    check_rows(config, texts)
    assert "several texts     in 2 episodes" in capsys.readouterr().out


def test_tasks_can_be_numbered_by_another_column(config, dataset, tmp_path):
    texts = {5 + index: text for index, text in OTHER_TEXTS.items()}
    run(replace(config, tasks_jsonl=written(tmp_path, texts), task_index_key="skill"))
    check_rows(config, other_texts(dataset))


def test_texts_that_are_cut_or_alike_are_reported(config, tmp_path, capsys):
    long = "push the block to the left and then far to the right of the table"
    longs = [long, long + " now", "lift"]
    alike = [f"push the block number {i} to the left and far to the right" for i in range(3)]
    for texts, max_length, *told in (
        (longs, 64, "truncated         0 texts"),
        (longs, 8, "truncated         2 texts", "1 texts have the same embedding as another"),
        (["push"] * 3, 64, "every frame has the same text, 'push'"),
        (alike, 64, "can hardly tell the tasks apart"),
    ):
        path = written(tmp_path, dict(enumerate(texts)))
        run(replace(config, tasks_jsonl=path, max_length=max_length))
        out = capsys.readouterr().out
        assert all(words in out for words in told)


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
    run(replace(config, episode_id_key="episode_id"))


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
    run(replace(config, instruction_key="instruction"))


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
