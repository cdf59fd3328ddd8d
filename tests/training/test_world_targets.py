"""Targets beside the token: what is asked for, what each control gets, and that it is learned."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import (
    IGNORED_TOKEN,
    FrameTensors,
    ReadAhead,
    mean_and_std,
)
from world_modality.policy.checkpoint import load_checkpoint, newest_first
from world_modality.policy.config import flags_of, from_flags
from world_modality.policy.heads import vector_loss
from world_modality.policy.network import WorldPolicy
from world_modality.precompute_change_tokens import ChangeTokensConfig
from world_modality.precompute_change_tokens import run as make_change_tokens
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.control_tokens import TokenControl
from world_modality.train import SeedsConfig
from world_modality.train import run as train_seeds
from world_modality.training.single import load_frames, run
from world_modality.training.trainer import Trainer, fit_standardizers

CPU = torch.device("cpu")
ALL = ("token", "embedding", "embedding_change", "change_token")
NUM_CHANGES = 11


def with_changes(folder, spec=None):
    cache = write_synthetic_cache(folder, spec or SyntheticSpec(slip=0.2))
    flags = {"future_offset": 3, "future_stride": 2, "change_tokens": NUM_CHANGES}
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir}
    make_change_tokens(ChangeTokensConfig(**where, **flags, device="cpu"))
    return Cache(cache.cache_dir, cache.dataset_name)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return with_changes(tmp_path_factory.mktemp("targets"))


@pytest.fixture
def config(cache, tmp_path):
    def of(model_type="B", **changes):
        return tiny_train_config(cache, tmp_path / "logs", model_type, **changes)

    return of


@pytest.fixture
def tensors(config):
    return load_frames(config(world_target=ALL), CPU)


def test_targets_are_those_of_the_frames_ahead_and_masked_where_tokens_are(cache, config, tensors):
    shape = config().window
    frames = torch.arange(tensors.episodes.num_frames)
    batch = tensors.gather(frames, shape)
    embeddings = np.array(cache.load("embeddings"), dtype=np.float32)
    for frame in frames.tolist():
        end = int(tensors.episodes.ends[tensors.episodes.of_frame[frame]])
        for step in range(3):
            ahead = frame + 2 * (step + 1)
            there = embeddings[min(ahead, end - 1)]
            np.testing.assert_array_equal(batch.future_embeddings[frame, step], there)
            np.testing.assert_array_equal(
                batch.embedding_changes[frame, step], there - embeddings[frame]
            )
            assert (batch.future_tokens[frame, step] == IGNORED_TOKEN) == (ahead >= end)
        is_past = frame + 6 >= end
        expected = IGNORED_TOKEN if is_past else cache.load("change_tokens")[frame]
        assert batch.change_tokens[frame] == expected


def test_from_the_disk_targets_are_the_same_in_training_order(config, tensors):
    on_disk = load_frames(config(world_target=ALL, embeddings_on="disk"), CPU)
    batches = torch.randperm(len(tensors.states), generator=torch.Generator()).split(50)
    for chosen in on_disk.ahead(list(batches), config().window):
        found = on_disk.gather(chosen, config().window).tensors()
        for name, value in tensors.gather(chosen, config().window).tensors().items():
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("place", ["device", "disk"])
def test_the_placebo_asks_for_what_lies_ahead_of_another_frame_of_the_episode(config, place):
    asked = config(world_target=ALL, embeddings_on=place, token_control="placebo")
    tensors = load_frames(asked, CPU)
    control = TokenControl("placebo", tensors, np.arange(len(tensors.states)), 0)
    window, apart = asked.window, load_frames(asked, CPU)
    own = tensors.gather(torch.arange(len(tensors.states)), window)
    for chosen in control.ahead(torch.arange(len(tensors.states)).split(40), window):
        batch, true = control.gather(chosen, window, 0), apart.gather(chosen, window)
        assert torch.equal(batch.embeddings, true.embeddings)
        for name in ("future_embeddings", "embedding_changes", "change_tokens"):
            assert not torch.equal(getattr(batch, name), getattr(true, name)), name
        episode = tensors.episodes.of_frame[chosen]
        for row, frame in enumerate(chosen.tolist()):
            mates = np.flatnonzero(tensors.episodes.of_frame == episode[row])
            changes = own.embedding_changes[mates]
            assert (changes == batch.embedding_changes[row]).all(dim=(1, 2)).any(), frame
        assert torch.equal(batch.future_tokens == IGNORED_TOKEN, true.future_tokens < 0)


def test_a_training_takes_what_was_read_ahead(config, monkeypatch):
    asked = config(world_target=("embedding",), embeddings_on="disk")
    tensors = load_frames(asked, CPU)
    taken = []
    take = ReadAhead.take

    def noting(self, frames):
        taken.append(take(self, frames))
        return taken[-1]

    monkeypatch.setattr(ReadAhead, "take", noting)
    list(small_trainer(asked, tensors, np.arange(40)).epoch(0))
    assert len(taken) == 2
    assert all("future_embeddings" in rows for rows in taken)


@pytest.mark.parametrize(
    ("target", "loss"),
    [
        (("embedding",), "squared_error"),
        (("embedding",), "cosine"),
        (("embedding_change",), "squared_error"),
        (("change_token",), "squared_error"),
        (ALL, "cosine"),
    ],
)
def test_each_target_is_learned_by_its_own_loss(config, target, loss):
    loss = {} if loss == "squared_error" else {"world_target_loss": loss}
    flags = {"learning_rate": 3e-3, "warmup_steps": 0, "num_epochs": 150, "batch_size": 16}
    flags["dropout"] = 0.0
    asked = config(world_target=target, **loss, **flags)
    tensors = load_frames(asked, CPU)
    trainer = small_trainer(asked, tensors, np.arange(16))
    losses = [next(trainer.epoch(epoch)).losses for epoch in range(150)]
    assert len(losses[0].world) == len(target)
    assert (losses[-1].world < 0.2 * losses[0].world).all()
    total = losses[0].action + asked.world_loss_weight * losses[0].world.sum()
    torch.testing.assert_close(losses[0].total, total)


def small_trainer(config, tensors, frames):
    torch.manual_seed(0)
    policy = WorldPolicy(config.policy_config(tensors.frame_shape(8)))
    fit_standardizers(policy, tensors, tensors.episodes.frames_of([0, 1, 2, 3]))
    return Trainer(policy, tensors, frames, config)


def test_losses_of_vectors_are_means_over_what_lies_inside_the_episode():
    true = torch.randn(2, 3, 5)
    predicted = true + torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])[..., None]
    inside = torch.tensor([[True, True, False], [True, False, False]])
    squared = vector_loss(predicted, true, inside, inside.sum(), "squared_error")
    assert squared.item() == pytest.approx((1 + 4 + 9) / 3, rel=1e-5)
    cosine = vector_loss(2 * true, true, inside, inside.sum(), "cosine")
    assert cosine.item() == pytest.approx(0, abs=1e-6)
    assert vector_loss(-true, true, inside, inside.sum(), "cosine").item() == pytest.approx(2)
    assert vector_loss(predicted, true, inside & False, torch.tensor(0), "cosine") == 0


def test_statistics_of_targets_are_those_of_training_frames(cache, config):
    policy = load_checkpoint(run(config(world_target=ALL)).checkpoint, CPU).build_policy(CPU)
    episodes = FrameTensors.from_cache(cache, CPU).episodes
    frames = episodes.frames_of(cache.manifest["split"]["train"])
    embeddings = np.array(cache.load("embeddings"), dtype=np.float64)
    assert torch.equal(policy.future_norm.mean, policy.embedding_norm.mean)
    assert torch.equal(policy.future_norm.std, policy.embedding_norm.std)
    for step in range(3):
        ahead = frames + 2 * (step + 1)
        inside = ahead < episodes.ends[episodes.of_frame[frames]]
        changes = embeddings[ahead[inside]] - embeddings[frames[inside]]
        np.testing.assert_allclose(policy.change_norm.mean[step], changes.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(policy.change_norm.std[step], changes.std(axis=0), rtol=1e-4)


@pytest.mark.parametrize("target", ALL)
def test_an_oracle_reads_the_true_target_of_the_last_step(config, target):
    asked = config("C", world_target=(target,), token_control="oracle")
    tensors = load_frames(asked, CPU)
    trainer = small_trainer(asked, tensors, np.arange(16))
    policy, frames = trainer.policy.eval(), torch.arange(4)
    batch = trainer.control.gather(frames, asked.window, 0)
    own = tensors.gather(frames, asked.window)
    given = policy.config.future_input

    def actions(tokens, future):
        return policy(batch.embeddings, batch.states, tokens, future=future).actions

    future = None if given is None else batch.vectors(given)
    before = actions(batch.world_tokens, future)
    if target == "token":
        assert torch.equal(batch.world_tokens, tensors.world_tokens[frames + 6].long())
    elif target == "change_token":
        assert torch.equal(batch.world_tokens, tensors.change_tokens[frames].long())
        assert not torch.equal(actions((batch.world_tokens + 1) % NUM_CHANGES, future), before)
    else:
        assert torch.equal(actions(own.world_tokens * 0, future), before), "w_t is not read"
        changed = future.clone()
        changed[:, :-1] += 1
        assert torch.equal(actions(own.world_tokens, changed), before)
        changed[:, -1] += 1
        assert not torch.equal(actions(own.world_tokens, changed), before)
        with pytest.raises(ValueError, match="give it the vectors ahead"):
            actions(own.world_tokens, None)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("B", {"world_target": ALL, "world_target_loss": "cosine"}),
        ("C", {"world_target": ("change_token",), "token_control": "oracle"}),
        ("C", {"world_target": ("embedding_change",), "token_control": "oracle"}),
        ("C", {"world_target": ("embedding",), "future_to_action": True, "labelled_fraction": 0.5}),
        ("B", {"world_target": ("embedding",), "token_control": "placebo"}),
    ],
)
def test_seeds_side_by_side_and_resumed_end_as_each_alone(config, tmp_path, model_type, changes):
    alone = config(model_type, dropout=0.1, num_epochs=2, seed=1, **changes)
    whole = run(alone)
    flags = flags_of(dataclasses.replace(alone, seed=0, log_dir=tmp_path / "seeds"))
    together = train_seeds(from_flags(SeedsConfig, flags | {"seeds": (0, 1)}))[1]
    assert together.metrics == whole.metrics
    assert_same_weights(weights(together.checkpoint), weights(whole.checkpoint))
    newest_first(alone.log_dir, model_type)[0].unlink()
    resumed = run(dataclasses.replace(alone, resume=True))
    assert_same_weights(weights(resumed.checkpoint), weights(together.checkpoint))


def test_several_views_have_the_first_views_pooled_embedding_as_their_target(tmp_path):
    spec = SyntheticSpec(num_views=2, grid_size=2, cell_dim=5)
    cache = with_changes(tmp_path, spec)
    asked = tiny_train_config(cache, tmp_path / "logs", "C", world_target=("embedding", "token"))
    tensors = load_frames(asked, CPU)
    batch = tensors.gather(torch.arange(5), asked.window)
    assert batch.embeddings.shape[2:] == (8, 5)
    pooled = torch.from_numpy(np.array(cache.load("embeddings")))
    assert torch.equal(batch.future_embeddings[:, 0], pooled[2:7])
    stored = load_checkpoint(run(asked).checkpoint, CPU).build_policy(CPU)
    frames = tensors.episodes.frames_of(cache.manifest["split"]["train"])
    assert torch.equal(stored.future_norm.mean, mean_and_std(pooled, frames)[0])


@pytest.mark.parametrize(
    ("model_type", "flags", "message"),
    [
        ("A", {"world_target": ("embedding",)}, "--world_target has no effect on model type A"),
        ("A", {"future_to_action": True}, "--future_to_action has no effect on model type A"),
        ("B", {"world_target": ()}, "needs one or several different ones of token, embedding"),
        ("B", {"world_target": ("token", "token")}, "needs one or several different ones"),
        ("B", {"world_target_loss": "cosine"}, "no effect without --world_target embedding"),
        ("B", {"future_noise": 1.0}, "no effect without --future_to_action"),
        (
            "C",
            {"future_to_action": True, "block_world_to_action": True},
            "lets it through the future",
        ),
        (
            "C",
            {"world_target": ("embedding",), "token_control": "oracle", "world_history": 2},
            "has no --world_history",
        ),
    ],
)
def test_flags_that_mean_nothing_are_refused(config, model_type, flags, message):
    with pytest.raises(InvalidInputError, match=message):
        config(model_type, **flags)


def test_a_horizon_beyond_every_training_episode_is_refused(config):
    asked = config(world_target=("embedding_change",), future_offset=30)
    with pytest.raises(InvalidInputError, match=r"no training episode is longer than the \d+"):
        run(asked)
