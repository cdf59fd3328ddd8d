"""Policies of real checkpoints in an outage, on recorded frames."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.instruction import NAME, build_home
from tests.fixtures.policy import tiny_train_config
from tests.rollouts.test_checkpoint_policy import CPU, DrawnSuite, Home, Playback, config, opened
from world_modality.acting.episode_memory import is_observed
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run as train

OUTAGE = {"outage_length": 5, "outage_start": (3, 3), "max_steps": 12}
DARK = range(3, 8)
PAST = {"world_history": 2, "world_history_stride": 3}
KINDS = {
    "A": ("A", {"observation_dropout": 0.5}),
    "C": ("C", {"observation_dropout": 0.5}),
    "past": ("C", {"observation_dropout": 0.5, "context_stride": 3, **PAST}),
    "dummy": ("C", {"observation_dropout": 0.5, "token_control": "dummy"}),
    "always sees": ("C", {}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    build_home(folder)
    cache = Cache(folder / "cache", NAME)
    source = open_dataset(NAME, dataset_root=folder / NAME)
    images = frames_at(source, "observation.image", np.arange(source.num_frames))
    observations = [
        {"observation.image": image, "observation.state": np.array(state)}
        for image, state in zip(images, cache.load("states"), strict=True)
    ]
    return Home(cache, observations, folder, folder, folder, folder)


@pytest.fixture(scope="module")
def checkpoints(home, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train(
            tiny_train_config(home.cache, folder / name, arm, num_epochs=4, **flags)
        ).checkpoint
        for name, (arm, flags) in KINDS.items()
    }


def in_the_dark(home, episode=1):
    return dataclasses.replace(home.spec(episode), outage_start=3, outage_length=5)


def played(policy, home, until=12, change=None):
    """Return what an episode's policy does, and which world tokens it reads."""
    playback = Playback(policy, home, 1, in_the_dark(home))
    actions, tokens = [], []
    for step in range(0, until, policy.n_action_steps):
        query = playback.query(step)
        if change is not None:
            for number in DARK:
                if number in query.frames:
                    query.frames[number] = change(query.frames[number])
        policy._observe([query])
        if policy.acting.world is not None:
            tokens.append(np.array(query.memory.world_tokens(step)).tolist())
        actions += policy.acting.act([query.memory], [step])
    return np.concatenate(actions), tokens


def reference(home, path, policy, mode, until=12):
    """Play the same episode with the network itself on the cache's rows."""
    network = load_checkpoint(path, CPU).build_policy(CPU)
    tensors, window = FrameTensors.from_cache(home.cache, CPU), network.config.window
    first, known, actions, read = home.first_frame(1), {}, [], []
    noted: dict[int, int] = {}
    step_before = -1
    for step in range(0, until, policy.n_action_steps):
        for frame in range(step_before + 1, step + 1):
            if not is_observed(frame, policy):
                continue
            if mode == "true_token" or frame not in DARK:
                known[frame] = int(tensors.world_tokens[first + frame])
            noted[frame] = known[max(k for k in known if k <= frame)]
        step_before = step
        rows = [max(step - lag, 0) for lag in window.context_lags]
        tokens = [noted[max(step - lag, 0)] for lag in window.world_lags]
        read.append(tokens if len(tokens) > 1 else tokens[0])
        with torch.inference_mode():
            output = network(
                tensors.embeddings[[first + row for row in rows]][None],
                tensors.states[[first + row for row in rows]][None],
                torch.tensor(tokens)[None] if len(tokens) > 1 else torch.tensor(tokens),
                None,
                torch.tensor([[row in DARK for row in rows]]),
            )
        if mode == "own_prediction":
            for k, token in enumerate(output.world_logits[0].argmax(-1).tolist(), start=1):
                known[step + k * window.future_stride] = token
        chunk = network.action_norm.inverse(output.actions)[0].numpy()
        actions.append(np.clip(chunk[: policy.n_action_steps], -1, 1))
    return np.concatenate(actions), read


