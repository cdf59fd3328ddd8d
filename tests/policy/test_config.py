from pathlib import Path

import pytest

from tests.fixtures.policy import tiny_policy_config
from world_modality.policy.config import (
    BEFORE_THE_FLAG,
    PolicyConfig,
    TrainConfig,
    flag_names,
    flags_of,
    from_flags,
    stored_config,
    stored_train_config,
)
from world_modality.system.errors import InvalidInputError, MissingKeyError

TRAINED = from_flags(
    TrainConfig,
    {"dataset_name": "x", "log_dir": Path("logs"), "model_type": "C", "chunk_size": 3, "seed": 4},
)
CONFIGS = [TRAINED, tiny_policy_config("C")]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_is_its_flags_side_by_side(config):
    flags = flags_of(config)
    assert list(flags) == flag_names(type(config))
    assert {"chunk_size", "d_model", "world_input_scale"} <= set(flags)
    assert stored_config(type(config), flags) == config


@pytest.mark.parametrize("config", CONFIGS)
def test_what_an_older_checkpoint_lacks_is_what_there_was_before_the_flag(config):
    flags = flags_of(config)
    older = {name: value for name, value in flags.items() if name not in BEFORE_THE_FLAG}
    assert len(older) < len(flags)
    now = flags_of(stored_config(type(config), older))
    before = {n: tuple(v) if isinstance(v, list) else v for n, v in BEFORE_THE_FLAG.items()}
    assert now == older | {n: v for n, v in before.items() if n in flags}


@pytest.mark.parametrize(
    ("config_type", "changes", "error", "message"),
    [
        (PolicyConfig, {"n_heads": None}, InvalidInputError, "n_heads"),
        (PolicyConfig, {"new": 1}, InvalidInputError, "lacks or adds new"),
        (PolicyConfig, {"model_type": "D"}, MissingKeyError, r"no arm 'D' in .*there are: A, B, C"),
        (TrainConfig, {"token_control": "later"}, MissingKeyError, "no control 'later'"),
    ],
)
def test_a_stored_configuration_of_another_version_is_refused(config_type, changes, error, message):
    flags = flags_of(CONFIGS[config_type is PolicyConfig]) | changes
    if flags.get("n_heads") is None:
        del flags["n_heads"]
    with pytest.raises(error, match=message):
        stored_config(config_type, flags)


def test_flags_that_another_stage_adds_are_kept_apart():
    config, further = stored_train_config(flags_of(TRAINED) | {"coc_loss_weight": 0.5})
    assert (config, further) == (TRAINED, {"coc_loss_weight": 0.5})


def test_a_flag_that_there_is_not_is_an_error():
    with pytest.raises(TypeError, match="TrainConfig has no flag chunksize"):
        from_flags(TrainConfig, {"dataset_name": "x", "chunksize": 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 30}, "multiple of --n_heads"),
        ({"context_frames": 0}, "--context_frames must be at least 1"),
        ({"future_stride": 0}, "--future_stride must be at least 1"),
        ({"context_stride": 0}, "--context_stride must be at least 1"),
        ({"world_history": -1}, "--world_history must be at least 0"),
        ({"world_history": 2, "world_history_stride": 0}, "--world_history_stride must be at le"),
        ({"world_history_stride": 2}, "--world_history_stride 2 has no effect with --world_hist"),
        ({"context_frames": 1, "context_stride": 2}, "--context_stride 2 has no effect with --c"),
        ({"world_input_dropout": 1.0}, "--world_input_dropout must lie in"),
        ({"observation_dropout": 1.0}, "--observation_dropout must lie in"),
    ],
)
def test_impossible_values_are_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        tiny_policy_config("C", **changes)


@pytest.mark.parametrize("model_type", ["A", "B"])
def test_an_arm_that_reads_no_world_token_has_no_history(model_type):
    flags = {"dataset_name": "x", "model_type": model_type, "world_history": 8}
    with pytest.raises(InvalidInputError, match=f"type {model_type}, which reads no world token"):
        from_flags(TrainConfig, flags)
