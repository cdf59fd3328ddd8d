"""The arm that reads the simulator's true state, in closed loop."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.instruction import NAME, tiny_cache
from tests.fixtures.lerobot import make_dataset
from tests.fixtures.policy import tiny_train_config
from tests.rollouts.test_checkpoint_policy import DrawnSuite, Home, opened, played
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.privileged_tokens import PrivilegedCodebook
from world_modality.training.single import run as train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("told")
    root = make_dataset(folder / NAME, environment_state=True)
    tiny_cache(root, folder / "cache")
    cache = Cache(folder / "cache", NAME)
    source = open_dataset(NAME, dataset_root=root)
    images = frames_at(source, "observation.image", np.arange(source.num_frames))
    vectors = {
        "observation.state": cache.load("states"),
        "observation.environment_state": cache.load("environment_states"),
    }
    checkpoint = train(
        tiny_train_config(
            cache, folder / "log", "C", token_control="privileged", world_history=2, num_epochs=6
        )
    ).checkpoint
    return Home(
        cache=cache,
        observations=[
            {"observation.image": image, **{k: np.array(v[i]) for k, v in vectors.items()}}
            for i, image in enumerate(images)
        ],
        reads_all=checkpoint,
        reads_least=checkpoint,
        reads_past=checkpoint,
        attends_ahead=checkpoint,
    )


def test_it_acts_on_the_true_state_as_it_was_trained_to(told):
    policy = opened(told.reads_all, n_action_steps=3)
    reference = load_checkpoint(told.reads_all, CPU).build_policy(CPU)
    tensors = FrameTensors.from_cache(told.cache, CPU)
    tensors.world_tokens = torch.from_numpy(
        PrivilegedCodebook.of_cache(told.cache).tokens(told.cache)
    )
    frames = torch.from_numpy(told.first_frame(1) + np.arange(0, 9, 3))
    batch = tensors.gather(frames, reference.config.window)
    with torch.inference_mode():
        output = reference(batch.embeddings, batch.states, batch.world_tokens)
        chunks = reference.action_norm.inverse(output.actions).numpy()
    expected = np.clip(chunks[:, :3].reshape(-1, 2), -1, 1)
    np.testing.assert_allclose(played(policy, told, 1), expected, atol=2e-4)
    assert policy.record()["token_control"] == "privileged"


def test_what_the_cameras_do_not_show_changes_its_actions(told):
    policy = opened(told.reads_all)
    own = played(policy, told, 1)
    far = np.full(3, 9, np.float32)
    moved = [{**one, "observation.environment_state": far} for one in told.observations]
    elsewhere = played(policy, dataclasses.replace(told, observations=moved), 1)
    assert not np.array_equal(own, elsewhere)


def test_a_suite_that_does_not_tell_the_true_state_is_refused(told):
    blind = DrawnSuite(state_keys=("observation.state",))
    with pytest.raises(InvalidInputError, match=r"does not tell observation\.environment_state"):
        opened(told.reads_all, blind)
