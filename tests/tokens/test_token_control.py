"""What control arms read and predict, in training, evaluation and corruption."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import (
    assert_same_weights,
    synthetic_tensors,
    tiny_policy_config,
    tiny_train_config,
    weights,
)
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as evaluate
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.intervention_corrupt_world import CorruptWorldConfig
from world_modality.intervention_corrupt_world import run as corrupt
from world_modality.policy.config import TrainConfig
from world_modality.policy.network import WorldPolicy
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.control_tokens import OtherEpisodes, TokenControl
from world_modality.training.single import run
from world_modality.training.trainer import Trainer

SHAPE = WindowShape(context_frames=2, chunk_size=4, future_offset=3, future_stride=2)
CONTROLS = [("B", "placebo"), ("C", "dummy"), ("C", "shuffled"), ("C", "oracle")]


@pytest.fixture
def tensors(tmp_path):
    return synthetic_tensors(tmp_path, SyntheticSpec(slip=0.3))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_synthetic_cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def trained(cache, tmp_path_factory):
    """A training of each control, by its name."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        name: run(tiny_train_config(cache, folder / name, model_type, token_control=name))
        for model_type, name in CONTROLS
    }


def control(name: Any, tensors: FrameTensors, seed: int = 0, frames: Any = None) -> TokenControl:
    if frames is None:
        frames = np.arange(tensors.episodes.num_frames)
    return TokenControl(name, tensors, frames, seed)


def test_the_placebo_asks_for_the_episodes_own_tokens_in_another_order(tensors):
    frames = torch.arange(tensors.episodes.num_frames)
    one_ahead = dataclasses.replace(SHAPE, future_offset=1, future_stride=1)
    asked = control("placebo", tensors).gather(frames, one_ahead, 0).future_tokens[:, 0]
    true = tensors.gather(frames, one_ahead).future_tokens[:, 0]
    assert (asked != true).float().mean() > 0.5
    for start, end in zip(tensors.episodes.starts, tensors.episodes.ends, strict=True):
        of_episode = set(tensors.world_tokens[start:end].tolist())
        assert set(asked[start : end - 1].tolist()) <= of_episode
    assert torch.equal(asked == -100, true == -100)


@pytest.mark.parametrize("name", [name for _, name in CONTROLS])
def test_a_control_leaves_everything_but_tokens(tensors, name):
    frames = torch.arange(60)
    found = control(name, tensors).gather(frames, SHAPE, 0).tensors()
    own = tensors.gather(frames, SHAPE).tensors()
    changed = {field for field, value in own.items() if not torch.equal(found[field], value)}
    # What the placebo's arm, B, does not read is shuffled together with what it predicts.
    assert changed == {"world_tokens"} | ({"future_tokens"} if name == "placebo" else set())


def test_another_frame_is_of_the_same_task_and_of_another_training_episode(tensors):
    episodes = tensors.episodes
    pool = episodes.frames_of(episodes.ids[:12].tolist())
    everywhere = np.arange(episodes.num_frames)
    others = OtherEpisodes(episodes, pool)
    task, rng = episodes.tasks[episodes.of_frame], np.random.default_rng(0)
    drawn = np.stack([others.draw(everywhere, rng) for _ in range(400)])
    assert (task[drawn] == task).all()
    assert np.isin(drawn, pool).all()
    assert (episodes.of_frame[drawn] != episodes.of_frame).all()
    for frame in (0, everywhere[-1]):  # of a training and of a validation episode
        allowed = pool[(task[pool] == task[frame])]
        allowed = allowed[episodes.of_frame[allowed] != episodes.of_frame[frame]]
        assert set(drawn[:, frame]) <= set(allowed)
        assert len(set(drawn[:, frame])) > 0.8 * len(allowed)


def test_a_task_with_one_training_episode_has_no_other(tensors):
    episodes = tensors.episodes
    with pytest.raises(InvalidInputError, match="other training episodes of a task"):
        OtherEpisodes(episodes, episodes.frames_of(episodes.ids[:1].tolist()))


