"""Recorded datasets that the tests of the source share, and their frames as LeRobot reads them."""

import shutil

import numpy as np
import pytest

from tests.fixtures.lerobot import make_dataset
from world_modality.system.errors import InvalidInputError

CAMERA = "observation.image"


def refused(told, use, *arguments, error=InvalidInputError, **settings):
    with pytest.raises(error, match=told):
        use(*arguments, **settings)


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """Datasets of six episodes (12, 13, 14, 12, 13, 14 frames), and one with two cameras."""
    folder = tmp_path_factory.mktemp("datasets")
    return {
        "image": make_dataset(folder / "image"),
        "video": make_dataset(folder / "video", camera_dtype="video"),
        "two": make_dataset(folder / "two", cameras=(CAMERA, "observation.wrist"), num_episodes=2),
    }


@pytest.fixture
def copies(roots, tmp_path):
    """Datasets that a test may change."""
    return {kind: shutil.copytree(root, tmp_path / kind) for kind, root in roots.items()}


@pytest.fixture
def copy(copies):
    return copies["image"]


@pytest.fixture(scope="session")
def lerobots(roots):
    """Return each dataset as `LeRobotDataset` has it, and all of its frames."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    found = {}
    for kind in ("image", "video"):
        dataset = LeRobotDataset("local/tiny", root=roots[kind], video_backend="pyav")
        images = [dataset[i][CAMERA].permute(1, 2, 0).numpy() for i in range(len(dataset))]
        found[kind] = dataset, (np.stack(images) * 255).round().astype(np.uint8)
    return found
