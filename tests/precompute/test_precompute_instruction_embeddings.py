"""The stage that embeds instructions: its sources of texts, its command lines, reuse."""

import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

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
    jsonl,
    written,
)
from tests.fixtures.lerobot import TASKS
from tests.fixtures.servers import https_server
from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.encode.text_encoder import TextEncoder, load_text_encoder
from world_modality.precompute import instruction_column, instruction_texts
from world_modality.precompute_instruction_embeddings import main, run

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
    cache = Cache(config.cache_dir, NAME)
    return cache.array_path(ARRAY).read_bytes()


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


def run_command(command, environment):
    """Run a command of the onboarding guide."""
    arguments = shlex.split(command.replace("\\\n", " "))
    assert arguments[:2] == ["python", "-m"]
    return subprocess.run(
        [sys.executable, *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


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


def local(command, config, model="distilbert-base-uncased"):
    """Put what is on this machine in the place of what is on the hub."""
    for documented, found in (
        ("<DATASET>", NAME),
        ("HuggingFaceVLA/metaworld_mt50 ", f"{NAME} "),
        ("--cache_dir cache", f"--cache_dir {config.cache_dir}"),
        ("distilbert-base-uncased", model),
    ):
        command = command.replace(documented, found)
    return command


def test_the_documented_command_for_a_string_column(config, dataset, monkeypatch, capsys):
    command = local(CASE_A, config, config.text_model_name).replace("\\\n", " ")
    monkeypatch.setattr(sys, "argv", shlex.split(command)[2:])
    main()
    out = capsys.readouterr().out
    assert "3 distinct over 78 frames, from a column of the dataset" in out
    assert "L=32, pooling mean, max_length 64" in out
    assert "smallest" in out
    check_rows(config, [OTHER_TEXTS[t] for t in columns_of(dataset)[1].tolist()])


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
        command = local(CASE_B, config).replace(URL, f"{address}/tasks.jsonl?token=secret")
        environment = {"SSL_CERT_FILE": str(certificate), "no_proxy": "localhost"}
        environment |= {"HF_HUB_CACHE": str(tmp_path / "hub")}
        done = run_command(command, environment)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 texts are not those of the dataset's own task table" in done.stdout
    assert "secret" not in done.stdout
    check_rows(config, [OTHER_TEXTS[t] for t in columns_of(dataset)[1].tolist()])
    text = Cache(config.cache_dir, NAME).manifest["text"]
    assert text["keys"]["tasks_jsonl"] == f"{address}/tasks.jsonl"
    assert (text["name"], text["kind"]) == ("distilbert-base-uncased", "hub")
    assert (text["revision"], text["pooling"]) == (revision, "mean")


@pytest.mark.parametrize("command", [CASE_A, CASE_B])
def test_the_documented_commands_name_what_has_to_be_run_first(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", shlex.split(command.replace("\\\n", " "))[2:])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "world_modality.precompute_world_tokens" in capsys.readouterr().err


def test_without_a_source_the_task_table_serves_and_no_dataset_is_opened(config, dataset):
    tasks = columns_of(dataset)[1].tolist()
    shutil.rmtree(dataset)
    result = run(config)
    check_rows(config, [TASKS[t] for t in tasks])
    assert result.cache.manifest["text"]["source"] == "task_table"


def test_no_image_is_decoded(config, dataset):
    (path,) = dataset.glob("data/*/*.parquet")
    table = pq.read_table(path)
    at = table.schema.get_field_index("observation.image")
    junk = [{"bytes": b"no image", "path": "x"}] * len(table)
    column = pa.array(junk, table.schema.field(at).type)
    pq.write_table(table.set_column(at, "observation.image", column), path)
    run(changed(config, instruction_key="instruction"))
    check_rows(config, [OTHER_TEXTS[t] for t in columns_of(dataset)[1].tolist()])


def test_the_manifest_says_what_the_embeddings_are_made_of(config, tmp_path):
    before = Cache(config.cache_dir, NAME)
    plain = before.fingerprint()
    texts = {**OTHER_TEXTS, 2: OTHER_TEXTS[0], 9: "never used"}
    cache = run(changed(config, tasks_jsonl=written(tmp_path, texts), max_length=5)).cache
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
    assert json.loads(saved.read_text())["max_length"] == 5
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
    assert not run(changed(config, max_length=4)).reused
    assert array_bytes(config) != before
    assert not run(config).reused
    assert array_bytes(config) == before


def test_the_same_texts_at_other_frames_are_embedded_again(config, dataset):
    texts = ["push"] * 40 + ["lift"] * (NUM_FRAMES - 40)
    for changed_frame in (None, 30):
        if changed_frame is not None:
            texts[changed_frame] = "lift"
        add_column(dataset, "instruction", texts)
        assert not run(changed(config, instruction_key="instruction")).reused
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
    texts = changed(config, instruction_key="instruction")
    run(texts)
    before = array_bytes(config)
    run(config)  # something else in between
    assert array_bytes(config) != before
    for module in (instruction_texts, instruction_column):
        monkeypatch.setattr(module, "BLOCK_ROWS", 7)
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
    for module in (instruction_texts, instruction_column):
        monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    episodes, _ = columns_of(dataset)
    texts = [OTHER_TEXTS[e % 2] for e in episodes.tolist()]
    first = int(np.flatnonzero(episodes == 1)[0])
    texts[first + 4] = TASKS[2]
    last = int(np.flatnonzero(episodes == 4)[-1])
    texts[last] = TASKS[2]
    add_column(dataset, "instruction", texts)
    run(changed(config, instruction_key="instruction"))
    check_rows(config, texts)
    assert "several texts     in 2 episodes" in capsys.readouterr().out


def test_tasks_can_be_numbered_by_another_column(config, dataset, tmp_path):
    texts = {5 + index: text for index, text in OTHER_TEXTS.items()}
    run(changed(config, tasks_jsonl=written(tmp_path, texts), task_index_key="skill"))
    check_rows(config, [OTHER_TEXTS[t] for t in columns_of(dataset)[1].tolist()])


def test_texts_that_are_cut_or_alike_are_reported(config, tmp_path, capsys):
    long = "push the block to the left and then far to the right of the table"
    run(changed(config, tasks_jsonl=written(tmp_path, {0: long, 1: long + " now", 2: "lift"})))
    assert "truncated         0 texts" in capsys.readouterr().out
    path = written(tmp_path, {0: long, 1: long + " now", 2: "lift"})
    run(changed(config, tasks_jsonl=path, max_length=8))
    out = capsys.readouterr().out
    assert "truncated         2 texts" in out
    assert "1 texts have the very embedding of another one" in out
    run(changed(config, tasks_jsonl=written(tmp_path, dict.fromkeys(range(3), "push"))))
    assert "every frame has the same text, 'push'" in capsys.readouterr().out
    alike = {i: f"push the block number {i} to the left and far to the right" for i in range(3)}
    run(changed(config, tasks_jsonl=written(tmp_path, alike)))
    assert "can hardly tell the tasks apart" in capsys.readouterr().out
