"""The benchmark compares like with like: LeRobot's DataLoader gives the windows that we gather."""

import dataclasses

import pytest
import torch

from benchmarks.speed.harness.lerobot_loading import (
    DrawnFrames,
    LeRobotBatches,
    require_same_windows,
)
from world_modality.cache.frame_shapes import WindowShape

SHAPE = WindowShape(context_frames=3, chunk_size=5, future_offset=2, future_stride=3)
DRAWN = DrawnFrames(num_frames=100, embedding_dim=4, num_world_tokens=16)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    pytest.importorskip("lerobot")
    root = tmp_path_factory.mktemp("recorded") / "dataset"
    DRAWN.record(root, image_size=0)
    return LeRobotBatches(root, SHAPE, batch_size=10)


def test_lerobots_windows_equal_ours_past_the_ends_of_episodes_too(recorded):
    tensors = DRAWN.tensors(torch.device("cpu"))
    require_same_windows(tensors, recorded, SHAPE)
    with pytest.raises(AssertionError, match="future_tokens of LeRobot's batch differs"):
        require_same_windows(tensors, recorded, dataclasses.replace(SHAPE, future_stride=2))


def test_an_epoch_of_lerobots_batches_visits_each_frame_once(recorded):
    batches = recorded.shuffled(num_workers=0)
    seen = torch.cat([next(batches).states[:, -1] for _ in range(10)])
    expected = DRAWN.tensors(torch.device("cpu")).states
    assert torch.equal(seen[seen[:, 0].argsort()], expected[expected[:, 0].argsort()])
