"""The vision encoders that these tests build."""

import pytest
import torch

from world_modality.encode.vision_encoders import VisionEncoderFlags, build_encoder


@pytest.fixture(scope="session")
def built():
    def build(model_name, **flags):
        flags = VisionEncoderFlags(vision_model_name=str(model_name), **flags)
        return build_encoder(flags, torch.device("cpu"))

    return build


@pytest.fixture(scope="session")
def random_vit(built):
    def build(**flags):
        tiny = {"random_vit_size": "tiny", "random_vit_image_size": 42}
        return built("random-vit", **{**tiny, **flags})

    return build
