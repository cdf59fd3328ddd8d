"""Recorded calls on a GPU: the same numbers as kernel by kernel, in training and in embedding."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.policy import assert_same_content, tiny_train_config
from world_modality.encode.vision_encoders import VisionEncoderFlags, build_encoder
from world_modality.policy.checkpoint import load_checkpoint, newest_first
from world_modality.policy.config import flags_of, from_flags
from world_modality.system import recorded_calls
from world_modality.system.recorded_calls import NUM_DIRECT, RecordedCalls
from world_modality.train import SeedsConfig
from world_modality.train import run as train_side_by_side
from world_modality.training.single import run as train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
GPU = torch.device("cuda")
CPU = torch.device("cpu")


def gpu_config(cache, log_dir, model_type="C", **changes):
    knobs = {"device": "cuda", "dropout": 0.1, "precision": "auto", "cuda_graph": True}
    return tiny_train_config(cache, log_dir, model_type, **(knobs | changes))


def content(result):
    checkpoint = load_checkpoint(result.checkpoint, CPU)
    return {"model": checkpoint.model, "state": checkpoint.training_state}


@pytest.fixture
def num_recordings(monkeypatch):
    """Count the recordings that are made."""
    made = []
    record = RecordedCalls._record

    def counted(self, inputs):
        made.append(inputs)
        return record(self, inputs)

    monkeypatch.setattr(recorded_calls.RecordedCalls, "_record", counted)
    return lambda: len(made)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("A", {"precision": "fp32"}),
        ("B", {"token_control": "placebo", "use_language": True}),
        ("C", {"world_input_dropout": 0.3, "world_input_layernorm": True}),
        ("C", {"token_control": "shuffled"}),
        ("C", {"observation_dropout": 0.4}),
        ("C", {"embeddings_on": "disk", "max_grad_norm": 0.05}),
        ("B", {"world_target": ("embedding", "embedding_change"), "labelled_fraction": 0.5}),
        ("C", {"world_target": ("embedding",), "token_control": "oracle"}),
        ("C", {"future_to_action": True, "embeddings_on": "disk"}),
    ],
)
def test_a_recorded_training_ends_as_one_kernel_by_kernel(
    cache, tmp_path, num_recordings, model_type, changes
):
    recorded = train(gpu_config(cache, tmp_path / "recorded", model_type, **changes))
    assert num_recordings() > 0
    before = num_recordings()
    direct = train(gpu_config(cache, tmp_path / "direct", model_type, cuda_graph=False, **changes))
    assert num_recordings() == before
    assert recorded.metrics == direct.metrics
    assert_same_content(content(recorded), content(direct))


def test_a_recorded_training_resumes_bit_identically(cache, tmp_path):
    whole = train(gpu_config(cache, tmp_path / "whole", num_epochs=3))
    config = gpu_config(cache, tmp_path / "killed", num_epochs=3, save_every_steps=3)
    train(config)
    paths = newest_first(config.log_dir, "C")
    for path in paths[: len(paths) // 2]:
        path.unlink()
    resumed = train(dataclasses.replace(config, resume=True))
    assert_same_content(content(resumed), content(whole))


def test_a_training_goes_on_on_the_other_device(cache, tmp_path):
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        knobs = {"precision": "fp32", "dropout": 0.0, "save_every_steps": 3}
        config = gpu_config(cache, tmp_path / first, device=first, **knobs)
        whole = train(config)
        newest_first(config.log_dir, "C")[0].unlink()
        moved = train(dataclasses.replace(config, device=second, resume=True))
        assert moved.metrics == pytest.approx(whole.metrics, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"cuda_graph": False}, {"embeddings_on": "disk"}])
def test_seeds_side_by_side_end_as_each_alone(cache, tmp_path, changes):
    flags = flags_of(gpu_config(cache, tmp_path / "together", **changes))
    config = from_flags(SeedsConfig, flags | {"seeds": (3, 1, 2)})
    for own, result in zip(config.runs(), train_side_by_side(config), strict=True):
        alone = train(dataclasses.replace(own, log_dir=tmp_path / f"alone_{own.seed}"))
        assert result.metrics == alone.metrics
        assert_same_content(content(result), content(alone))


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_recorded_embeddings_are_those_kernel_by_kernel(precision):
    request = VisionEncoderFlags(
        vision_model_name="random-vit",
        random_vit_size="tiny",
        random_vit_image_size=56,
        precision=precision,
    )
    encoder = build_encoder(request, GPU)
    rng = np.random.default_rng(0)
    blocks = [rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8) for _ in range(NUM_DIRECT + 4)]
    blocks.append(blocks[0][:3])
    found = list(encoder.encode_blocks(iter(blocks), 8))
    with_cells = list(encoder.grid_blocks(iter(blocks), 8, 3))
    assert len(encoder._recorded()._recordings) == len(encoder._recorded(3)._recordings) == 1
    for images, embeddings, (pooled, cells) in zip(blocks, found, with_cells, strict=True):
        inputs = {"images": torch.from_numpy(images).to(GPU)}
        np.testing.assert_array_equal(embeddings, encoder._embed(inputs).cpu().numpy())
        expected = encoder._embed(inputs, 3).cpu().numpy()
        np.testing.assert_array_equal(pooled, expected[:, 0])
        np.testing.assert_array_equal(cells, expected[:, 1:])


def doubled_and_waiting(inputs):
    assert torch.isfinite(inputs["x"]).all()  # asks the device, which a recording cannot
    return 2 * inputs["x"]


def test_what_waits_for_the_device_is_computed_directly_and_said(capsys):
    calls = RecordedCalls(doubled_and_waiting, GPU, "the function")
    for number in range(NUM_DIRECT + 3):
        x = torch.full((4,), float(number), device=GPU)
        torch.testing.assert_close(calls({"x": x}), 2 * x)
    assert capsys.readouterr().out.count("the function cannot be recorded as a CUDA graph") == 1
    # The device and its generator are as they were.
    drawing = RecordedCalls(lambda inputs: inputs["x"] + torch.rand_like(inputs["x"]), GPU)
    x = torch.zeros(4, device=GPU)
    torch.manual_seed(0)
    recorded = [drawing({"x": x}) for _ in range(NUM_DIRECT + 3)]
    torch.manual_seed(0)
    for drawn in recorded:
        torch.testing.assert_close(drawn, torch.rand_like(x), rtol=0, atol=0)


def test_what_waits_for_the_device_is_an_error_without_a_name():
    calls = RecordedCalls(doubled_and_waiting, GPU)
    x = torch.ones(4, device=GPU)
    for _ in range(NUM_DIRECT):
        calls({"x": x})
    with pytest.raises(RuntimeError):
        calls({"x": x})