def test_shuffled_tokens_are_drawn_again_each_step_and_alike_on_repetition(tensors):
    frames = torch.arange(100)
    one, again = control("shuffled", tensors), control("shuffled", tensors)
    first, second = (one.gather(frames, SHAPE, step).world_tokens for step in (1, 2))
    assert torch.equal(first, again.gather(frames, SHAPE, 1).world_tokens)
    assert not torch.equal(first, second)
    val = np.arange(100)
    assert np.array_equal(one.evaluation_tokens(val, SHAPE), again.evaluation_tokens(val, SHAPE))


@pytest.mark.parametrize("name", [name for _, name in CONTROLS])
def test_a_part_of_a_batch_reads_what_the_whole_batch_reads_there(tensors, name):
    frames = torch.arange(100)
    whole = control(name, tensors).gather(frames, SHAPE, 1)
    parts = [
        control(name, tensors).gather(frames, SHAPE, 1, p) for p in (slice(0, 37), slice(37, 100))
    ]
    for field in ("world_tokens", "future_tokens", "actions", "embeddings"):
        joined = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(joined, getattr(whole, field))


def test_the_oracle_reads_the_last_token_that_the_future_loss_asks_for(tensors):
    frames = torch.arange(tensors.episodes.num_frames)
    batch = control("oracle", tensors).gather(frames, SHAPE, 0)
    inside = batch.future_tokens[:, -1] != -100
    assert torch.equal(batch.world_tokens[inside], batch.future_tokens[inside, -1])
    last = tensors.episodes.ends[tensors.episodes.of_frame] - 1
    assert torch.equal(batch.world_tokens[~inside], tensors.world_tokens[last][~inside].long())


@pytest.mark.parametrize(("model_type", "name"), CONTROLS)
def test_only_the_oracle_sees_frames_after_t(tmp_path, model_type, name):
    spec = SyntheticSpec(slip=0.3)
    own = synthetic_tensors(tmp_path / "own", spec)
    changed = synthetic_tensors(tmp_path / "changed", spec)
    start, end = own.episodes.starts[3], own.episodes.ends[3]
    at = start + 4
    after = slice(at + 1, end)
    changed.embeddings[after] += 1
    changed.states[after] += 1
    changed.world_tokens[after] = (changed.world_tokens[after] + 1) % spec.num_tokens
    policy = WorldPolicy(tiny_policy_config(model_type)).eval()
    outputs = []
    for tensors in (own, changed):
        frames = np.array([at])
        read = control(name, tensors).evaluation_tokens(frames, SHAPE)
        batch = tensors.gather(torch.from_numpy(frames), SHAPE)
        tokens = batch.world_tokens if read is None else torch.from_numpy(read).long()
        with torch.inference_mode():
            outputs.append(policy(batch.embeddings, batch.states, tokens).actions)
    assert torch.equal(*outputs) == (name != "oracle")


@pytest.mark.parametrize(("model_type", "name"), CONTROLS)
def test_a_control_starts_from_its_arms_weights_and_sees_its_arms_data_order(
    cache, tmp_path, monkeypatch, model_type, name
):
    visited: dict[str, list[list[int]]] = {}
    started = {}
    step = Trainer.step

    def spy(self, frames):
        key = self.config.token_control
        if key not in started:
            started[key] = {k: v.clone() for k, v in self.policy.state_dict().items()}
        visited.setdefault(key, []).append(frames.tolist())
        return step(self, frames)

    monkeypatch.setattr(Trainer, "step", spy)
    own, controlled = (
        weights(
            run(tiny_train_config(cache, tmp_path / key, model_type, token_control=key)).checkpoint
        )
        for key in ("none", name)
    )
    assert visited["none"] == visited[name]
    assert_same_weights(started["none"], started[name])
    assert any(not torch.equal(own[k], controlled[k]) for k in own)


def test_a_killed_control_goes_on_as_if_it_had_not_been(cache, tmp_path, trained):
    config = tiny_train_config(cache, tmp_path / "parts", "C", token_control="shuffled")
    run(config).checkpoint.unlink()
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(resumed.checkpoint), weights(trained["shuffled"].checkpoint))
    with pytest.raises(InvalidInputError, match="--token_control shuffled then, none now"):
        run(dataclasses.replace(config, token_control="none", resume=True))