@pytest.mark.parametrize("kind", ["C", "past"])
@pytest.mark.parametrize("mode", ["own_prediction", "hold", "true_token"])
@pytest.mark.parametrize("n_action_steps", [1, 2, 4])
def test_it_acts_as_the_network_does_with_masked_frames_and_those_tokens(
    home, checkpoints, kind, mode, n_action_steps
):
    path = checkpoints[kind]
    policy = opened(path, world_input=mode, n_action_steps=n_action_steps, **OUTAGE)
    actions, tokens = played(policy, home)
    expected, expected_tokens = reference(home, path, policy, mode)
    assert tokens == expected_tokens
    # The embedding pass computes 64 frames at a time, which moves some by one float16 step.
    np.testing.assert_allclose(actions, expected, atol=2e-4)


def test_the_inputs_of_the_dark_differ_and_nothing_before_it_does(home, checkpoints):
    tokens = {}
    for mode in ("own_prediction", "hold", "true_token"):
        policy = opened(checkpoints["C"], world_input=mode, n_action_steps=1, **OUTAGE)
        tokens[mode] = played(policy, home)[1]
    assert tokens["hold"][3:8] == [tokens["hold"][2]] * 5
    assert len(set(tokens["true_token"][2:8])) > 1, "the recording has to change meanwhile"
    assert tokens["own_prediction"][3:8] != tokens["hold"][3:8]
    for mode in ("own_prediction", "hold"):
        assert tokens[mode][:3] == tokens["true_token"][:3]
        assert tokens[mode][8:] == tokens["true_token"][8:]


@pytest.mark.parametrize("kind", ["A", "C", "past", "dummy"])
def test_nothing_of_a_dark_image_reaches_a_policy_that_was_trained_for_it(home, checkpoints, kind):
    policy = opened(checkpoints[kind], world_input="own_prediction", n_action_steps=2, **OUTAGE)

    def noise(seen):
        image = np.random.default_rng(0).integers(0, 255, seen["observation.image"].shape)
        return {**seen, "observation.image": image.astype(np.uint8)}

    def moved(seen):
        return {**seen, "observation.state": seen["observation.state"] + 0.1}

    shown, changed, elsewhere = (played(policy, home, change=c)[0] for c in (None, noise, moved))
    assert shown.tobytes() == changed.tobytes()
    assert shown.tobytes() != elsewhere.tobytes(), "the robot's state is still seen"


def test_a_policy_that_was_not_gets_what_it_is_shown_and_says_so(home, checkpoints, capsys):
    policy = opened(checkpoints["always sees"], n_action_steps=2, **OUTAGE)
    said = capsys.readouterr().out
    assert "trained without --observation_dropout: in the dark it is given black images" in said
    assert "it reads the world token of a black image" in said
    black = played(
        policy,
        home,
        change=lambda seen: {**seen, "observation.image": np.zeros_like(seen["observation.image"])},
    )
    assert played(policy, home)[0].tobytes() != black[0].tobytes()


def test_a_memory_does_not_grow_in_the_dark(home, checkpoints):
    policy = opened(checkpoints["past"], world_input="own_prediction", n_action_steps=1, **OUTAGE)
    playback = Playback(policy, home, 1, in_the_dark(home))
    for step in range(12):
        policy.act([playback.query(step)])
    known = playback.memory.imagined._known
    assert len(known) <= 3 * 2 + 6 + 2
    assert min(known) >= 12 - 7


@pytest.mark.parametrize("mode", ["own_prediction", "hold"])
def test_other_episodes_of_the_call_change_no_bit(home, checkpoints, mode):
    policy = opened(checkpoints["C"], world_input=mode, policy_batch_size=4, **OUTAGE)
    alone = {}
    for order in ([1], [3], [1, 3, 0], [3, 1]):
        playbacks = [Playback(policy, home, e, in_the_dark(home, e)) for e in order]
        answers = [
            policy.act([playback.query(step) for playback in playbacks]) for step in (0, 4, 8)
        ]
        for position, episode in enumerate(order):
            found = np.concatenate([answer[position] for answer in answers]).tobytes()
            assert alone.setdefault(episode, found) == found


