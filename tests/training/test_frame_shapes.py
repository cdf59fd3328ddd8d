"""Frames of several vectors (views, cells) and of several world tokens (slots), trained on."""

import numpy as np
import pytest
import torch

from tests.fixtures.policy import tiny_policy_config
from world_modality.arms import MODEL_TYPES
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.cache.frame_tensors import IGNORED_TOKEN, FrameTensors
from world_modality.evaluation.metrics import token_sums, world_metrics
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.config import TrainConfig
from world_modality.policy.network import WorldPolicy
from world_modality.policy.predictions import predict
from world_modality.source.episodes import Episodes
from world_modality.tokens.control_tokens import TokenControl
from world_modality.tokens.statistics import BigramBaseline
from world_modality.training.trainer import Trainer, fit_standardizers

CPU = torch.device("cpu")
VIEWS, GRID, SLOTS = 1, 2, 2
SEVERAL = {"num_views": VIEWS, "grid_size": GRID, "num_world_slots": SLOTS}
NUM_FRAMES = 60


@pytest.fixture
def tensors():
    """Return frames of P = 4 vectors and W = 2 tokens, in three episodes of two tasks."""
    rng = np.random.default_rng(0)
    arrays = {
        "embeddings": rng.normal(size=(NUM_FRAMES, 4, 6)).astype(np.float16),
        "states": rng.normal(size=(NUM_FRAMES, 4)).astype(np.float32),
        "actions": rng.normal(size=(NUM_FRAMES, 3)).astype(np.float32),
        "world_tokens": rng.integers(0, 8, (NUM_FRAMES, SLOTS), dtype=np.int32),
    }
    index = np.arange(NUM_FRAMES) // 20
    observation = ObservationShape(6, VIEWS, GRID)
    return FrameTensors(
        arrays, Episodes.from_frames(index, 0 * index), CPU, observation=observation
    )


def build(model_type, **changes):
    torch.manual_seed(0)
    return WorldPolicy(tiny_policy_config(model_type, **SEVERAL, **changes)).eval()


def test_windows_hold_all_vectors_and_all_slots(tensors):
    policy = build("C")
    assert tensors.frame_shape(8) == policy.config.frame
    batch = tensors.gather(torch.tensor([1, 18]), policy.config.window)
    assert torch.equal(batch.embeddings[0, :, :], tensors.embeddings[[0, 1]])
    assert torch.equal(batch.world_tokens, tensors.world_tokens[[1, 18]].long())
    assert torch.equal(batch.future_tokens[0], tensors.world_tokens[[3, 5, 7]].long())
    assert (batch.future_tokens[1] == IGNORED_TOKEN).all()


