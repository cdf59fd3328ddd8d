"""Preprocessing on the encoder's device, against the transformers processor on the CPU."""

import numpy as np
import pytest
import torch

from tests.fixtures.lerobot import frame_image
from world_modality.encode.transformers_encoder import on_device_processor, preprocess_on_device
from world_modality.encode.vision_encoders import EncoderRequest, build_encoder

CPU = torch.device("cpu")


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


def test_an_encoder_off_the_cpu_preprocesses_there(images):
    """The meta device stands for a GPU: it has shapes, no numbers."""
    from dataclasses import replace

    encoder = build_encoder(
        EncoderRequest("random-vit", random_vit_size="tiny", random_vit_image_size=42), CPU
    )
    assert encoder._preprocess(images).device.type == "cpu"
    elsewhere = replace(encoder, device=torch.device("meta"))
    assert elsewhere._preprocess(images).device.type == "meta"