def test_without_an_outage_the_policy_is_the_same_to_the_last_bit(home, checkpoints):
    policy, other = (opened(checkpoints["C"], n_action_steps=2, **flags) for flags in ({}, OUTAGE))
    spec = dataclasses.replace(home.spec(1), outage_start=400, outage_length=5)
    found = []
    for one, episode in ((policy, home.spec(1)), (other, spec)):
        playback = Playback(one, home, 1, episode)
        found.append(
            np.concatenate([one.act([playback.query(step)])[0] for step in range(0, 12, 2)])
        )
    assert found[0].tobytes() == found[1].tobytes()
    assert "world_input" not in policy.record()
    assert other.record()["world_input"] == "own"


@pytest.mark.parametrize("kind", ["A", "dummy"])
def test_an_arm_without_a_token_of_its_own_says_that_nothing_changes(
    home, checkpoints, kind, capsys
):
    policy = opened(checkpoints[kind], world_input="hold", **OUTAGE)
    assert "--world_input hold changes nothing for arm" in capsys.readouterr().out
    assert "world_input" not in policy.record()
    plain = opened(checkpoints[kind], **OUTAGE)
    assert played(policy, home)[0].tobytes() == played(plain, home)[0].tobytes()


def test_a_policy_that_would_see_in_the_dark_is_refused(home, checkpoints):
    with pytest.raises(InvalidInputError, match="has to be masked; train with --observation_dr"):
        opened(checkpoints["always sees"], world_input="true_token", **OUTAGE)


def test_predictions_that_do_not_reach_the_next_query_are_refused(home, tmp_path):
    short = train(
        tiny_train_config(home.cache, tmp_path, "C", observation_dropout=0.5, future_offset=1)
    ).checkpoint
    with pytest.raises(InvalidInputError, match="with --n_action_steps 4 it would need that of 4"):
        opened(short, world_input="own_prediction", **OUTAGE)
    opened(short, world_input="hold", **OUTAGE)


def test_a_policy_that_does_not_predict_the_tokens_it_reads_is_refused(home, tmp_path):
    flags = {"observation_dropout": 0.5, "world_target": ("embedding",)}
    other = train(tiny_train_config(home.cache, tmp_path, "C", **flags)).checkpoint
    with pytest.raises(InvalidInputError, match=r"does not predict .* \(--world_target embedding,"):
        opened(other, world_input="own_prediction", **OUTAGE)
    opened(other, world_input="hold", **OUTAGE)


def test_a_choice_that_means_nothing_is_refused(home, checkpoints):
    for flags, message in (
        ({"world_input": "hold"}, "--world_input hold has no effect without --outage_length"),
        ({"world_input": "hold", "corrupt_world": "uniform", **OUTAGE}, "give one of them"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            config(checkpoints["C"], **flags)


def test_where_no_policy_reads_its_own_token_the_evaluation_is_refused(home, checkpoints, tmp_path):
    from benchmarks.rollouts.evaluation import evaluate

    asked = config(checkpoints["A"], world_input="own_prediction", out_dir=tmp_path, **OUTAGE)
    with pytest.raises(InvalidInputError, match=r"no checkpoint reads its own \(arm A\)"):
        evaluate(DrawnSuite(), [dataclasses.replace(home.spec(1), max_steps=20)], asked)


def test_an_outage_that_may_hide_nothing_is_noted(home, checkpoints, capsys):
    opened(checkpoints["A"], n_action_steps=4, **OUTAGE)
    assert "between two looks" not in capsys.readouterr().out
    opened(checkpoints["A"], n_action_steps=4, **OUTAGE | {"outage_length": 3})
    said = capsys.readouterr().out
    assert "looks every 4 frames (--n_action_steps): an outage of 3 may lie between two" in said
