import pytest
import torch

from tests.fixtures.policy import tiny_policy_config
from world_modality.acting.traced_actions import TracedActions
from world_modality.policy.network import WorldPolicy


def drawn_context(policy, group_size, generator):
    config, frame = policy.config, policy.config.frame
    frames = (group_size, config.window.context_frames)
    embeddings = torch.randn(*frames, frame.observation.embedding_dim, generator=generator).half()
    states = torch.randn(*frames, frame.state_dim, generator=generator)
    num_tokens = frame.world.num_world_tokens
    shape = (group_size, *config.world_axis)
    world_tokens = torch.randint(num_tokens, shape, generator=generator)
    instructions = torch.randn(group_size, frame.instruction_dim, generator=generator).half()
    return [embeddings, states, world_tokens, *([instructions] if config.reads_language else [])]


@pytest.mark.parametrize(
    ("arm", "changes"),
    [("A", {}), ("C", {}), ("C", {"instruction_dim": 6}), ("C", {"world_history": 2})],
)
@pytest.mark.parametrize("group_size", [1, 3])
def test_a_trace_predicts_what_the_policy_predicts_to_the_last_bit(arm, changes, group_size):
    torch.manual_seed(0)
    policy = WorldPolicy(tiny_policy_config(arm, **changes)).eval()
    policy.action_norm.std.fill_(0.3)
    policy.action_norm.mean.fill_(0.7)
    traced = TracedActions(policy, group_size)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        context = drawn_context(policy, group_size, generator)
        with torch.inference_mode():
            expected = policy.action_norm.inverse(policy(*context).actions)
        assert torch.equal(traced(*context), expected)


def test_a_group_of_another_size_is_refused():
    policy = WorldPolicy(tiny_policy_config("A")).eval()
    context = drawn_context(policy, 2, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="the policy was recorded for inputs of"):
        TracedActions(policy, 1)(*context)
