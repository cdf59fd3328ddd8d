import dataclasses
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from benchmarks.suite import EpisodeSpec
from tests.fixtures.policy import tiny_policy_config
from world_modality.acting.world_input import Tokens, WorldInput
from world_modality.cache.frame_shapes import WindowShape, WorldShape
from world_modality.policy.config import TrainConfig
from world_modality.system.errors import InvalidInputError, MissingKeyError
from world_modality.tokens.corruption import CLOSED_LOOP, read_corruption

# Three tasks of which the last has no training frame; token 3 is never used.
COUNTS = np.array([[6, 2, 0, 0, 2], [0, 0, 9, 0, 1], [0, 0, 0, 0, 0]], np.int32)
EPISODE = EpisodeSpec("push-v3", "Push it", 0, initial_state=1, seed=0, max_steps=10)
OWN = dict.fromkeys(range(1000), 4)


def checkpoint(counts: np.ndarray | None = COUNTS, recorded: bool = True, **window: Any) -> Any:
    """Return the parts of a checkpoint that decide the world token."""
    tasks = {"0": "Push it", "1": "Lift it", "2": "Hide it"}
    names = {"push-v3": "Push it", "lift-v3": "Lift it", "hide-v3": "Hide it"}
    recording = {"tasks": {name: {"instruction": text} for name, text in names.items()}}
    return SimpleNamespace(
        cache_arrays={} if counts is None else {"train_token_counts": torch.from_numpy(counts)},
        train_config=TrainConfig("local/x", log_dir=Path("logs_c"), model_type="C"),
        policy_config=SimpleNamespace(window=WindowShape(**window)),
        manifest={"dataset": {"tasks": tasks, "recording": recording if recorded else None}},
    )


def world_input(text: str, policy: Any) -> WorldInput:
    return WorldInput.of(read_corruption(text, "--corrupt_world", CLOSED_LOOP), policy)


def draws(text: str, number: int = 1000, **changes) -> list[Tokens]:
    world = world_input(text, checkpoint()).begin(dataclasses.replace(EPISODE, **changes))
    return [world.tokens(OWN, step) for step in range(number)]


def test_uncorrupted_the_frames_own_token_is_read():
    world = world_input("none", checkpoint(counts=None)).begin(EPISODE)
    own = {0: 7, 4: 2, 8: 5}
    assert [world.tokens(own, step) for step in own] == [7, 2, 5]


def test_uniform_draws_uniformly_from_the_codes_that_training_uses():
    counted = Counter(draws("uniform", 4000))
    assert set(counted) == {0, 1, 2, 4}
    assert chisquare(list(counted.values())).pvalue > 1e-3


def test_task_marginal_draws_as_often_as_the_tasks_training_episodes_have_each():
    counted = Counter(draws("task_marginal", 4000))
    assert set(counted) == {0, 1, 4}
    expected = [0.6 * 4000, 0.2 * 4000, 0.2 * 4000]
    assert chisquare([counted[0], counted[1], counted[4]], expected).pvalue > 1e-3
    assert set(draws("task_marginal", task="lift-v3", instruction="Lift it")) == {2, 4}


def test_marginal_draws_as_often_as_all_training_episodes_have_each():
    counted = Counter(draws("marginal", 4000))
    expected = [4000 * share for share in (0.3, 0.1, 0.45, 0.15)]
    assert chisquare([counted[token] for token in (0, 1, 2, 4)], expected).pvalue > 1e-3


@pytest.mark.parametrize(("older", "name"), [("random", "uniform"), ("task", "task_marginal")])
def test_older_spellings_are_the_same_corruption(older, name):
    assert str(world_input(older, checkpoint()).corruption) == name
    assert draws(older, 50) == draws(name, 50)


def test_another_instruction_leaves_the_task_what_it_is():
    assert draws("task_marginal", instruction="Lift it") == draws("task_marginal")


def test_without_a_recording_the_text_names_the_task():
    world = world_input("task_marginal", checkpoint(recorded=False)).begin(EPISODE)
    assert {world.tokens(OWN, step) for step in range(200)} == {0, 1, 4}


