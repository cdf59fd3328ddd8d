"""What LeRobot shows the policy becomes what it was trained on, or is refused."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig

from lerobot_policy_world_modality.modeling_world_modality import WorldModalityPolicy
from lerobot_policy_world_modality.observed_frames import _whole_numbers
from tests.fixtures.exported import CONTEXT, IMAGE_KEY, STATE_KEY, changed_checkpoint, exported
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError, MissingKeyError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return {arm: exported(home.checkpoints[arm], folder / arm) for arm in ("A", "C")}


def load(folder, *overrides):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu", *overrides])
    return WorldModalityPolicy.from_pretrained(folder, config=config)


@pytest.fixture
def batch(home):
    return home.batch(home.frames_of(1)[:1])


def one_step_lower(values):
    return torch.nextafter(values / 255, torch.zeros(()))


@pytest.mark.parametrize("divide", [lambda values: values / 255, one_step_lower])
def test_every_one_of_the_256_values_survives_the_way_through_floats(divide):
    values = np.arange(256, dtype=np.uint8)
    images = torch.from_numpy(np.stack([values, values[::-1], values])[None, :, None])
    expected = images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(_whole_numbers(divide(images.float())), expected)
    np.testing.assert_array_equal(_whole_numbers(images), expected)


@pytest.mark.parametrize(
    ("image", "refusal"),
    [
        (torch.full((1, 3, 48, 40), 255.0), "from 255 to 255"),
        (torch.full((1, 3, 48, 40), -0.5), "from -0.5"),
        (torch.full((1, 3, 48, 40), float("nan")), "nan"),
        (torch.zeros(1, 48, 40, 3), "expected images of shape"),
    ],
)
def test_images_of_another_form_are_refused(folders, batch, image, refusal):
    with pytest.raises(InvalidInputError, match=refusal):
        load(folders["A"]).select_action({**batch, IMAGE_KEY: image})


def test_a_missing_camera_lists_what_is_there_and_a_wrong_state_its_size(folders, batch):
    policy = load(folders["A"])
    renamed = {"observation.images.top": batch[IMAGE_KEY], STATE_KEY: batch[STATE_KEY]}
    with pytest.raises(MissingKeyError, match=r"rename_map.*observation\.images\.top"):
        policy.select_action(renamed)
    with pytest.raises(InvalidInputError, match="trained on 4 state dimensions"):
        policy.select_action({**batch, STATE_KEY: torch.zeros(1, 7)})


def test_a_state_of_several_columns_is_joined_in_their_order(home, tmp_path, batch):
    path = home.checkpoints["A"]
    manifest = load_checkpoint(path, CPU).manifest
    dataset = {**manifest["dataset"], "state_key": "hand+observation.speed", "image_key": "image"}
    path = changed_checkpoint(path, tmp_path / "a", manifest={**manifest, "dataset": dataset})
    policy = load(exported(path, tmp_path / "joined"))
    plain = load(exported(home.checkpoints["A"], tmp_path / "plain"))
    state = batch[STATE_KEY]
    parts = {"observation.hand": state[:, :3], "observation.speed": state[:, 3:]}
    found = policy.select_action({"observation.image": batch[IMAGE_KEY], **parts})
    torch.testing.assert_close(found, plain.select_action(batch), rtol=0, atol=0)


def test_actions_are_clipped_where_the_configuration_says_so(folders, batch):
    free = load(folders["A"]).predict_action_chunk(batch)
    limit = float(free.abs().max()) / 2
    clipped = load(folders["A"], f"--action_range=[{-limit},{limit}]").predict_action_chunk(batch)
    torch.testing.assert_close(clipped, free.clamp(-limit, limit), rtol=0, atol=0)
    assert (clipped != free).any()


def test_known_instructions_need_no_text_model_and_others_say_that_they_do(
    home, folders, batch, tmp_path, caplog
):
    moved = home.folder / "distilbert-base-uncased"
    away = moved.rename(home.folder / "moved")
    try:
        policy = load(folders["C"])
        known = policy.predict_action_chunk(batch)
        with pytest.raises(
            InvalidInputError, match=r"text model.*cannot be loaded.*push the block"
        ):
            policy.predict_action_chunk({**batch, "task": ["sweep the floor"]})
        policy = load(folders["C"], f"--text_model_name={away}")
        with caplog.at_level(logging.WARNING):
            other = policy.predict_action_chunk({**batch, "task": ["sweep the floor"]})
        assert "is none of the 3 instructions" in caplog.text
        assert not torch.equal(other, known)
    finally:
        away.rename(moved)


@pytest.mark.parametrize("task", [None, [""], [" "], ["push the block"] * 2, [3]])
def test_a_missing_or_blank_instruction_is_refused(folders, batch, task):
    with pytest.raises(InvalidInputError, match=r"reads language.*push the block"):
        load(folders["C"]).select_action({**batch, "task": task})


def test_one_text_stands_for_all_environments(home, folders):
    batch = home.batch(np.array([home.frames_of(0)[0], home.frames_of(3)[0]]))
    policy = load(folders["C"])
    expected = policy.predict_action_chunk(batch)
    policy.reset()
    found = policy.predict_action_chunk({**batch, "task": batch["task"][0]})
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_reset_forgets_the_frames_and_the_actions_of_the_episode(home, folders):
    policy = load(folders["C"])
    frames = home.frames_of(2)
    first = [policy.select_action(home.batch(frames[i : i + 1])) for i in range(6)]
    policy.reset()
    again = [policy.select_action(home.batch(frames[i : i + 1])) for i in range(6)]
    torch.testing.assert_close(torch.cat(again), torch.cat(first), rtol=0, atol=0)


def test_another_number_of_environments_needs_a_reset(home, folders):
    policy = load(folders["C"], "--n_action_steps=1")
    policy.select_action(home.batch(home.frames_of(1)[:1]))
    with pytest.raises(InvalidInputError, match="reset"):
        policy.select_action(home.batch(home.frames_of(1)[:2]))


def test_chunks_asked_for_one_by_one_say_that_frames_have_to_follow_each_other(
    folders, batch, caplog
):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            load(folders["A"]).predict_action_chunk(batch)
        assert "frames ago" not in caplog.text
        policy = load(folders["C"])
        for _ in range(3):
            policy.predict_action_chunk(batch)
    assert caplog.text.count(f"seen up to {CONTEXT - 1} frames ago") == 1


def test_a_dummy_control_reads_its_one_code(home, folders, tmp_path):
    path = home.checkpoints["C"]
    train_config = load_checkpoint(path, CPU).train_config
    path = changed_checkpoint(
        path,
        tmp_path / "dummy",
        train_config=dataclasses.replace(train_config, token_control="dummy"),
    )
    dummy, own = load(exported(path, tmp_path / "out")), load(folders["C"])
    tokens = set()
    for step, frame in enumerate(home.frames_of(1)):
        one = home.batch(np.array([frame]))
        for policy in (dummy, own):
            policy._observe(policy._acting, one)
            policy._step += 1
        assert dummy._memories[0].world_tokens(step) == 0
        tokens.add(own._memories[0].world_tokens(step))
    assert len(tokens) > 1
    cached = home.cache.load("world_tokens")[home.frames_of(1)]
    assert tokens == set(cached.tolist())
