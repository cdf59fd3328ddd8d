import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.demos.dataset import (
    counted_image_statistics,
    image_feature,
    new_dataset,
    vector_feature,
)
from benchmarks.demos.episode import DemoEpisode

KEY = "observation.image"
FEATURES = {KEY: image_feature(8, 10, use_videos=False), "action": vector_feature(["x", "y"])}


@pytest.fixture
def episode():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3)).astype(np.uint8)
    return DemoEpisode("Push", {KEY: images, "action": np.zeros((5, 2), np.float32)}, {})


def written_images(root, episode):
    with new_dataset("local/x", root, 10, FEATURES, "none") as append:
        append(episode)
    (path,) = root.glob("data/*/*.parquet")
    return [image["bytes"] for image in pq.read_table(path)[KEY].to_pylist()]


def test_a_dataset_holds_the_very_files_that_were_staged(tmp_path, episode):
    episode.save(tmp_path / "episode.npz")
    staged = DemoEpisode.load(tmp_path / "episode.npz")
    written = written_images(tmp_path / "staged", staged)
    assert b"".join(written) == staged.columns[KEY].encoded.tobytes()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in written])
    np.testing.assert_array_equal(pixels, episode.columns[KEY])
    # Given as pixels, LeRobot encodes them itself, in another way.
    assert written_images(tmp_path / "pixels", episode) != written


def test_statistics_of_images_are_those_of_their_pixels_and_lerobots_own():
    from lerobot.datasets import compute_stats

    drawn = np.random.default_rng(1).normal(120, 50, (7, 3, 9, 11))
    images = drawn.clip(0, 255).astype(np.uint8)
    original = compute_stats.get_feature_stats
    with counted_image_statistics():
        counted = compute_stats.get_feature_stats(images, (0, 2, 3), keepdims=True)
    assert compute_stats.get_feature_stats is original
    own = original(images.astype(np.float64), (0, 2, 3), keepdims=True)
    assert counted.keys() == own.keys()
    for name, values in own.items():
        assert counted[name].shape == values.shape
        # Quantiles come from the middle of a histogram's bin there, a 5,000th of the range wide.
        np.testing.assert_allclose(counted[name], values, atol=255 / 5000, rtol=0)
    pixels = images.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(counted["std"].ravel(), pixels.std(axis=1))
    np.testing.assert_array_equal(
        counted["q50"].ravel(), np.quantile(pixels, 0.5, axis=1, method="inverted_cdf")
    )