@pytest.mark.parametrize("text", ["uniform", "marginal", "task_marginal"])
def test_draws_depend_on_seed_task_and_episode_alone(text):
    first = draws(text, 50)
    assert draws(text, 50) == first
    assert draws(text, 50, initial_state=9, max_steps=99) == first
    others = [draws(text, 50, seed=1), draws(text, 50, episode=1)]
    assert all(other != first for other in others)
    assert len(set(first)) > 1


def test_two_episodes_do_not_advance_each_other():
    both = world_input("uniform", checkpoint())
    one, other = (both.begin(dataclasses.replace(EPISODE, episode=number)) for number in (0, 1))
    mixed = []
    for step in range(20):
        mixed.append(one.tokens(OWN, step))
        other.tokens(OWN, step)
        other.tokens(OWN, step)
    assert mixed == draws("uniform", 20)


def test_a_stale_token_is_that_of_k_frames_before_and_at_first_the_first_frames():
    stale = world_input("stale:3", checkpoint(counts=None))
    world = stale.begin(EPISODE)
    own = {frame: 10 + frame for frame in range(8)}
    assert [world.tokens(own, step) for step in range(8)] == [10, 10, 10, 10, 11, 12, 13, 14]
    assert str(stale.corruption) == "stale:3"


@pytest.mark.parametrize(
    "text",
    ["", "noise", "stale", "stale:0", "stale:-2", "stale:x", "Task", "task:2", "task_shuffle"],
)
def test_what_is_no_corruption_is_refused(text):
    with pytest.raises(
        InvalidInputError, match=r"uniform, marginal, task_marginal, stale:<k>, none with k"
    ):
        world_input(text, checkpoint())


# The same tasks with three tokens a frame, each slot with tokens of its own.
SLOT_COUNTS = np.stack([COUNTS, COUNTS[:, ::-1], np.roll(COUNTS, 1, axis=1)], axis=1)
SLOT_TOKENS = {"uniform": [{0, 1, 2, 4}, {0, 2, 3, 4}, {0, 1, 2, 3}]}
SLOT_TOKENS["task_marginal"] = [{0, 1, 4}, {0, 3, 4}, {0, 1, 2}]
OWN_SLOTS = {frame: np.array([frame, frame + 100, frame + 200], np.int32) for frame in range(500)}


def slot_checkpoint(**window: Any) -> Any:
    several = checkpoint(SLOT_COUNTS, **window)
    several.policy_config.frame = SimpleNamespace(world=WorldShape(5, 3))
    return several


@pytest.mark.parametrize("text", ["uniform", "task_marginal"])
def test_each_slot_draws_from_its_own_tokens(text):
    world = world_input(text, slot_checkpoint()).begin(EPISODE)
    drawn = np.stack([world.tokens(OWN_SLOTS, step) for step in range(500)])
    assert (drawn.shape, drawn.dtype) == ((500, 3), np.int32)
    assert [set(slot) for slot in drawn.T.tolist()] == SLOT_TOKENS[text]


def test_a_stale_frames_tokens_stay_together():
    world = world_input("stale:3", slot_checkpoint()).begin(EPISODE)
    assert world.tokens(OWN_SLOTS, 10).tolist() == [7, 107, 207]


@pytest.mark.parametrize(("text", "wrong"), [("stale:3@1", {107}), ("uniform@1", {0, 2, 3, 4})])
def test_one_slot_alone_is_made_wrong_as_it_is_with_all(text, wrong):
    one = world_input(text, slot_checkpoint())
    assert str(one.corruption) == text
    every = world_input(text.split("@")[0], slot_checkpoint()).begin(EPISODE)
    world = one.begin(EPISODE)
    for _ in range(20):
        read, all_read = world.tokens(OWN_SLOTS, 10), every.tokens(OWN_SLOTS, 10)
        assert (read[0], read[2]) == (10, 210)
        assert read[1] == all_read[1]
        assert read[1] in wrong
    assert OWN_SLOTS[10].tolist() == [10, 110, 210], "what was seen stays as it was"


