"""What LeRobot loads is whole and of one piece, or is refused by name."""

import json
import shutil

import pytest
import torch
from draccus.utils import DecodingError
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_policy_config
from safetensors.torch import load_file, save_file

from lerobot_policy_world_modality.configuration_world_modality import WorldModalityConfig
from lerobot_policy_world_modality.modeling_world_modality import WorldModalityPolicy
from lerobot_policy_world_modality.processor_world_modality import (
    make_world_modality_pre_post_processors,
)
from tests.fixtures.exported import exported
from world_modality.system.errors import InvalidInputError


@pytest.fixture(scope="module")
def original(home, tmp_path_factory):
    return exported(home.checkpoints["C"], tmp_path_factory.mktemp("original"))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "policy")


def load(folder, *overrides):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu", *overrides])
    return WorldModalityPolicy.from_pretrained(folder, config=config)


def change_tensors(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_config(folder, change):
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def shifted(tensors):
    tensors["arrays.codebook_centroids"] = tensors["arrays.codebook_centroids"] + 1


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        (lambda t: t.pop("model.act_queries"), "model.act_queries is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is unknown"),
        (lambda t: t.update({"model.act_queries": torch.zeros(1, 32)}), r"\[1, 32\], expected"),
        (
            lambda t: t.update({"model.action_norm.std": t["model.action_norm.std"].double()}),
            "torch.float64",
        ),
        (shifted, r"codebook_centroids .*the SHA-256 differs"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(folder, change, refusal):
    change_tensors(folder, change)
    with pytest.raises(InvalidInputError, match=refusal):
        load(folder)


def test_a_cut_off_file_is_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InvalidInputError, match="cannot be read as safetensors"):
        load(folder)


def test_unknown_and_missing_entries_of_the_configuration_are_refused(folder):
    change_config(folder, lambda content: content.update(colour="red"))
    with pytest.raises(DecodingError, match="colour"):
        load(folder)
    change_config(folder, lambda content: content.pop("colour"))
    change_config(folder, lambda content: content["record"].update(colour="red"))
    with pytest.raises(InvalidInputError, match="lacks or adds colour"):
        load(folder)


def test_another_encoders_arrays_are_refused(folder):
    change_config(folder, lambda c: c["record"]["encoder"].update(weights_sha256="0" * 64))
    with pytest.raises(InvalidInputError, match="pixel-pca arrays have hash"):
        load(folder)


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("--n_action_steps=9", "predicts 4 actions at a time"),
        ("--temporal_ensemble_coeff=0.1", "--policy.n_action_steps=1"),
        ("--action_range=[1,-1]", "the smaller number comes first"),
    ],
)
def test_settings_that_the_policy_cannot_do_are_refused(folder, override, refusal):
    with pytest.raises(InvalidInputError, match=refusal):
        load(folder, override)


def test_an_environment_with_other_actions_is_refused(folder):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    # As make_policy does it with an environment's features.
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    with pytest.raises(InvalidInputError, match=r"actions of 2 dimensions.*takes \[7\]"):
        WorldModalityPolicy.from_pretrained(folder, config=config)


def test_training_is_refused_and_our_trainer_is_named(folder):
    policy = load(folder)
    for refused in (
        lambda: policy.forward({}),
        policy.get_optim_params,
        policy.config.get_optimizer_preset,
        policy.config.get_scheduler_preset,
        lambda: WorldModalityPolicy(make_policy_config("world_modality", device="cpu")),
    ):
        with pytest.raises(NotImplementedError, match=r"train_model_c\.py"):
            refused()


def test_the_exported_processors_are_those_that_lerobot_writes(folder, tmp_path):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu"])
    assert isinstance(config, WorldModalityConfig)
    for pipeline in make_world_modality_pre_post_processors(config):
        pipeline.save_pretrained(tmp_path / "lerobot")
    written = sorted((tmp_path / "lerobot").glob("*.json"))
    assert [path.stem for path in written] == ["policy_postprocessor", "policy_preprocessor"]
    for path in written:
        own = (folder / path.name).read_text(encoding="utf-8")
        assert json.loads(own) == json.loads(path.read_text(encoding="utf-8"))


def test_the_exported_configuration_is_that_which_lerobot_writes(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "lerobot")
    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written = json.loads((tmp_path / "lerobot" / "config.json").read_text(encoding="utf-8"))
    assert {name: written[name] for name in own} == own