@pytest.mark.parametrize("name", [name for _, name in CONTROLS])
def test_offline_evaluation_applies_the_control_that_the_checkpoint_carries(cache, trained, name):
    result = trained[name]
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    report = evaluate(EvalOfflineConfig(result.checkpoint, **where))
    assert report.run["token_control"] == name
    # The trainer's own validation reads the same tokens.
    assert report.actions["model"]["mse"].value == pytest.approx(
        result.metrics["val_action_mse"], rel=1e-5
    )
    opened = OfflineRun.open(EvalOfflineConfig(result.checkpoint, **where))
    tokens = opened.input_tokens()
    if name == "placebo":
        assert tokens is None
    elif name == "dummy":
        assert set(tokens.tolist()) == {0}
    else:
        assert (tokens != opened.tokens[opened.val_frames]).any()


@pytest.mark.parametrize("name", ["dummy", "shuffled", "oracle"])
def test_corrupting_a_token_that_is_not_read_changes_nothing(cache, trained, tmp_path, name):
    report = corrupt(
        CorruptWorldConfig(
            trained[name].checkpoint,
            cache.dataset_name,
            cache.cache_dir,
            out_dir=tmp_path,
            device="cpu",
            num_draws=2,
        )
    )
    ratios = {effect.ratio.value for effect in report.corruptions.values()}
    assert (ratios == {1.0}) == (name != "oracle")
    assert "other_episode" not in report.corruptions, "of a history alone"
    stored = json.loads((tmp_path / "corrupt_world.json").read_text("utf-8"))
    assert len(stored["episodes"]["clean"]) == len(cache.manifest["split"]["val"])


@pytest.mark.parametrize(
    ("model_type", "name"), [("A", "dummy"), ("B", "oracle"), ("C", "placebo")]
)
def test_a_control_of_another_arm_is_refused(model_type, name):
    with pytest.raises(InvalidInputError, match=f"--token_control {name} is a control of model"):
        TrainConfig("x", model_type=model_type, token_control=name)


PAST = dataclasses.replace(SHAPE, world_history=2, world_history_stride=3)


@pytest.mark.parametrize("name", ["dummy", "shuffled", "oracle"])
def test_a_control_reads_another_frame_with_that_frames_own_past(tensors, name):
    frames = torch.arange(100)
    read = control(name, tensors).gather(frames, PAST, 1).world_tokens
    newest = control(name, tensors).gather(frames, SHAPE, 1).world_tokens
    assert read.shape == (100, 3)
    assert torch.equal(read[:, -1], newest)
    evaluated = control(name, tensors).evaluation_tokens(frames.numpy(), PAST)
    streams = {
        tuple(row) for row in tensors.gather(everywhere(tensors), PAST).world_tokens.tolist()
    }
    for rows in (read, torch.from_numpy(evaluated)):
        if name == "dummy":
            assert not rows.any()
        else:
            assert {tuple(row) for row in rows.tolist()} <= streams
            assert (rows != tensors.gather(frames, PAST).world_tokens).any(dim=0).all()


def everywhere(tensors: FrameTensors) -> torch.Tensor:
    return torch.arange(tensors.episodes.num_frames)


@pytest.mark.parametrize("name", ["none", "shuffled"])
def test_a_history_is_trained_evaluated_and_corrupted(cache, tmp_path, name):
    past = {"world_history": 2, "world_history_stride": 3, "context_stride": 2}
    result = run(tiny_train_config(cache, tmp_path / "log", "C", token_control=name, **past))
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "device": "cpu"}
    report = evaluate(EvalOfflineConfig(result.checkpoint, **where))
    assert report.actions["model"]["mse"].value == pytest.approx(
        result.metrics["val_action_mse"], rel=1e-5
    )
    config = CorruptWorldConfig(result.checkpoint, num_draws=2, out_dir=tmp_path, **where)
    corruptions = corrupt(config).corruptions
    ratios = {effect.ratio.value for effect in corruptions.values()}
    assert (ratios == {1.0}) == (name == "shuffled")
    assert "other_episode" in corruptions


@pytest.mark.parametrize(
    "past", [{"world_history": 9, "world_history_stride": 8}, {"context_stride": 72}]
)
def test_a_past_longer_than_any_episode_is_refused(cache, tmp_path, past):
    with pytest.raises(InvalidInputError, match=r"72 frames back, but the longest episode has \d"):
        run(tiny_train_config(cache, tmp_path / "log", "C", **past))
