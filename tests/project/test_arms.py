"""The table of arms: everything that names an arm agrees with it."""

import dataclasses
from importlib import import_module
from typing import get_args, get_type_hints

import pytest

from tests.fixtures.policy import tiny_policy_config
from world_modality.arms import (
    ARMS,
    CONTRASTS,
    CONTROLS,
    MODEL_TYPES,
    OWN_TOKEN,
    TRUE_STATE,
    WORLD_INPUT_FLAGS,
    ControlName,
    arm_order,
)
from world_modality.policy.config import (
    TrainConfig,
    flags_of,
    from_flags,
)
from world_modality.system.errors import InvalidInputError


def test_every_model_type_and_control_that_a_flag_takes_is_a_row_of_its_name():
    assert tuple(name for name, arm in ARMS.items() if arm.control == "none") == MODEL_TYPES
    assert ("none", *CONTROLS) == get_args(ControlName)
    for name, arm in ARMS.items():
        control = "" if arm.control == "none" else f"_{arm.control}"
        assert name == f"{arm.model_type}{control}"


@pytest.mark.parametrize("script", sorted({arm.script for arm in ARMS.values()}))
def test_a_script_trains_the_arms_that_name_it(script):
    config = import_module(script.removesuffix(".py")).Config
    choices = get_args(get_type_hints(config)["model_type"])
    assert {choices} == {arm.choices for arm in ARMS.values() if arm.script == script}
    assert config.model_type == choices[0]


def test_the_networks_are_what_the_rows_say():
    for name in MODEL_TYPES:
        config = tiny_policy_config(name)
        assert (config.reads_world, config.predicts_world) == (name == "C", name != "A")


def test_the_trainers_defaults_of_the_world_input_flags_change_nothing():
    flags = flags_of(TrainConfig("x"))
    defaults = {name: flags[name] for name in WORLD_INPUT_FLAGS}
    assert defaults == dict(WORLD_INPUT_FLAGS)


def test_only_arms_of_the_script_that_reads_the_token_take_its_flags():
    for name in MODEL_TYPES:
        flags = {"dataset_name": "x", "model_type": name, "world_input_scale": 0.5}
        if name.startswith("C"):
            from_flags(TrainConfig, flags)
        else:
            with pytest.raises(InvalidInputError, match=r"no effect .* use it with train_model_c"):
                from_flags(TrainConfig, flags)


def test_every_arm_but_the_baseline_is_compared_and_tables_list_letters_together():
    assert {a for c in CONTRASTS for a in (c.first, c.second)} >= set(ARMS)
    listed = sorted(
        ["C_oracle", "other", "C (scale 0.1)", "C", "B", "A_random", "B_placebo", "A"],
        key=arm_order,
    )
    assert listed == [
        *("A", "A_random", "B", "B_placebo", "C", "C (scale 0.1)", "C_oracle", "other")
    ]


def test_a_control_that_reads_another_token_has_to_say_which_one_in_closed_loop():
    for arm in CONTROLS.values():
        assert arm.closed_loop is None or arm.own_token == (
            arm.closed_loop in (OWN_TOKEN, TRUE_STATE)
        )
    with pytest.raises(ValueError, match="closed loop"):
        dataclasses.replace(ARMS["C"], control="dummy", own_token=False)
