"""Cells of a grid against averages of the models' maps by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.lerobot import frame_image
from world_modality.encode import network_encoder
from world_modality.encode.network_encoder import NetworkEncoder, averages_of_cells
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.encode.vision_encoders import VisionEncoderFlags
from world_modality.system.errors import InvalidInputError

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42}


def transformer(model_type):
    from transformers import CONFIG_MAPPING, AutoModel

    torch.manual_seed(0)
    wide = {"intermediate_size": 64} if model_type == "siglip_vision_model" else {}
    return AutoModel.from_config(CONFIG_MAPPING[model_type](**SIZES, **wide, patch_size=14))


def convolutions():
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    return ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]))


def encoder_of(model, pooling, **preprocessing):
    from transformers import BitImageProcessor

    crop = {"size": {"shortest_edge": 48}, "crop_size": {"height": 42, "width": 42}}
    return NetworkEncoder.of(
        model,
        BitImageProcessor(**{**crop, **preprocessing}),
        VisionEncoderFlags(embedding_pooling=pooling),
        CPU,
        kind="transformers",
        name="tiny",
        revision=None,
        options={},
    )


def cells_by_hand(feature_map, grid_size):
    """Repeat each place of a map [B, h, w, D] until whole ones fill every cell."""
    batch, height, width, dim = feature_map.shape
    fine = feature_map.repeat(grid_size, axis=1).repeat(grid_size, axis=2)
    blocks = fine.reshape(batch, grid_size, height, grid_size, width, dim)
    return blocks.mean(axis=(2, 4)).reshape(batch, grid_size**2, dim)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return np.stack([frame_image(rng.random(2), i % 3, 60, 84) for i in range(5)])


def hidden_of(encoder, images):
    with torch.inference_mode():
        return encoder.model(pixel_values=encoder._preprocess(images)).last_hidden_state.numpy()


@pytest.mark.parametrize(
    ("model_type", "pooling", "num_prefix"),
    [
        ("dinov2", "cls", 1),
        ("dinov2", "mean", 1),
        ("dinov2_with_registers", "cls", 5),
        ("siglip_vision_model", "mean", 0),
    ],
)
@pytest.mark.parametrize("grid_size", [1, 2, 3])
def test_cells_are_averages_of_patch_tokens_alone(
    images, model_type, pooling, num_prefix, grid_size
):
    encoder = encoder_of(transformer(model_type), pooling)
    pooled, cells = encoder.encode_grid(images, grid_size)
    patches = hidden_of(encoder, images)[:, num_prefix:].reshape(5, 3, 3, 32)
    assert (cells.dtype, cells.shape) == (np.float32, (5, grid_size**2, 32))
    np.testing.assert_allclose(cells, cells_by_hand(patches, grid_size), atol=1e-5)
    np.testing.assert_array_equal(pooled, encoder.encode(images))


@pytest.mark.parametrize("model_type", ["dinov2", "siglip_vision_model"])
def test_a_processor_that_does_not_crop_leaves_a_map_that_is_not_square(images, model_type):
    """60 x 84 becomes 42 x 58, of which 3 x 4 patches are whole."""
    model = transformer(model_type)
    if model_type == "siglip_vision_model":
        forward = model.forward
        model.forward = lambda **inputs: forward(**inputs, interpolate_pos_encoding=True)
    encoder = encoder_of(model, "mean", size={"shortest_edge": 42}, do_center_crop=False)
    _, cells = encoder.encode_grid(images, 2)
    patches = hidden_of(encoder, images)[:, -12:].reshape(5, 3, 4, 32)
    np.testing.assert_allclose(cells, cells_by_hand(patches, 2), atol=1e-5)
    with pytest.raises(InvalidInputError, match="the map of tiny has 3x4 places"):
        encoder.encode_grid(images, 4)


@pytest.mark.parametrize("grid_size", [1, 3])
def test_a_convolutional_network_has_its_output_for_a_map(images, grid_size):
    settings = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
    encoder = encoder_of(convolutions(), "mean", **settings)
    pooled, cells = encoder.encode_grid(images, grid_size)
    feature_map = hidden_of(encoder, images).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(cells, cells_by_hand(feature_map, grid_size), atol=1e-5)
    np.testing.assert_array_equal(pooled, encoder.encode(images))
    np.testing.assert_allclose(pooled, feature_map.mean(axis=(1, 2)), atol=1e-5)


def test_the_mean_of_the_cells_is_the_mean_of_the_map():
    feature_map = torch.randn(2, 7, 5, 3, generator=torch.Generator().manual_seed(0))
    for grid_size in range(1, 6):
        cells = averages_of_cells(feature_map, grid_size)
        torch.testing.assert_close(cells.mean(dim=1), feature_map.mean(dim=(1, 2)))


def test_cells_come_row_by_row():
    feature_map = torch.zeros(1, 4, 4, 1)
    feature_map[0, 0, 3] = 4  # above, on the right
    assert averages_of_cells(feature_map, 2).flatten().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("grid_size", [-1, 0, 4])
def test_a_grid_that_the_map_cannot_fill_is_refused(images, grid_size):
    encoder = encoder_of(transformer("dinov2"), "cls")
    with pytest.raises(
        InvalidInputError, match=rf"--embedding_grid {grid_size} must lie between 1 and 3: .* 3x3"
    ):
        encoder.encode_grid(images, grid_size)


def test_an_encoder_without_a_map_refuses_a_grid(images):
    flags = VisionEncoderFlags(pixel_pca_size=8, pixel_pca_components=3)
    encoder = PixelPCA.fit(flags, [images], len(images))
    message = "--embedding_grid 2: pixel-pca has no map .* the largest grid is 1"
    with pytest.raises(InvalidInputError, match=message):
        encoder.encode_grid(images, 2)
    with pytest.raises(InvalidInputError, match=message):
        next(encoder.grid_blocks(iter([images]), 5, 2))


def test_a_class_token_that_is_not_there_is_refused_with_a_grid_too(images):
    encoder = encoder_of(transformer("siglip_vision_model"), "cls")
    with pytest.raises(InvalidInputError, match="--embedding_pooling cls does not fit tiny"):
        encoder.encode_grid(images, 2)


@pytest.fixture(params=["cpu", "elsewhere"])
def encoder(request, monkeypatch):
    """An encoder on the CPU with two threads, and one whose blocks go ahead of one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    encoder = encoder_of(transformer("dinov2"), "cls")
    if request.param == "cpu":
        yield encoder
    else:
        embedded = NetworkEncoder._embedded
        monkeypatch.setattr(
            NetworkEncoder, "_embedded", lambda _, *arguments: embedded(encoder, *arguments)
        )
        monkeypatch.setattr(network_encoder, "_Arriving", Arrived)
        yield dataclasses.replace(encoder, device=torch.device("meta"))
    torch.set_num_threads(before)


class Arrived:
    def __init__(self, embeddings):
        self.embeddings = embeddings

    def array(self):
        return self.embeddings.numpy()


def test_blocks_of_cells_are_those_of_one_block_after_another(encoder):
    images = np.random.default_rng(0).integers(0, 256, (38, 48, 48, 3), dtype=np.uint8)
    blocks = [images[i : i + 8] for i in range(0, 38, 8)]
    found = list(encoder.grid_blocks(iter(blocks), 8, 2))
    assert [len(pooled) for pooled, _ in found] == [8, 8, 8, 8, 6]
    for block, (pooled, cells) in zip(blocks, found, strict=True):
        expected_pooled, expected_cells = encoder.encode_grid(block, 2)
        np.testing.assert_array_equal(pooled, expected_pooled)
        np.testing.assert_array_equal(cells, expected_cells)
