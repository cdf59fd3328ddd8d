import pytest
import torch

from tests.acting.test_traced_actions import drawn_context
from tests.fixtures.policy import tiny_policy_config
from world_modality.policy.attention import ActionAttention, attended_outputs
from world_modality.policy.network import WorldPolicy


def attended(arm="C", batch=3, **changes):
    torch.manual_seed(0)
    policy = WorldPolicy(tiny_policy_config(arm, **changes)).eval()
    # Drawn parameters are small, and such queries look everywhere alike.
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "in_proj_weight" in name or "queries" in name:
                parameter.mul_(6)
    context = drawn_context(policy, batch, torch.Generator().manual_seed(1))
    return policy, context, *attended_outputs(policy, *context)


@torch.inference_mode()
def weights_by_hand(policy, context):
    """Return each layer's attention [B, L, L] as the formula says it, head by head."""
    given = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
        for layer in policy.trunk.layers
    ]
    policy(*context)
    for hook in hooks:
        hook.remove()
    found = []
    for layer, tokens in zip(policy.trunk.layers, given, strict=True):
        attention = layer.self_attn
        query, key, _ = torch.nn.functional.linear(
            layer.norm1(tokens), attention.in_proj_weight, attention.in_proj_bias
        ).chunk(3, dim=-1)
        heads = attention.num_heads
        query, key = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (query, key))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        found.append(scores.masked_fill(policy._blocked, -torch.inf).softmax(-1).mean(1))
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("changes", [{}, {"instruction_dim": 6}, {"world_history": 2}])
def test_it_is_what_the_formula_says(changes):
    policy, context, _, attention = attended(**changes)
    kinds = policy._kinds()
    weights = weights_by_hand(policy, context)[:, :, -kinds["act"] :].mean(dim=2)
    first = kinds["lang"] + kinds["obs"]
    world = weights[..., first : first + kinds["world"]]
    torch.testing.assert_close(attention.world, world, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(attention.by_kind["world"], world.sum(-1), rtol=1e-4, atol=1e-6)
    assert attention.world.shape == (3, policy.config.trunk.n_layers, kinds["world"])
    assert world.std() > 1e-3, "it differs from place to place"


def test_a_layers_shares_add_up_to_all_of_its_attention():
    _, _, _, attention = attended()
    total = sum(attention.by_kind.values())
    torch.testing.assert_close(total, torch.ones_like(total))
    assert set(attention.by_kind) == {"obs", "world", "fut", "act"}


def test_the_output_is_the_policys_and_nothing_stays_behind():
    policy, context, output, _ = attended()
    with torch.inference_mode():
        expected = policy(*context)
    torch.testing.assert_close(output.actions, expected.actions)
    torch.testing.assert_close(output.world_logits, expected.world_logits)
    assert not any(layer._forward_pre_hooks for layer in policy.trunk.layers)


def test_blocked_actions_do_not_look_at_the_world_and_arm_a_has_none_to_look_at():
    blocked = attended(block_world_to_action=True)[3]
    assert (blocked.by_kind["world"] == 0).all()
    without = attended("A")[3]
    assert "world" not in without.by_kind
    assert without.world.shape[-1] == 0


def test_batches_are_joined():
    policy, context, _, whole = attended(batch=4)
    halves = [
        attended_outputs(policy, *(one[part] for one in context))[1]
        for part in (slice(0, 1), slice(1, 4))
    ]
    joined = ActionAttention.concatenate(halves)
    torch.testing.assert_close(joined.world, whole.world)
    torch.testing.assert_close(joined.by_kind["obs"], whole.by_kind["obs"])
