import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, replace_arrays, write_synthetic_cache
from tests.fixtures.policy import synthetic_tensors
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import IGNORED_TOKEN, FrameTensors, mean_and_std
from world_modality.system.errors import InvalidInputError

SHAPES = [
    WindowShape(1, 1, 1, 1),
    WindowShape(3, 4, 2, 3),
    WindowShape(2, 20, 5, 4),
    WindowShape(3, 4, 2, 3, context_stride=4, world_history=2, world_history_stride=5),
]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
    return synthetic_tensors(tmp_path_factory.mktemp("cache"), SyntheticSpec(num_episodes=6))


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_equal_a_plain_loop_over_every_frame(tensors, shape):
    num_frames = tensors.episodes.num_frames
    batch = tensors.gather(torch.arange(num_frames), shape)
    episode_of = {
        t: (s, e)
        for s, e in zip(tensors.episodes.starts, tensors.episodes.ends, strict=True)
        for t in range(s, e)
    }
    for t in range(num_frames):
        start, end = episode_of[t]
        for i in range(shape.context_frames):
            source = max(t - (shape.context_frames - 1 - i) * shape.context_stride, start)
            assert torch.equal(batch.embeddings[t, i], tensors.embeddings[source])
            assert torch.equal(batch.states[t, i], tensors.states[source])
        for h in range(shape.chunk_size):
            assert bool(batch.action_is_pad[t, h]) == (t + h >= end)
            assert torch.equal(batch.actions[t, h], tensors.actions[min(t + h, end - 1)])
        for k in range(1, shape.future_offset + 1):
            ahead = t + k * shape.future_stride
            expected = int(tensors.world_tokens[ahead]) if ahead < end else IGNORED_TOKEN
            assert int(batch.future_tokens[t, k - 1]) == expected
        num_read = 1 + shape.world_history
        for i in range(num_read):
            source = max(t - (num_read - 1 - i) * shape.world_history_stride, start)
            read = batch.world_tokens[t, i] if num_read > 1 else batch.world_tokens[t]
            assert int(read) == int(tensors.world_tokens[source])


def test_a_window_does_not_change_when_other_episodes_or_later_frames_do(tmp_path):
    cache = write_synthetic_cache(tmp_path / "a", SyntheticSpec(num_episodes=4))
    before = FrameTensors.from_cache(cache, torch.device("cpu"))
    shape = WindowShape(context_frames=3, chunk_size=2, future_offset=1, future_stride=1)
    frame = int(before.episodes.starts[1]) + 4
    window = before.gather(torch.tensor([frame]), shape)
    after = FrameTensors.from_cache(cache, torch.device("cpu"))
    outside = np.ones(before.episodes.num_frames, dtype=bool)
    outside[frame - 2 : frame + 2] = False
    for name in ("embeddings", "states", "actions", "world_tokens"):
        getattr(after, name)[torch.from_numpy(outside)] = 1
    changed = after.gather(torch.tensor([frame]), shape)
    assert torch.equal(window.embeddings, changed.embeddings)
    assert torch.equal(window.states, changed.states)
    assert torch.equal(window.actions, changed.actions)
    assert torch.equal(window.future_tokens, changed.future_tokens)


@pytest.mark.parametrize("num_rows", [1, 2047, 2048, 5000])
def test_mean_and_std_equal_numpy_in_float64(num_rows):
    rng = np.random.default_rng(0)
    values = (1000 + rng.normal(size=(5000, 3)) * [1.0, 10.0, 0.0]).astype(np.float32)
    frames = np.sort(rng.choice(5000, num_rows, replace=False))
    mean, std = mean_and_std(torch.from_numpy(values), frames)
    chosen = values[frames].astype(np.float64)
    np.testing.assert_allclose(mean, chosen.mean(axis=0), rtol=1e-6)
    expected = np.where(chosen.std(axis=0) < 1e-3, 1.0, chosen.std(axis=0))
    np.testing.assert_allclose(std, expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["embeddings", "states", "actions"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_array_and_frame(tmp_path, name, value):
    cache = write_synthetic_cache(tmp_path)
    array = np.array(cache.load(name))
    array[17, 1] = value
    replace_arrays(cache, {name: array})
    with pytest.raises(
        InvalidInputError, match=rf"{name} holds NaN or infinity, first at frame 17"
    ):
        FrameTensors.from_cache(cache, torch.device("cpu"))