def test_a_slot_that_is_not_there_is_refused():
    with pytest.raises(InvalidInputError, match=r"3: the policy has 3 world tokens .* 0 to 2"):
        world_input("stale:1@3", slot_checkpoint())


@pytest.mark.parametrize("text", ["uniform", "marginal", "task_marginal"])
def test_a_checkpoint_without_counts_says_how_to_get_them(text):
    with pytest.raises(
        InvalidInputError, match=r"train_model_c\.py --dataset_name local/x .*logs_c"
    ):
        world_input(text, checkpoint(counts=None))


def test_a_task_without_training_frames_lists_those_that_have_some():
    of_task = world_input("task_marginal", checkpoint())
    hidden = dataclasses.replace(EPISODE, task="hide-v3", instruction="Hide it")
    with pytest.raises(MissingKeyError, match=r"'hide-v3'.*lift-v3") as refused:
        of_task.begin(hidden)
    assert "Hide it" not in str(refused.value)


def controlled(name: str, **changes: int) -> Any:
    plain = checkpoint()
    plain.train_config = dataclasses.replace(plain.train_config, token_control=name)
    plain.policy_config = tiny_policy_config("C", num_world_tokens=COUNTS.shape[1], **changes)
    return plain


@pytest.mark.parametrize("text", ["none", "stale:3", "uniform"])
def test_a_dummy_control_reads_one_code_whatever_is_corrupted(text):
    world = world_input(text, controlled("dummy")).begin(EPISODE)
    assert {world.tokens(OWN, step) for step in range(50)} == {0}


def test_a_shuffled_control_reads_other_frames_tokens_of_the_task():
    world = world_input("none", controlled("shuffled")).begin(EPISODE)
    tokens = [world.tokens(OWN, step) for step in range(1000)]
    assert tokens == draws("task_marginal")


def test_the_oracle_has_no_future_to_read_in_closed_loop():
    with pytest.raises(InvalidInputError, match="closed loop does not have"):
        world_input("none", controlled("oracle"))


HISTORY: dict[str, Any] = {"world_history": 2, "world_history_stride": 3}


def test_a_history_is_that_of_the_episode_and_at_first_its_first_frames():
    world = world_input("none", checkpoint(counts=None, **HISTORY))
    assert world.observed_lags == {0, 3, 6}
    episode, own = world.begin(EPISODE), {frame: 10 + frame for frame in range(9)}
    read = [episode.tokens(own, step).tolist() for step in (0, 2, 5, 8)]
    assert read == [[10, 10, 10], [10, 10, 12], [10, 12, 15], [12, 15, 18]]


def test_a_stale_history_is_that_of_the_earlier_frame():
    world = world_input("stale:2", checkpoint(counts=None, **HISTORY))
    assert world.observed_lags == {2, 5, 8}
    own = {frame: 10 + frame for frame in range(9)}
    assert world.begin(EPISODE).tokens(own, 8).tolist() == [10, 13, 16]
    one_slot = world_input("stale:2@1", slot_checkpoint(**HISTORY))
    assert one_slot.observed_lags == {0, 2, 3, 5, 6, 8}
    read = one_slot.begin(EPISODE).tokens(OWN_SLOTS, 10)
    assert read.tolist() == [[4, 102, 204], [7, 105, 207], [10, 108, 210]]


@pytest.mark.parametrize("policy", [checkpoint(**HISTORY), controlled("shuffled", **HISTORY)])
def test_every_frame_of_a_random_history_is_drawn(policy):
    text = "none" if policy.train_config.token_control == "shuffled" else "task_marginal"
    world = world_input(text, policy)
    assert not world.observed_lags, "no frame has to be rendered for tokens that are drawn"
    episode = world.begin(EPISODE)
    drawn = np.stack([episode.tokens(OWN, step) for step in range(1000)])
    assert [set(position) for position in drawn.T.tolist()] == [{0, 1, 4}] * 3
    assert len({tuple(row) for row in drawn.tolist()}) == 27, "each by itself"


def test_a_dummy_history_is_one_code():
    world = world_input("stale:3", controlled("dummy", **HISTORY)).begin(EPISODE)
    assert world.tokens(OWN, 50).tolist() == [0, 0, 0]