def test_embeddings_of_another_shape_than_the_observation_are_refused(tensors):
    arrays = {"embeddings": tensors.embeddings.numpy()}
    with pytest.raises(ValueError, match=r"shape \(4, 6\), expected \(6,\)"):
        FrameTensors(arrays, tensors.episodes, CPU)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_training_of_several_vectors_and_slots_learns_each_slot(tensors, model_type):
    policy = build(model_type)
    frames = np.arange(16)
    fit_standardizers(policy, tensors, frames)
    flags = {"num_epochs": 150, "batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 0}
    config = TrainConfig("x", model_type=model_type, **flags)
    trainer = Trainer(policy, tensors, frames, config)
    losses = [next(trainer.epoch(epoch)).losses for epoch in range(150)]
    assert losses[-1].action < 0.1 * losses[0].action
    assert losses[0].world.shape == (SLOTS,)
    if policy.config.predicts_world:
        assert (losses[-1].world < 0.2 * losses[0].world).all()
        total = losses[0].action + config.world_loss_weight * losses[0].world.mean()
        torch.testing.assert_close(losses[0].total, total)
    errors = predict(policy, tensors, frames)
    if policy.config.predicts_world:
        assert errors.token_rank.shape == (16, 3, SLOTS)
        assert (errors.token_rank == 0).mean() > 0.9
    else:
        assert errors.token_rank is None


def test_every_vector_and_every_slot_is_read_at_its_own_place(tensors):
    policy = build("C")
    batch = tensors.gather(torch.arange(5), policy.config.window)

    def actions(embeddings=batch.embeddings, tokens=batch.world_tokens):
        return policy(embeddings, batch.states, tokens).actions

    before = actions()
    for vector in range(4):
        changed = batch.embeddings.clone()
        changed[:, -1, vector] += 1
        assert not torch.equal(actions(embeddings=changed), before)
    for slot in range(SLOTS):
        changed = batch.world_tokens.clone()
        changed[:, slot] = (changed[:, slot] + 1) % 8
        assert not torch.equal(actions(tokens=changed), before)
    assert not torch.equal(actions(embeddings=batch.embeddings.flip(2)), before)
    assert not torch.equal(actions(tokens=batch.world_tokens.flip(1)), before)


def test_one_vector_and_one_token_have_no_weights_of_their_own_place():
    one = WorldPolicy(tiny_policy_config("C")).state_dict()
    several = build("C").state_dict()
    assert several.keys() - one.keys() == {"view_position", "cell_position"}
    assert one["world_embedding.weight"].shape == (8, 32)
    assert several["world_embedding.weight"].shape == (SLOTS * 8, 32)


@pytest.mark.parametrize("name", ["placebo", "dummy", "oracle", "shuffled"])
def test_controls_change_all_slots_and_keep_those_of_a_frame_together(tensors, name):
    window = build("C").config.window
    control = TokenControl(name, tensors, np.arange(NUM_FRAMES), 0)
    batch = control.gather(torch.arange(16), window, 0)
    assert batch.world_tokens.shape == (16, SLOTS)
    assert batch.future_tokens.shape == (16, 3, SLOTS)
    own, rows = tensors.world_tokens, {tuple(row) for row in tensors.world_tokens.tolist()}
    read = batch.world_tokens if name != "placebo" else batch.future_tokens[:10].flatten(0, 1)
    if name == "dummy":
        assert (read == 0).all()
    else:
        assert {tuple(row) for row in read.tolist()} <= rows
    if name == "oracle":
        assert torch.equal(read, own[(torch.arange(16) + 6).clamp(max=19)].long())
    elif name == "placebo":
        ahead = own[torch.arange(10)[:, None] + torch.tensor([2, 4, 6])].long().flatten(0, 1)
        assert (read != ahead).any(dim=0).all()
    else:
        assert (read != own[:16]).any(dim=0).all()


@pytest.fixture
def offline(tensors):
    """Return an untrained B opened on these frames, and its errors on the last episode."""
    run = object.__new__(OfflineRun)
    parts = {"tensors": tensors, "policy": build("B"), "train_ids": [0, 1], "val_ids": [2]}
    for name, part in parts.items():
        object.__setattr__(run, name, part)
    return run, predict(run.policy, tensors, run.val_frames)


def test_each_slot_is_scored_by_itself_and_against_baselines_of_its_own(tensors, offline):
    run, errors = offline
    tokens = tensors.world_tokens.numpy()
    inside = run.val_frames[:-2]
    metrics = world_metrics(run, errors, seed=0)
    by_slot = {f"{subset}_slot{slot}" for subset in ("all", "changed") for slot in range(SLOTS)}
    assert metrics.keys() == {"all", "changed"} | by_slot
    nats = []
    for slot in range(SLOTS):
        first = metrics[f"all_slot{slot}"][0]
        own, ahead = tokens[inside, slot], tokens[inside + 2, slot]
        assert first.num_frames == len(inside)
        assert first.accuracy["copy_top1"].value == pytest.approx((own == ahead).mean())
        hits = errors.token_rank[:-2, 0, slot] == 0
        assert first.accuracy["model_top1"].value == pytest.approx(hits.mean())
        pairs = (tokens[:, slot], tensors.episodes, run.train_ids, 2, 8)
        bigram = BigramBaseline.fit(*pairs)
        top = bigram.top(own, 1)[:, 0]
        assert first.accuracy["bigram_top1"].value == pytest.approx((top == ahead).mean())
        expected = bigram.nats(own, ahead).mean()
        assert first.cross_entropy["bigram"].value == pytest.approx(expected)
        nats.append(first.cross_entropy["model"].value)
        changed = metrics[f"changed_slot{slot}"][0]
        assert changed.num_frames == (own != ahead).sum()
    with torch.no_grad():
        batch = tensors.gather(torch.from_numpy(inside), run.policy.config.window)
        logits = run.policy(batch.embeddings, batch.states, batch.world_tokens).world_logits
    for slot in range(SLOTS):
        expected = torch.nn.functional.cross_entropy(
            logits[:, 0, slot], batch.future_tokens[:, 0, slot]
        )
        assert nats[slot] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["all"][0].cross_entropy["model"].value == pytest.approx(np.mean(nats))


def test_token_accuracies_count_every_slot(tensors, offline):
    run, errors = offline
    first = world_metrics(run, errors, seed=0)["all"][0]
    tokens = tensors.world_tokens.numpy()
    inside = run.val_frames[:-2]  # two frames ahead are still of the episode
    hits = errors.token_rank[:-2, 0] == 0
    assert first.num_frames == len(inside) * SLOTS
    assert first.accuracy["model_top1"].value == pytest.approx(hits.mean())
    copied = tokens[inside] == tokens[inside + 2]
    assert first.accuracy["copy_top1"].value == pytest.approx(copied.mean())
    assert token_sums(run, errors)["top1_hits_all"][0] == [hits.sum()]


@pytest.mark.parametrize("observation_tokens", ["view", "frame"])
def test_several_cells_make_one_token_in_their_order(tensors, observation_tokens):
    shapes = {"num_views": 2, "grid_size": 2, "observation_tokens": observation_tokens}
    policy = WorldPolicy(tiny_policy_config("A", **shapes)).eval()
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(3, 2, 8, 6, generator=generator)
    states = torch.randn(3, 2, 4, generator=generator)
    tokens = torch.zeros(3, dtype=torch.long)
    num_tokens = 2 if observation_tokens == "view" else 1
    assert policy._kinds()["obs"] == 2 * num_tokens
    by_hand = policy.embedding_in(policy.embedding_norm(embeddings).reshape(3, 2, num_tokens, -1))
    by_hand = by_hand + policy.state_in(policy.state_norm(states))[:, :, None]
    by_hand = by_hand + policy.obs_position[:, None]
    if num_tokens > 1:
        by_hand = by_hand + policy.view_position + policy.cell_position
    torch.testing.assert_close(policy._observation(embeddings, states, None), by_hand.flatten(1, 2))
    before = policy(embeddings, states, tokens).actions
    swapped = policy(embeddings.flip(2), states, tokens).actions
    assert (before - swapped).abs().max() > 1e-4
