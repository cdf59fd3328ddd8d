"""A tiny dataset, and the command that turns it into a cache."""

import pytest

from tests.fixtures.lerobot import make_dataset
from world_modality.precompute_world_tokens import PrecomputeConfig


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset") / "tiny"
    return make_dataset(folder, num_episodes=9, num_frames=14, environment_state=True)


@pytest.fixture(scope="session")
def precompute_config(tiny_dataset):
    """Return the command with pixel-pca, or with these flags besides."""

    def build(cache_dir, **flags):
        given = {
            "dataset_name": "local/tiny",
            "dataset_root": tiny_dataset,
            "vision_model_name": "pixel-pca",
            "pixel_pca_size": 8,
            "pixel_pca_components": 6,
            "random_vit_size": "tiny",
            "random_vit_image_size": 28,
            "vq_num_tokens": 12,
            "batch_size": 16,
            "device": "cpu",
        }
        return PrecomputeConfig(cache_dir=cache_dir, **{**given, **flags})

    return build
