"""The future as an input to actions: the true one with noise in training, the predicted in use."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.fixtures.policy import tiny_policy_config
from world_modality.policy import network
from world_modality.policy.network import WorldPolicy

FUTURE = {"future_dim": 6, "future_to_action": True}


def built(model_type="C", **changes):
    torch.manual_seed(0)
    return WorldPolicy(tiny_policy_config(model_type, **(FUTURE | changes))).eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(64, 2, 6, generator=generator).half()
    states = torch.randn(64, 2, 4, generator=generator)
    future = torch.randn(64, 3, 6, generator=generator).half()
    return embeddings, states, torch.zeros(64, dtype=torch.long), future


def actions(policy, inputs, future=None):
    embeddings, states, tokens, _ = inputs
    return policy(embeddings, states, tokens, future=future).actions


@pytest.mark.parametrize("model_type", ["B", "C", "C_no_world_input"])
def test_actions_attend_to_the_future_only_where_they_are_asked_to(inputs, model_type):
    for asked in (True, False):
        policy = built(model_type, future_to_action=asked)
        before = actions(policy, inputs)
        with torch.no_grad():
            policy.fut_queries += 1
        assert torch.equal(actions(policy, inputs), before) != asked


def test_in_use_the_own_prediction_is_read_and_an_evaluation_may_show_the_true_future(inputs):
    policy, future = built(), inputs[-1]
    own, shown = actions(policy, inputs), actions(policy, inputs, future)
    assert torch.equal(actions(policy, inputs), own)
    assert not torch.equal(shown, own)
    for step in range(3):
        changed = future.clone()
        changed[:, step] += 1
        assert not torch.equal(actions(policy, inputs, changed), shown)


def given_samples(policy, inputs):
    """Return which samples' FUT is more than the learned queries, and what was added."""
    queries = policy.fut_queries.expand(64, -1, -1)
    added = policy._future_input(64, inputs[-1]) - queries
    return (added != 0).any(dim=(1, 2)), added


def test_in_training_half_of_the_samples_are_given_the_true_future_with_noise(inputs):
    policy = built().train()
    shares = [given_samples(policy, inputs)[0].float().mean().item() for _ in range(30)]
    assert np.mean(shares) == pytest.approx(network.TRUE_FUTURE_SHARE, abs=0.05)
    assert len(set(shares)) > 1
    exact = policy.future_in(policy.standardised("embedding", inputs[-1]))
    spread = {}
    for noise in (0.0, 1.0):
        target = dataclasses.replace(policy.config.target, future_noise=noise)
        policy.config = dataclasses.replace(policy.config, target=target)
        given, added = given_samples(policy, inputs)
        spread[noise] = (added - exact)[given].abs().mean().item()
    assert spread[0.0] < 1e-6
    assert spread[1.0] > 0.1


def test_an_oracle_is_given_the_true_future_always_and_without_noise(inputs):
    policy = built(oracle=True).train()
    assert policy.config.oracle_target is None, "WORLD is w_t"
    given, added = given_samples(policy, inputs)
    assert given.all()
    exact = policy.future_in(policy.standardised("embedding", inputs[-1]))
    torch.testing.assert_close(added, exact)


def test_the_actions_train_what_the_future_is_read_with(inputs):
    policy = built().train()
    actions(policy, inputs, inputs[-1]).sum().backward()
    assert policy.future_in.weight.grad.abs().sum() > 0
    assert policy.fut_queries.grad.abs().sum() > 0


def test_every_slot_of_a_step_is_given_the_same_future(inputs):
    policy = built("B", num_world_slots=2)
    added = policy._future_input(64, inputs[-1]) - policy.fut_queries
    assert torch.allclose(added[:, 0::2], added[:, 1::2], atol=1e-6)
    assert not torch.allclose(added[:, 0], added[:, 2])
