"""Encoders against the models applied by hand."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from tests.fixtures.lerobot import frame_image
from tests.fixtures.tiny_models import save_vision_model as save_model
from world_modality.encode.pixel_pca import PixelPCA, area_average
from world_modality.encode.vision_encoders import VisionEncoderFlags, load_encoder
from world_modality.system.errors import InvalidInputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return np.stack([frame_image(rng.random(2), i % 3, 60, 72) for i in range(9)])


def pixel_pca(images, num_components, size=8):
    flags = VisionEncoderFlags(pixel_pca_size=size, pixel_pca_components=num_components)
    return PixelPCA.fit(flags, [images[:5], images[5:]], len(images))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "dinov2": save_model(root / "dinov2", "dinov2", image_size=42, patch_size=14),
        "dinov2_with_registers": save_model(
            root / "registers", "dinov2_with_registers", image_size=42, patch_size=14
        ),
        "siglip_vision_model": save_model(
            root / "siglip",
            "siglip_vision_model",
            image_size=42,
            patch_size=14,
            intermediate_size=64,
        ),
    }


def by_hand(folder, images, pooling, num_prefix):
    """The transformers model on PIL images, one after another."""
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    rows = []
    for image in images:
        inputs = processor(images=Image.fromarray(image), return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        rows.append(hidden[0] if pooling == "cls" else hidden[num_prefix:].mean(dim=0))
    return torch.stack(rows).numpy()


def test_of_a_model_of_images_and_texts_the_image_tower_is_taken(images, tmp_path, built):
    from transformers import BitImageProcessor, CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 42, "patch_size": 14}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=sizes)).save_pretrained(tmp_path)
    processor = BitImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 42, "width": 42})
    processor.save_pretrained(tmp_path)
    found = built(tmp_path).encode(images[:2])
    tower = CLIPModel.from_pretrained(tmp_path).vision_model.eval()
    pixels = processor([Image.fromarray(image) for image in images[:2]], return_tensors="pt")
    with torch.no_grad():
        expected = tower(**pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_the_mean_over_a_convolutional_network_is_spatial(images, tmp_path, built):
    from transformers import BitImageProcessor, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    ).save_pretrained(tmp_path)
    BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(tmp_path)
    encoder = built(tmp_path, embedding_pooling="mean")
    assert encoder.encode(images).shape == (9, 16) == (9, encoder.embedding_dim)


@pytest.mark.parametrize(
    ("model", "pooling", "num_prefix"),
    [
        ("dinov2", "cls", 1),
        ("dinov2", "mean", 1),
        ("dinov2_with_registers", "mean", 5),
        ("siglip_vision_model", "mean", 0),
    ],
)
def test_embeddings_equal_the_model_applied_by_hand(
    folders, images, model, pooling, num_prefix, built
):
    encoder = built(folders[model], embedding_pooling=pooling)
    expected = by_hand(folders[model], images, pooling, num_prefix)
    found = encoder.encode(images)
    assert found.dtype == np.float32
    # The torchvision processor rounds resized pixels otherwise than PIL, by one level at most.
    np.testing.assert_allclose(found, expected, atol=0.03)
    spread = expected - expected.mean(axis=0)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.02 * np.sqrt(np.mean(spread**2))


def test_pixels_are_divided_by_255_once(folders, images, built):
    encoder = built(folders["dinov2"])
    white = encoder._preprocess(np.full((1, 50, 50, 3), 255, dtype=np.uint8))
    expected = (1 - np.array([0.48145466, 0.4578275, 0.40821073])) / [
        0.26862954,
        0.26130258,
        0.27577711,
    ]
    np.testing.assert_allclose(white[0, :, 5, 5], expected, atol=1e-4)


def test_weights_are_rounded_once_to_what_autocast_would_make_of_them(images, random_vit):
    exact, rounded = (random_vit(precision=precision) for precision in ("fp32", "bf16"))
    assert rounded.record() == exact.record(), "the weights are known by their full precision"
    dtypes = {name: p.dtype for name, p in rounded.model.named_parameters()}
    assert dtypes["embeddings.patch_embeddings.projection.weight"] == torch.bfloat16
    assert dtypes["layernorm.weight"] == torch.float32
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        hidden = exact.model(pixel_values=exact._preprocess(images)).last_hidden_state
    np.testing.assert_array_equal(rounded.encode(images), hidden[:, 0].float().numpy())


def test_a_model_saved_in_half_precision_stays_in_it(images, random_vit):
    encoder = random_vit()
    exact = encoder.encode(images)
    half = dataclasses.replace(encoder, model=encoder.model.bfloat16())
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    np.testing.assert_allclose(half.encode(images), exact, atol=0.1)


def test_the_class_token_of_a_model_without_one_is_refused(folders, images, built):
    encoder = built(folders["siglip_vision_model"])
    with pytest.raises(InvalidInputError, match="--embedding_pooling cls does not fit"):
        encoder.encode(images)


def test_the_record_rebuilds_the_encoder(folders, images, built):
    encoder = built(folders["dinov2"], embedding_pooling="mean")
    record = json.loads(json.dumps(encoder.record()))
    again = load_encoder(record, {}, CPU)
    np.testing.assert_array_equal(again.encode(images), encoder.encode(images))
    assert (record["image_size"], record["embedding_dim"]) == ([42, 42], 32)
    assert (record["is_stand_in"], record["note"]) == (False, None)


def test_the_record_names_the_hub_revision_that_was_loaded(folders, tmp_path):

    revision = "0123456789" * 4
    repository = tmp_path / "models--someone--tiny-dinov2"
    shutil.copytree(folders["dinov2"], repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    code = (
        "import torch\n"
        "from world_modality.encode.vision_encoders import VisionEncoderFlags, build_encoder\n"
        "request = VisionEncoderFlags(vision_model_name='someone/tiny-dinov2')\n"
        "print(build_encoder(request, torch.device('cpu')).record()['revision'])\n"
    )
    # The hub's client reads the folder's name when it is imported.
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [revision]


def test_other_weights_or_preprocessing_than_the_records_are_refused(folders, tmp_path, built):

    record = built(folders["dinov2"]).record()
    other = {**record, "weights_sha256": "0" * 64}
    with pytest.raises(InvalidInputError, match="has weights_sha256"):
        load_encoder(other, {}, CPU)
    moved = shutil.copytree(folders["dinov2"], tmp_path / "moved")
    load_encoder(record, {}, CPU, model_name=str(moved))
    path = moved / "preprocessor_config.json"
    settings = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(InvalidInputError, match="has preprocessing"):
        load_encoder(record, {}, CPU, model_name=str(moved))


def test_a_record_cannot_ask_for_remote_code_to_be_run(folders, tmp_path, built):

    from transformers import AutoConfig

    record = built(folders["dinov2"]).record()
    hostile = shutil.copytree(folders["dinov2"], tmp_path / "hostile")
    config = json.loads((hostile / "config.json").read_text("utf-8"))
    config |= {"model_type": "hostile", "auto_map": {"AutoConfig": "code.Config"}}
    (hostile / "config.json").write_text(json.dumps(config))
    (hostile / "code.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\n"
        "from transformers import PretrainedConfig\n"
        "class Config(PretrainedConfig):\n    model_type = 'hostile'\n"
    )
    asking = {**record, "name": str(hostile), "trust_remote_code": True}
    with pytest.raises(InvalidInputError):
        load_encoder(asking, {}, CPU)
    assert not (tmp_path / "executed").exists()
    # The same folder does run its code for a user who asks: the check above can fail.
    AutoConfig.from_pretrained(hostile, trust_remote_code=True)
    assert (tmp_path / "executed").exists()


def test_a_model_that_is_no_vision_model_is_refused(tmp_path, built):
    from transformers import BertConfig, BertModel, BitImageProcessor

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 30}
    BertModel(BertConfig(**sizes, intermediate_size=16)).save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="no vision model could be loaded"):
        built(tmp_path)
    BitImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="BertModel, which takes no images"):
        built(tmp_path)


def test_without_a_hub_the_message_names_what_works_without_one(built):
    with pytest.raises(InvalidInputError, match=r"facebook/dinov2-base.*local folder.*pixel-pca"):
        built("facebook/dinov2-base")


def test_random_vit_is_the_dinov2_architecture_with_seeded_weights(images, random_vit):
    encoder = random_vit(seed=1)
    assert type(encoder.model).__name__ == "Dinov2Model"
    np.testing.assert_array_equal(encoder.encode(images), random_vit(seed=1).encode(images))
    assert random_vit(seed=2).record()["weights_sha256"] != encoder.record()["weights_sha256"]
    again = load_encoder(encoder.record(), {}, CPU)
    np.testing.assert_array_equal(again.encode(images), encoder.encode(images))


def test_random_vit_does_not_disturb_the_random_state(random_vit):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_vit(seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_an_image_size_that_patches_do_not_fill_is_refused(random_vit):
    with pytest.raises(InvalidInputError, match="--random_vit_image_size 30"):
        random_vit(random_vit_image_size=30)


def test_stand_ins_say_so(images, random_vit):
    for encoder in (random_vit(), pixel_pca(images, 3)):
        assert "never a DINOv2 result" in encoder.stand_in_note
        assert encoder.record()["note"] == encoder.stand_in_note
        assert encoder.record()["is_stand_in"] is True


def test_area_average_is_the_mean_over_each_cell():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 12, 20, 3), dtype=np.uint8)
    blocks = images.reshape(3, 4, 3, 4, 5, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(area_average(images, 4), blocks.reshape(3, -1), atol=1e-6)


def test_area_average_counts_the_part_of_a_pixel_inside_the_cell():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 7, 10, 3), dtype=np.uint8)
    # Every pixel repeated 4 times along each axis: then the cells have whole pixels.
    fine = images.repeat(4, axis=1).repeat(4, axis=2)
    blocks = fine.reshape(2, 4, 7, 4, 10, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(area_average(images, 4), blocks.reshape(2, -1), atol=1e-6)
    with pytest.raises(InvalidInputError, match=r"7x10 .*--pixel_pca_size 8; lower it to 7"):
        area_average(images, 8)


def test_pixel_pca_projects_onto_the_directions_of_largest_variance(images):
    features = area_average(images, 8)
    encoder = pixel_pca(images, 4)
    centered = features.astype(np.float64) - features.mean(axis=0)
    _, _, directions = np.linalg.svd(centered, full_matrices=False)
    expected = np.abs(centered @ directions[:4].T)
    np.testing.assert_allclose(np.abs(encoder.encode(images)), expected, atol=1e-4)


def test_pixel_pca_is_rebuilt_from_its_arrays(images):
    encoder = pixel_pca(images, 4)
    record = json.loads(json.dumps(encoder.record()))
    again = load_encoder(record, encoder.arrays, CPU)
    np.testing.assert_array_equal(again.encode(images), encoder.encode(images))
    assert again.record() == record
    spoiled = {**encoder.arrays, "pixel_pca_mean": encoder.mean + 1}
    with pytest.raises(InvalidInputError, match="belong to another cache"):
        load_encoder(record, spoiled, CPU)
    with pytest.raises(InvalidInputError, match="needs the arrays"):
        load_encoder(record, {}, CPU)


def test_more_components_than_frames_are_refused(images):
    with pytest.raises(InvalidInputError, match=r"--pixel_pca_components 10 .* between 1 and 9"):
        pixel_pca(images, 10)


def test_pixel_pca_is_the_same_with_any_number_of_threads():
    images = np.random.default_rng(0).integers(0, 256, (600, 16, 16, 3)).astype(np.uint8)
    flags = VisionEncoderFlags(pixel_pca_size=16, pixel_pca_components=32)
    fitted = []
    for num_threads in (1, 2):
        with threadpool_limits(num_threads):
            fitted.append(PixelPCA.fit(flags, [images], len(images)).components)
    np.testing.assert_array_equal(*fitted)
