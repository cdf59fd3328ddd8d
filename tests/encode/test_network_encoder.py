"""How a network encoder computes: preprocessing on its device, blocks side by side."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from tests.fixtures.lerobot import frame_image
from world_modality.encode.network_encoder import (
    encode_side_by_side,
    on_device_processor,
    preprocess_on_device,
)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    drawn = [frame_image(rng.random(2), i % 3, 96, 130) for i in range(3)]
    noise = rng.integers(0, 256, (3, 96, 130, 3), dtype=np.uint8)
    return np.concatenate([drawn, noise])


def processors():
    """The settings of facebook/dinov2-base, google/siglip-base-patch16-224, openai/clip-vit-*."""
    from transformers import BitImageProcessor, CLIPImageProcessor, SiglipImageProcessor

    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    crop = {"height": 224, "width": 224}
    return {
        "dinov2": BitImageProcessor(
            size={"shortest_edge": 256}, crop_size=crop, resample=3, **imagenet
        ),
        "siglip": SiglipImageProcessor(
            size=crop, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        "clip": CLIPImageProcessor(size={"shortest_edge": 224}, crop_size=crop, resample=3),
    }


@pytest.mark.parametrize("name", ["dinov2", "siglip", "clip"])
def test_pixels_are_within_two_levels_of_the_processors(images, name):
    processor = processors()[name]
    expected = processor(list(images), return_tensors="pt")["pixel_values"]
    found = preprocess_on_device(on_device_processor(processor), torch.from_numpy(images))
    assert found.shape == expected.shape == (len(images), 3, 224, 224)
    assert found.dtype == torch.float32
    std = torch.tensor(processor.image_std)[:, None, None]
    levels = (found - expected).abs() * std * 255
    assert levels.max() < 2.01
    assert levels.mean() < 0.1


def test_a_processor_without_such_a_form_is_left_alone():
    class Unknown:
        pass

    assert on_device_processor(Unknown()) is None


def test_an_encoder_off_the_cpu_preprocesses_there(images, random_vit):
    """The meta device stands for a GPU: it has shapes, no numbers."""
    encoder = random_vit()
    assert encoder._preprocess(images).device.type == "cpu"
    elsewhere = dataclasses.replace(encoder, device=torch.device("meta"))
    assert elsewhere._preprocess(images).device.type == "meta"


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_blocks_side_by_side_give_the_bits_of_one_after_another(two_threads, random_vit):
    encoder = random_vit()
    images = np.random.default_rng(0).integers(0, 256, (70, 48, 48, 3), dtype=np.uint8)
    blocks = [images[i : i + 16] for i in range(0, 70, 16)]
    expected = [encoder.encode(block) for block in blocks]
    found = list(encoder.encode_blocks(iter(blocks), 16))
    assert [len(block) for block in found] == [16, 16, 16, 16, 6]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_workers_share_the_threads_and_the_last_block_has_all(two_threads):
    meeting = threading.Barrier(2, timeout=10)
    seen = []

    def encode(block):
        seen.append((len(block), threading.get_ident(), torch.get_num_threads()))
        if len(block) == 3:
            meeting.wait()  # only two at a time get past
        return block

    blocks = [np.full(3, i) for i in range(4)] + [np.full(1, 4)]
    found = list(encode_side_by_side(encode, blocks, 3))
    assert [int(block[0]) for block in found] == [0, 1, 2, 3, 4]
    assert {threads for size, _, threads in seen if size == 3} == {1}
    assert (1, threading.get_ident(), 2) in seen
    assert torch.get_num_threads() == 2


def test_a_worker_runs_ahead_but_not_far_and_its_error_arrives(two_threads):
    pulled = []

    def blocks():
        for i in range(50):
            pulled.append(i)
            yield np.full(3, i)

    def encode(block):
        if block[0] == 4:
            raise ValueError("block 4")
        return block

    encoded = encode_side_by_side(encode, blocks(), 3)
    assert [int(next(encoded)[0]) for _ in range(4)] == [0, 1, 2, 3]
    assert len(pulled) <= 4 + 2
    with pytest.raises(ValueError, match="block 4"):
        next(encoded)
