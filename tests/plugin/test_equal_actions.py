"""The plugin acts as this project's own evaluation does, and so does LeRobot's loop around it."""

import dataclasses
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout

from benchmarks.rollouts.checkpoint_policy import CheckpointPolicy
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import Query
from benchmarks.suite import EpisodeSpec
from lerobot_policy_world_modality.modeling_world_modality import WorldModalityPolicy
from tests.fixtures.exported import CHUNK, IMAGE_KEY, STATE_KEY, exported
from tests.fixtures.lerobot import TASKS
from tests.fixtures.policy import tiny_train_config
from tests.rollouts.test_views_in_closed_loop import CameraSuite
from world_modality.acting.episode_memory import is_observed
from world_modality.arms import MODEL_TYPES
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run as train

NUM_STEPS = 9
SUITE = CameraSuite(image_keys=(IMAGE_KEY,))


@pytest.fixture(scope="session")
def folders(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")
    return {arm: exported(path, folder / arm) for arm, path in home.checkpoints.items()}


def loaded(folder, *overrides):
    """Return an exported policy and its processors, as lerobot-eval makes them."""
    arguments = ["--device=cpu", *overrides]
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=arguments)
    policy = WorldModalityPolicy.from_pretrained(folder, config=config)
    rename = {"rename_map": {}}
    processors = make_pre_post_processors(
        config,
        pretrained_path=str(folder),
        preprocessor_overrides={
            "device_processor": {"device": "cpu"},
            "rename_observations_processor": rename,
        },
        postprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    return policy, *processors


def own_actions(home, arm, episode, **flags):
    """Return the actions of this project's own closed loop on a recorded episode."""
    path = home.checkpoints[arm]
    config = RolloutConfig((path,), device="cpu", check_parity=False, **flags)
    policy = CheckpointPolicy.open(path, SUITE, config)
    frames = home.frames_of(episode)
    spec = EpisodeSpec(f"task-{episode % 3}", TASKS[episode % 3], episode, 0, 0, 50)
    memory, actions = policy.begin(spec), []
    observed = 0
    for step in range(0, NUM_STEPS, policy.n_action_steps):
        numbers = [n for n in range(observed, step + 1) if is_observed(n, policy)]
        observed = step + 1
        seen = {
            n: {IMAGE_KEY: home.images[frames[n]], STATE_KEY: home.states[frames[n]]}
            for n in numbers
        }
        actions.append(policy.act([Query(memory, step, seen)])[0])
    return np.concatenate(actions)[:NUM_STEPS]


def plugin_actions(home, folder, episodes, *overrides):
    """Return the plugin's actions on recorded episodes that run side by side, [steps, B, A]."""
    policy, preprocess, postprocess = loaded(folder, *overrides)
    actions = []
    for step in range(NUM_STEPS):
        frames = np.array([home.frames_of(episode)[step] for episode in episodes])
        action = postprocess(policy.select_action(preprocess(home.batch(frames))))
        actions.append(action.numpy())
    return np.stack(actions)


PASTS: dict[str, dict[str, Any]] = {
    "tokens": {"context_frames": 1, "world_history": 2, "world_history_stride": 3},
    "tokens and frames": {
        **{"context_frames": 2, "context_stride": 4, "use_language": True},
        **{"world_history": 3, "world_history_stride": 2},
    },
}


@pytest.fixture(scope="session")
def past_home(home, tmp_path_factory):
    """The home with policies that read frames and tokens of a past, and their exports."""
    folder = tmp_path_factory.mktemp("pasts")
    checkpoints = {
        past: train(
            tiny_train_config(home.cache, folder / f"logs_{past}", "C", num_epochs=1, **flags)
        ).checkpoint
        for past, flags in PASTS.items()
    }
    folders = {past: exported(path, folder / past) for past, path in checkpoints.items()}
    return dataclasses.replace(home, checkpoints=checkpoints), folders


@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("n_action_steps", [1, 2, CHUNK])
def test_a_past_of_tokens_and_of_frames_is_that_of_our_own_loop(past_home, past, n_action_steps):
    home, folders = past_home
    expected = own_actions(home, past, 1, n_action_steps=n_action_steps)
    override = f"--n_action_steps={n_action_steps}"
    found = plugin_actions(home, folders[past], [1], override)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    together = plugin_actions(home, folders[past], [0, 1], override)[:, 1]
    np.testing.assert_allclose(together, expected, atol=2e-4)


@pytest.mark.parametrize("past", PASTS)
def test_no_more_of_an_episode_is_kept_than_is_read_again(past_home, past):
    home, folders = past_home
    policy, _, _ = loaded(folders[past], "--n_action_steps=1")
    window = policy.config.policy_record.policy.window
    for frame in home.frames_of(1):
        policy.select_action(home.batch(np.array([frame])))
    (memory,) = policy._memories
    assert len(memory.tokens) == max(window.world_lags)
    assert len(memory.frames) == max(window.context_lags)


def test_chunks_between_single_actions_are_refused_where_the_past_has_gaps(past_home, folders):
    home, past_folders = past_home
    batches = [home.batch(home.frames_of(1)[i : i + 1]) for i in range(4)]
    policy, _, _ = loaded(past_folders["tokens and frames"], f"--n_action_steps={CHUNK}")
    for batch in batches[:3]:
        policy.select_action(batch)
    with pytest.raises(InvalidInputError, match=r"did not keep.*reset\(\)"):
        policy.predict_action_chunk(batches[3])
    policy.reset()
    policy.predict_action_chunk(batches[3])
    # Without a past there is nothing to miss.
    policy, _, _ = loaded(folders["A"], f"--n_action_steps={CHUNK}")
    expected = policy.predict_action_chunk(batches[0])[:, 0]
    torch.testing.assert_close(policy.select_action(batches[0]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("arm", MODEL_TYPES)
@pytest.mark.parametrize("n_action_steps", [1, 2, CHUNK])
def test_actions_on_recorded_frames_equal_those_of_our_own_loop(home, folders, arm, n_action_steps):
    expected = own_actions(home, arm, 1, n_action_steps=n_action_steps)
    override = f"--n_action_steps={n_action_steps}"
    found = plugin_actions(home, folders[arm], [1], override)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_policy_that_attends_to_its_predicted_future_acts_as_in_our_own_loop(home, tmp_path):
    flags = {"world_target": ("embedding",), "future_to_action": True, "num_epochs": 1}
    config = tiny_train_config(home.cache, tmp_path / "logs", "C", **flags)
    ahead = dataclasses.replace(home, checkpoints={"C": train(config).checkpoint})
    folder = exported(ahead.checkpoints["C"], tmp_path / "out")
    found = plugin_actions(ahead, folder, [1])[:, 0]
    np.testing.assert_allclose(found, own_actions(ahead, "C", 1), rtol=1e-5, atol=1e-6)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "predicts embedding of the next 3 steps during training, to which its actions" in card


def test_the_arms_act_differently_so_that_equal_actions_mean_something(home, folders):
    a, c = (plugin_actions(home, folders[arm], [1]) for arm in ("A", "C"))
    assert np.abs(a - c).max() > 1e-3
    other = plugin_actions(home, folders["C"], [2])
    assert np.abs(other - c).max() > 1e-3


@pytest.mark.parametrize("arm", ["A", "C"])
def test_temporal_ensembling_is_that_of_our_own_loop(home, folders, arm):
    expected = own_actions(home, arm, 2, temporal_ensemble_coeff=0.3)
    flags = ("--n_action_steps=1", "--temporal_ensemble_coeff=0.3")
    found = plugin_actions(home, folders[arm], [2], *flags)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    plain = plugin_actions(home, folders[arm], [2], "--n_action_steps=1")[:, 0]
    assert np.abs(plain - expected).max() > 1e-5


def test_environments_side_by_side_act_as_each_alone(home, folders):
    together = plugin_actions(home, folders["C"], [0, 1, 2])
    for place, episode in enumerate((0, 1, 2)):
        alone = plugin_actions(home, folders["C"], [episode])[:, 0]
        # A larger product may move an embedding by one float16 step.
        np.testing.assert_allclose(together[:, place], alone, atol=2e-4)


@pytest.mark.parametrize("arm", ["A", "C"])
def test_a_saved_policy_acts_as_before(home, folders, tmp_path, arm):
    policy, _, _ = loaded(folders[arm])
    policy.save_pretrained(tmp_path)
    again = WorldModalityPolicy.from_pretrained(tmp_path)
    batch = home.batch(home.frames_of(3)[:1])
    torch.testing.assert_close(
        again.predict_action_chunk(batch), policy.predict_action_chunk(batch), rtol=0, atol=0
    )


def test_a_robots_loop_gets_these_actions(home, folders):
    policy, preprocess, postprocess = loaded(folders["C"])
    expected = own_actions(home, "C", 1)
    for step, frame in enumerate(home.frames_of(1)[:NUM_STEPS]):
        seen = {IMAGE_KEY: home.images[frame].copy(), STATE_KEY: home.states[frame].copy()}
        # As lerobot-record and lerobot-rollout do it, at every tick.
        batch = prepare_observation_for_inference(seen, torch.device("cpu"), TASKS[1], "drawn")
        action = postprocess(policy.select_action(preprocess(batch)))
        np.testing.assert_allclose(action[0].numpy(), expected[step], rtol=1e-5, atol=1e-6)


def test_what_lerobot_knows_of_a_dataset_changes_nothing(home, folders):
    config = PreTrainedConfig.from_pretrained(folders["C"], cli_overrides=["--device=cpu"])
    known = {"dataset_stats": {"action": {"mean": 3.0}}, "dataset_meta": object()}
    policy = WorldModalityPolicy.from_pretrained(folders["C"], config=config, **known)
    batch = home.batch(home.frames_of(1)[:1])
    expected = loaded(folders["C"])[0].predict_action_chunk(batch)
    torch.testing.assert_close(policy.predict_action_chunk(batch), expected, rtol=0, atol=0)


class RecordedEnv(gymnasium.Env):  # type: ignore[misc]
    """Shows the frames of a recorded episode, whatever is done."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    _max_episode_steps = NUM_STEPS
    task = "drawn"

    def __init__(self, home, episode):
        self.home, self.frames = home, home.frames_of(episode)
        self.task_description = TASKS[episode % 3]
        height, width = home.images.shape[1:3]
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "pixels": box(0, 255, (height, width, 3), np.uint8),
                "agent_pos": box(-10, 10, home.states.shape[1:], np.float64),
            }
        )
        self.action_space = box(-1, 1, (2,), np.float32)

    def _observed(self):
        frame = self.frames[self.step_number]
        state = self.home.states[frame].astype(np.float64)
        return {"pixels": self.home.images[frame], "agent_pos": state}

    def reset(self, *, seed=None, options=None):
        self.step_number = 0
        return self._observed(), {}

    def step(self, action):
        self.step_number += 1
        return self._observed(), 0.0, False, False, {"is_success": False}


def test_lerobots_own_loop_gets_these_actions_and_episodes_do_not_leak(home, folders):
    policy, preprocess, postprocess = loaded(folders["C"])
    env = gymnasium.vector.SyncVectorEnv([lambda: RecordedEnv(home, 1)])
    unchanged = PolicyProcessorPipeline(
        steps=[], to_transition=lambda batch: batch, to_output=lambda batch: batch
    )
    expected = own_actions(home, "C", 1)
    for _ in range(2):
        done = rollout(env, policy, unchanged, unchanged, preprocess, postprocess)
        np.testing.assert_allclose(done["action"][0].numpy(), expected, rtol=1e-5, atol=1e-6)
