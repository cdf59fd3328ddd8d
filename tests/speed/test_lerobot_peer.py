"""The benchmark compares like with like: LeRobot's DataLoader gives the windows that we gather."""

import dataclasses

import pytest
import torch

from benchmarks.speed.harness.drawn import draw_cache
from benchmarks.speed.harness.lerobot_peer import LeRobotBatches, record, require_same_windows
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import FrameTensors

SHAPE = WindowShape(context_frames=3, chunk_size=5, future_offset=2, future_stride=3)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    pytest.importorskip("lerobot")
    folder = tmp_path_factory.mktemp("drawn")
    cache = draw_cache(folder, num_frames=200, embedding_dim=4)
    record(cache, folder / "dataset", image_size=0)
    tensors = FrameTensors.from_cache(cache, torch.device("cpu"))
    return tensors, LeRobotBatches(folder / "dataset", SHAPE, batch_size=10)


def test_lerobots_windows_equal_ours_past_the_ends_of_episodes_too(drawn):
    tensors, batches = drawn
    require_same_windows(tensors, batches, SHAPE)
    with pytest.raises(AssertionError, match="future_tokens of LeRobot's batch differs"):
        require_same_windows(tensors, batches, dataclasses.replace(SHAPE, future_stride=2))


def test_an_epoch_of_lerobots_batches_visits_each_frame_once(drawn):
    tensors, batches = drawn
    shuffled = batches.shuffled(num_workers=0)
    seen = torch.cat([next(shuffled).states[:, -1] for _ in range(20)])
    expected = tensors.states
    assert torch.equal(seen[seen[:, 0].argsort()], expected[expected[:, 0].argsort()])
