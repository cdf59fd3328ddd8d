"""Embeddings on the disk give the same batches, statistics, losses and weights as on the device."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import (
    assert_same_weights,
    tiny_policy_config,
    tiny_train_config,
    weights,
)
from world_modality.cache import mapped_rows
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import NUM_AHEAD, FrameTensors, ReadAhead, mean_and_std
from world_modality.cache.mapped_rows import MappedRows
from world_modality.policy.network import WorldPolicy
from world_modality.policy.predictions import predict
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run

CPU = torch.device("cpu")
SHAPE = WindowShape(context_frames=3, chunk_size=4, future_offset=2, future_stride=3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    spec = SyntheticSpec(num_episodes=12, instruction_dim=5)
    return write_synthetic_cache(tmp_path_factory.mktemp("cache"), spec)


@pytest.fixture
def both(cache):
    return [
        FrameTensors.from_cache(cache, CPU, with_language=True, place=place)
        for place in ("device", "disk")
    ]


def assert_same_batch(first, second):
    assert first.tensors().keys() == second.tensors().keys()
    for name, value in first.tensors().items():
        assert torch.equal(value, getattr(second, name)), name


@pytest.mark.parametrize("in_background", [False, True])
def test_batches_are_the_same(both, in_background):
    device, disk = both
    assert isinstance(disk.embeddings, MappedRows)
    assert isinstance(disk.instructions, MappedRows)
    batches = torch.randperm(device.episodes.num_frames).split(16)
    for frames in disk.ahead(batches, SHAPE) if in_background else batches:
        assert_same_batch(device.gather(frames, SHAPE), disk.gather(frames, SHAPE))


def test_rows_are_read_in_the_background_some_batches_ahead(both, monkeypatch):
    disk = both[1]
    readers = []
    original = MappedRows.__getitem__

    def noted(self, index):
        readers.append(threading.current_thread().name)
        return original(self, index)

    monkeypatch.setattr(MappedRows, "__getitem__", noted)
    batches = torch.arange(160).split(16)
    turns = disk.ahead(batches, SHAPE)
    disk.gather(next(turns), SHAPE)
    turns.close()
    assert len(readers) == 2 * (1 + NUM_AHEAD)  # embeddings and instructions
    assert all(name.startswith("read-ahead") for name in readers)


def test_what_was_read_ahead_and_never_used_is_forgotten():
    reads = ReadAhead[int]()
    batches = torch.arange(40).split(4)
    assert [
        reads.take(frames) for frames in reads.over(batches, lambda frames: int(frames[0]))
    ] == [int(frames[0]) for frames in batches]
    turns = reads.over(batches, len)
    next(turns)
    turns.close()
    assert all(reads.take(frames) is None for frames in batches)


def test_a_read_that_fails_fails_in_the_step_that_wanted_it():
    def fail(frames):
        raise OSError("the disk is gone")

    reads = ReadAhead[int]()
    turns = reads.over(torch.arange(8).split(4), fail)
    with pytest.raises(OSError, match="the disk is gone"):
        reads.take(next(turns))


def test_statistics_are_the_same(both):
    frames = np.arange(3, both[0].episodes.num_frames, 2)
    for name in ("embeddings", "instructions"):
        on_device, on_disk = (mean_and_std(getattr(tensors, name), frames) for tensors in both)
        assert all(map(torch.equal, on_device, on_disk))


def test_predictions_are_the_same(both):
    torch.manual_seed(0)
    policy = WorldPolicy(tiny_policy_config("C", instruction_dim=5))
    frames = np.arange(0, both[0].episodes.num_frames, 3)
    on_device, on_disk = (predict(policy, tensors, frames) for tensors in both)
    for name, value in vars(on_device).items():
        np.testing.assert_array_equal(value, getattr(on_disk, name))


@pytest.mark.parametrize("control", ["none", "placebo", "shuffled"])
def test_a_training_ends_bit_identical(cache, tmp_path, control):
    ends = {}
    for place in ("device", "disk"):
        config = tiny_train_config(
            cache,
            tmp_path / place,
            "B" if control == "placebo" else "C",
            token_control=control,
            use_language=True,
            dropout=0.1,
            embeddings_on=place,
        )
        result = run(config)
        ends[place] = (weights(result.checkpoint), result.metrics)
    assert_same_weights(ends["device"][0], ends["disk"][0])
    assert ends["device"][1] == ends["disk"][1]


def test_a_run_can_go_on_with_its_embeddings_elsewhere(cache, tmp_path):
    whole = run(tiny_train_config(cache, tmp_path / "whole", "C"))
    half = tiny_train_config(cache, tmp_path / "moved", "C", save_every_steps=3)
    run(half)
    newest = tmp_path / "moved" / "model_C_epoch1.pt"
    newest.unlink()
    moved = run(dataclasses.replace(half, embeddings_on="disk", resume=True))
    assert_same_weights(weights(whole.checkpoint), weights(moved.checkpoint))


@pytest.mark.parametrize(("free", "is_mapped"), [(10**9, False), (1000, True), (None, False)])
def test_what_fits_half_of_the_free_memory_goes_to_the_device(
    cache, monkeypatch, capsys, free, is_mapped
):
    monkeypatch.setattr(mapped_rows, "free_bytes", lambda device: free)
    tensors = FrameTensors.from_cache(cache, CPU)
    assert tensors.mapped == is_mapped
    assert ("embeddings stay on the disk" in capsys.readouterr().out) == is_mapped


def test_a_cache_that_is_written_again_does_not_change_the_batches(tmp_path):
    cache = write_synthetic_cache(tmp_path)
    tensors = FrameTensors.from_cache(cache, CPU, place="disk")
    before = tensors.gather(torch.arange(5), SHAPE).embeddings
    replace_arrays(cache, {"embeddings": np.array(cache.load("embeddings")) + np.float16(1)})
    assert torch.equal(tensors.gather(torch.arange(5), SHAPE).embeddings, before)


def test_values_that_are_not_finite_are_refused_from_the_disk_too(tmp_path):
    cache = write_synthetic_cache(tmp_path)
    embeddings = np.array(cache.load("embeddings"))
    embeddings[17, 1] = np.nan
    replace_arrays(cache, {"embeddings": embeddings})
    with pytest.raises(InvalidInputError, match=r"embeddings holds NaN .* at frame 17"):
        FrameTensors.from_cache(cache, CPU, place="disk")
