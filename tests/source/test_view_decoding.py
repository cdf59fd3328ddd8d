"""Several cameras of one dataset, decoded side by side."""

from collections import Counter

import numpy as np
import pytest

from tests.fixtures.lerobot import change_value, make_dataset
from world_modality.source.frame_decoding import frame_blocks, view_blocks
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.errors import InvalidInputError, MissingKeyError

TOP, SIDE, WRIST = "observation.images.top", "observation.images.side", "observation.images.wrist"
FILMED = "observation.images.filmed"
CAMERAS = (TOP, SIDE, WRIST, FILMED)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A recording of three cameras as images, two of them of one size, and one as video."""
    return make_dataset(
        tmp_path_factory.mktemp("views") / "tiny",
        num_episodes=3,
        cameras=CAMERAS,
        image_sizes={WRIST: (30, 56), FILMED: (64, 48)},
        video_cameras=(FILMED,),
    )


@pytest.fixture
def source(root):
    return open_dataset("local/tiny", dataset_root=root)


@pytest.mark.parametrize("cameras", [(TOP, WRIST), (FILMED, SIDE), (WRIST, FILMED, TOP), (SIDE,)])
def test_views_are_the_frames_of_each_camera(source, cameras):
    indices = np.array([0, 3, 4, 5, 11, 12, 13, 20, 38])
    blocks = list(view_blocks(source, cameras, indices, 4))
    assert [len(block) for block in blocks] == [len(cameras)] * 3
    for view, camera in enumerate(cameras):
        alone = np.concatenate(list(frame_blocks(source, camera, indices, 5)))
        np.testing.assert_array_equal(np.concatenate([block[view] for block in blocks]), alone)
    assert blocks[0][0].shape[1:] == tuple(source.features[cameras[0]]["shape"])


def test_rows_are_read_once_for_all_cameras(source, monkeypatch):
    read = Counter()
    original = LeRobotSource.batches

    def counted(self, path, keys, *arguments):
        read[tuple(keys)] += 1
        return original(self, path, keys, *arguments)

    monkeypatch.setattr(LeRobotSource, "batches", counted)
    assert sum(1 for _ in view_blocks(source, (SIDE, TOP), np.arange(39), 16)) == 3
    assert list(read) == [(SIDE, TOP, "index")]


def test_a_damaged_image_is_refused_with_its_camera(source, root, tmp_path):
    other = make_dataset(tmp_path / "other", num_episodes=2, cameras=(TOP, SIDE))
    change_value(other, SIDE, 7, lambda image: {**image, "bytes": b"no image"})
    damaged = open_dataset("local/tiny", dataset_root=other)
    with pytest.raises(InvalidInputError, match=f"frame 7 of camera {SIDE}"):
        list(view_blocks(damaged, (TOP, SIDE), np.arange(10), 4))
    list(view_blocks(damaged, (TOP,), np.arange(10), 4))


def test_cameras_are_those_named_each_once(source):
    assert source.cameras((WRIST, TOP)) == (WRIST, TOP)
    with pytest.raises(MissingKeyError, match=r"no camera 'observation.images.tip'.*there are"):
        source.cameras((TOP, "observation.images.tip"))
    with pytest.raises(InvalidInputError, match=rf"--image_key names {TOP} 2 times; name each"):
        source.cameras((TOP, WRIST, TOP))
    with pytest.raises(MissingKeyError, match=r"4 cameras .*; choose one with --image_key"):
        source.cameras(())


def test_a_dataset_is_described_with_all_cameras_that_are_read(source, root):
    one, two = source.describe([TOP]), source.describe([TOP, FILMED])
    assert one["image_key"] == two["image_key"] == TOP
    assert "image_keys" not in one
    assert two["image_keys"] == [TOP, FILMED]
    # Images lie in the data files, which every hash covers; a video counts where it is read.
    assert one["content_sha256"] == source.describe([TOP, WRIST])["content_sha256"]
    other_order = source.describe([FILMED, TOP])
    assert other_order["content_sha256"] == two["content_sha256"] != one["content_sha256"]
    assert other_order["image_key"] == FILMED
