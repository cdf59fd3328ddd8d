import math

import pytest
import torch
from torch.nn import functional

from tests.fixtures.policy import tiny_policy_config
from world_modality.cache.frame_tensors import IGNORED_TOKEN
from world_modality.policy.heads import build_action_head, loss_names, world_loss
from world_modality.system.errors import MissingKeyError


def action_loss(predicted, target, is_pad, count=None):
    head = build_action_head("mse", 2, predicted.shape[-1])
    states = torch.zeros(*predicted.shape[:2], 2)
    return head.loss(states, predicted, target, is_pad, (~is_pad).sum() if count is None else count)


def num_inside(tokens):
    return (tokens != IGNORED_TOKEN).sum()


def test_action_loss_equals_a_plain_loop_over_the_valid_steps():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 4, 5, 3, generator=generator)
    is_pad = torch.rand(4, 5, generator=generator) < 0.4
    errors = [
        (float(predicted[b, h, a]) - float(target[b, h, a])) ** 2
        for b in range(4)
        for h in range(5)
        if not is_pad[b, h]
        for a in range(3)
    ]
    assert action_loss(predicted, target, is_pad).item() == pytest.approx(sum(errors) / len(errors))


def test_padded_actions_neither_count_nor_get_a_gradient():
    predicted = torch.zeros(1, 3, 2, requires_grad=True)
    target = torch.ones(1, 3, 2)
    target[0, 2] = 1e6
    loss = action_loss(predicted, target, torch.tensor([[False, False, True]]))
    assert loss.item() == 1
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert torch.equal(gradient[0] != 0, torch.tensor([[True] * 2, [True] * 2, [False] * 2]))


def test_an_unknown_action_head_lists_those_that_there_are():
    with pytest.raises(MissingKeyError, match=r"no action head 'flow' .*mse"):
        build_action_head("flow", 2, 3)
    assert tiny_policy_config("A").action_head == "mse"


def test_world_loss_equals_a_plain_loop_over_tokens_inside_the_episode():
    logits = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[0, 5], [3, IGNORED_TOKEN], [IGNORED_TOKEN, IGNORED_TOKEN]])
    expected = [
        math.log(sum(math.exp(float(x)) for x in logits[b, k])) - float(logits[b, k, tokens[b, k]])
        for b, k in ((0, 0), (0, 1), (1, 0))
    ]
    (loss,) = world_loss(logits, tokens, num_inside(tokens))
    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_each_slot_has_a_world_loss_of_its_own():
    logits = torch.randn(3, 2, 2, 6, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[[0, 1], [5, 2]], [[3, 3], [-100, -100]], [[-100, -100], [-100, -100]]])
    losses = world_loss(logits, tokens, num_inside(tokens[..., 0]))
    for slot in range(2):
        one = functional.cross_entropy(
            logits[:, :, slot].flatten(0, 1), tokens[:, :, slot].flatten()
        )
        torch.testing.assert_close(losses[slot], one)
    assert loss_names(2)[2:] == ["world_loss_slot0", "world_loss_slot1"]
    assert loss_names(1) == ["loss", "action_loss", "world_loss"]


def test_a_batch_without_any_future_has_world_loss_zero_and_a_finite_gradient():
    logits = torch.randn(2, 2, 6, requires_grad=True)
    tokens = torch.full((2, 2), IGNORED_TOKEN)
    (loss,) = world_loss(logits, tokens, num_inside(tokens))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert not gradient.any()


def test_losses_of_a_batchs_parts_add_up_to_its_loss_where_the_parts_hold_unlike_many():
    generator = torch.Generator().manual_seed(2)
    predicted, target = torch.randn(2, 5, 4, 3, generator=generator)
    is_pad = torch.arange(4) >= torch.tensor([4, 4, 1, 1, 1])[:, None]
    logits = torch.randn(5, 2, 6, generator=generator)
    tokens = torch.tensor([[0, 5], [3, IGNORED_TOKEN]] + [[IGNORED_TOKEN] * 2] * 3)
    parts = slice(0, 2), slice(2, 5)
    num_actions, num_tokens = (~is_pad).sum(), num_inside(tokens)
    actions = [action_loss(predicted[p], target[p], is_pad[p], num_actions) for p in parts]
    world = [world_loss(logits[p], tokens[p], num_tokens) for p in parts]
    torch.testing.assert_close(sum(actions), action_loss(predicted, target, is_pad))
    torch.testing.assert_close(sum(world), world_loss(logits, tokens, num_tokens))
    mean_of_means = sum(action_loss(predicted[p], target[p], is_pad[p]) for p in parts) / 2
    assert abs(mean_of_means - sum(actions)) > 0.01
