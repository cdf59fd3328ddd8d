import dataclasses
import os
import pickle

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import assert_same_content, save_sealed, tiny_train_config
from world_modality.cache.writer import update_manifest
from world_modality.policy.checkpoint import (
    RunPosition,
    checkpoint_arrays,
    load_checkpoint,
    newest_first,
    save_checkpoint,
)
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.tokens.token_streams import TokenStreams
from world_modality.training.single import run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return run(tiny_train_config(write_synthetic_cache(folder / "cache"), folder / "logs", "C"))


def test_round_trip(trained, tmp_path):
    stored = load_checkpoint(trained.checkpoint, CPU)
    stored = dataclasses.replace(stored, further_flags={"coc_loss_weight": 0.5})
    save_checkpoint(tmp_path / "copy.pt", stored)
    again = load_checkpoint(tmp_path / "copy.pt", CPU)
    assert stored.epoch == 2
    assert stored.train_config.window.future_stride == stored.policy_config.window.future_stride
    for field in dataclasses.fields(stored):
        assert_same_content(getattr(stored, field.name), getattr(again, field.name))


def test_it_counts_the_tokens_of_each_tasks_training_episodes(tmp_path):
    cache = write_synthetic_cache(tmp_path / "cache", SyntheticSpec(num_tasks=3, num_episodes=12))
    counts = checkpoint_arrays(cache)["train_token_counts"]
    episode, task, token = (
        cache.load(name) for name in ("episode_index", "task_index", "world_tokens")
    )
    expected = np.zeros((3, 8), np.int32)
    for frame in range(len(token)):
        if episode[frame] in cache.manifest["split"]["train"]:
            expected[task[frame], token[frame]] += 1
    assert counts.dtype == torch.int32
    np.testing.assert_array_equal(counts.numpy(), expected)
    assert 0 < counts.sum() < len(token)


def test_of_several_slots_it_counts_the_tokens_of_each(tmp_path):
    spec = SyntheticSpec(num_tasks=3, num_episodes=12)
    cache = write_synthetic_cache(tmp_path / "cache", spec)
    one = cache.load("world_tokens")
    tokens = np.stack([one, one[::-1], 7 - one], axis=1)
    codebook = {**cache.manifest["codebook"], "num_slots": 3}
    replace_arrays(cache, {"world_tokens": tokens}, {"codebook": codebook})
    counts = checkpoint_arrays(cache)["train_token_counts"]
    assert counts.shape == (3, 3, 8)
    episode, task = cache.load("episode_index"), cache.load("task_index")
    expected = np.zeros((3, 3, 8), np.int32)
    for frame in np.flatnonzero(np.isin(episode, cache.manifest["split"]["train"])):
        for slot in range(3):
            expected[task[frame], slot, tokens[frame, slot]] += 1
    np.testing.assert_array_equal(counts.numpy(), expected)


def test_rows_of_the_token_counts_follow_the_manifests_tasks(tmp_path):
    cache = write_synthetic_cache(tmp_path / "cache")
    before = checkpoint_arrays(cache)["train_token_counts"]
    tasks = cache.manifest["dataset"]["tasks"]
    turned = {**cache.manifest["dataset"], "tasks": dict(reversed(tasks.items()))}
    update_manifest(cache, {"dataset": turned}, {})
    after = checkpoint_arrays(cache)["train_token_counts"]
    assert torch.equal(after, before.flip(0))
    assert not torch.equal(after, before)


def test_an_arm_that_reads_tokens_keeps_whole_training_episodes(trained):
    stored = load_checkpoint(trained.checkpoint, CPU)
    kept = {name for name in stored.cache_arrays if name.startswith("train_stream")}
    assert len(kept) == (3 if stored.policy_config.reads_world else 0)


def test_the_episodes_that_are_kept_are_training_episodes_of_their_task(tmp_path):
    cache = write_synthetic_cache(tmp_path / "cache", SyntheticSpec(num_tasks=3, num_episodes=12))
    arrays = {n: a.numpy() for n, a in checkpoint_arrays(cache, with_streams=True).items()}
    streams = TokenStreams.from_arrays(arrays, 8)
    assert streams is not None
    episode, task, token = (
        cache.load(name) for name in ("episode_index", "task_index", "world_tokens")
    )
    for row in range(3):
        expected = [
            token[episode == one].tolist()
            for one in cache.manifest["split"]["train"]
            if task[episode == one][0] == row
        ]
        assert [one.tolist() for one in streams.of_task(row)] == expected


def test_a_checkpoint_that_lacks_a_part_says_which(trained, tmp_path):
    content = torch.load(trained.checkpoint, weights_only=True)
    del content["cache_fingerprint"]
    save_sealed(content, tmp_path / "model_C_epoch0.pt")
    with pytest.raises(InvalidInputError, match=r"model_C_epoch0\.pt lacks cache_fingerprint"):
        load_checkpoint(tmp_path / "model_C_epoch0.pt", CPU)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    save_sealed({"format": Hostile()}, tmp_path / "model_C_epoch0.pt")
    with pytest.raises(InvalidInputError, match="not a checkpoint of tensors and plain values"):
        load_checkpoint(tmp_path / "model_C_epoch0.pt", CPU)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InvalidInputError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "plain.pt", CPU)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_checkpoint_is_refused(trained, tmp_path, share):
    content = trained.checkpoint.read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidInputError, match=r"cut\.pt is damaged"):
        load_checkpoint(tmp_path / "cut.pt", CPU)


def test_another_programs_checkpoint_is_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InvalidInputError, match="does not end with its SHA-256"):
        load_checkpoint(tmp_path / "other.pt", CPU)
    save_sealed({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InvalidInputError, match="has format None, expected"):
        load_checkpoint(tmp_path / "other.pt", CPU)


def test_each_flipped_bit_of_a_checkpoint_is_noticed(trained, tmp_path):
    whole = trained.checkpoint.read_bytes()
    rng = np.random.default_rng(0)
    tail = np.arange(len(whole) - 120, len(whole))  # the archive's end, and the digest itself
    for position in [0, *rng.integers(0, len(whole), 100), *tail]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(0, 8)
        (tmp_path / "flipped.pt").write_bytes(damaged)
        with pytest.raises(InvalidInputError, match=r"flipped\.pt is damaged"):
            load_checkpoint(tmp_path / "flipped.pt", CPU)


def test_a_missing_checkpoint_lists_its_neighbours(trained):
    with pytest.raises(MissingFileError, match=r"model_C_epoch0\.pt, model_C_epoch1\.pt"):
        load_checkpoint(trained.checkpoint.with_name("model_C_epoch9.pt"), CPU)


def test_the_newest_checkpoint_is_the_one_that_has_come_farthest(tmp_path):
    assert newest_first(tmp_path, "C") == []
    positions = [(10, 0), (11, 5), (11, 40), (11, 0), (9, 100)]
    names = [RunPosition(*position).file_name("C") for position in positions]
    assert names[:2] == ["model_C_epoch9.pt", "model_C_epoch11_step5.pt"]
    others = ["model_C_epoch11.pt.partial", "model_C_no_world_input_epoch12.pt", "model_C_epoch.pt"]
    for name in names + others:
        (tmp_path / name).touch()
    found = [path.name for path in newest_first(tmp_path, "C")]
    assert found == [RunPosition(*position).file_name("C") for position in sorted(positions)[::-1]]
