import pytest
import torch

from tests.fixtures.policy import tiny_policy_config
from world_modality.arms import MODEL_TYPES
from world_modality.policy.network import WorldPolicy

BATCH = 5


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(BATCH, 2, 6, generator=generator).half(),
        torch.randn(BATCH, 2, 4, generator=generator),
        torch.randint(0, 8, (BATCH,), generator=generator),
    )


def build(model_type, seed=0, **changes):
    torch.manual_seed(seed)
    return WorldPolicy(tiny_policy_config(model_type, **changes)).eval()


def changed_by_the_token(policy):
    """Return whether the actions and the predicted tokens change with the world token."""
    embeddings, states, tokens = inputs()
    one, other = (policy(embeddings, states, t) for t in (tokens, (tokens + 1) % 8))
    same_logits = one.world_logits is None or torch.equal(one.world_logits, other.world_logits)
    return not torch.equal(one.actions, other.actions), not same_logits


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_an_arm_depends_on_what_it_reads_and_predicts_what_it_should(model_type):
    policy = build(model_type)
    embeddings, states, tokens = inputs()
    before = policy(embeddings, states, tokens)
    assert before.actions.shape == (BATCH, 4, 3)
    assert not torch.equal(before.actions, policy(embeddings + 1, states, tokens).actions)
    assert not torch.equal(before.actions, policy(embeddings, states + 1, tokens).actions)
    assert changed_by_the_token(policy) == (model_type == "C", model_type == "C")
    if model_type == "A":
        assert before.world_logits is None
    else:
        assert before.world_logits.shape == (BATCH, 3, 8)


def test_block_world_to_action_cuts_the_actions_off_from_the_token_but_not_the_futures():
    assert changed_by_the_token(build("C", block_world_to_action=True)) == (False, True)


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("instruction_dim", [0, 5])
@pytest.mark.parametrize(
    ("num_tokens", "num_slots", "shapes"),
    [
        (1, 1, {}),
        (4, 2, {"grid_size": 2}),
        (3, 1, {"grid_size": 2, "num_views": 3, "observation_tokens": "view"}),
    ],
)
def test_attention_mask_equals_the_documented_table(
    block, instruction_dim, num_tokens, num_slots, shapes
):
    shapes = {**shapes, "num_world_slots": num_slots}
    policy = build("C", block_world_to_action=block, instruction_dim=instruction_dim, **shapes)
    kinds = ["lang"] if instruction_dim else []
    kinds += ["obs"] * 2 * num_tokens + ["world"] * num_slots
    kinds += ["fut"] * 3 * num_slots + ["act"] * 4
    for i, row in enumerate(kinds):
        for j, column in enumerate(kinds):
            seen = row == column
            seen |= column == "lang"
            seen |= column == "obs" and row != "lang"
            seen |= column == "world" and row == "fut"
            seen |= column == "world" and row == "act" and not block
            assert bool(policy._blocked[i, j]) == (not seen), (row, column)


def test_actions_do_not_see_the_future_queries():
    policy = build("B")
    before = policy(*inputs())
    with torch.no_grad():
        policy.fut_queries += 1
    after = policy(*inputs())
    assert torch.equal(before.actions, after.actions)
    assert not torch.equal(before.world_logits, after.world_logits)


def test_arms_with_one_seed_share_their_initial_weights():
    reference = build("A").state_dict()
    for model_type in ("B", "C", "C_no_world_input"):
        other = build(model_type).state_dict()
        for name, tensor in reference.items():
            assert torch.equal(tensor, other[name]), (model_type, name)
    b, c = build("B").state_dict(), build("C").state_dict()
    assert all(torch.equal(tensor, c[name]) for name, tensor in b.items())


def test_every_layer_of_the_trunk_starts_with_weights_of_its_own():
    first, second = build("A").trunk.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_the_ablation_is_model_b_weight_for_weight():
    b, ablation = build("B"), build("C_no_world_input", world_input_scale=0.1)
    assert torch.equal(b(*inputs()).actions, ablation(*inputs()).actions)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_policy_with_language_depends_on_the_instruction_and_refuses_to_do_without(model_type):
    policy = build(model_type, instruction_dim=5)
    instructions = torch.randn(BATCH, 5)
    before = policy(*inputs(), instructions).actions
    assert not torch.equal(before, policy(*inputs(), instructions + 1).actions)
    with pytest.raises(ValueError, match="reads language"):
        policy(*inputs())


def test_world_input_scale_zero_removes_the_token():
    assert changed_by_the_token(build("C", world_input_scale=0.0)) == (False, False)


def test_world_input_layernorm_makes_the_token_independent_of_its_embeddings_scale():
    policy = build("C", world_input_layernorm=True)
    before = policy(*inputs()).actions
    with torch.no_grad():
        policy.world_embedding.weight *= 1000
    torch.testing.assert_close(policy(*inputs()).actions, before, atol=2e-2, rtol=0)
    plain = build("C")
    before = plain(*inputs()).actions
    with torch.no_grad():
        plain.world_embedding.weight *= 1000
    assert (plain(*inputs()).actions - before).abs().max() > 0.1


def test_world_input_dropout_drops_whole_tokens_at_its_rate_and_only_in_training():
    policy = build("C", world_input_dropout=0.25)
    tokens = torch.arange(4000) % 8
    torch.manual_seed(0)
    dropped = (policy.train()._world_input(tokens)[:, 0] == policy.world_position).all(dim=1)
    assert abs(float(dropped.float().mean()) - 0.25) < 0.03
    kept = policy.eval()._world_input(tokens)[:, 0] != policy.world_position
    assert kept.any(dim=1).all()


def test_training_and_evaluation_mode_agree_without_dropout():
    for model_type in MODEL_TYPES:
        policy = build(model_type)
        with torch.no_grad():
            evaluated = policy.eval()(*inputs()).actions
            trained = policy.train()(*inputs()).actions
        torch.testing.assert_close(evaluated, trained)


def test_every_token_of_a_history_is_read_at_its_own_time_and_slot():
    policy = build("C", world_history=2, world_history_stride=3, num_world_slots=2)
    embeddings, states, _ = inputs()
    tokens = torch.randint(0, 8, (BATCH, 3, 2), generator=torch.Generator().manual_seed(1))
    before = policy(embeddings, states, tokens)
    for position in range(3):
        for slot in range(2):
            other = tokens.clone()
            other[:, position, slot] = (other[:, position, slot] + 1) % 8
            after = policy(embeddings, states, other)
            assert not torch.equal(before.actions, after.actions), (position, slot)
            assert not torch.equal(before.world_logits, after.world_logits), (position, slot)
    assert not torch.equal(before.actions, policy(embeddings, states, tokens.flip(1)).actions)
    assert before.hidden.world.shape == (BATCH, 2, 32), "further heads read the newest frame's"


def test_block_world_to_action_cuts_the_actions_off_from_the_whole_history():
    policy = build("C", world_history=2, block_world_to_action=True)
    embeddings, states, _ = inputs()
    tokens = torch.randint(0, 8, (BATCH, 3), generator=torch.Generator().manual_seed(1))
    one, other = (policy(embeddings, states, read) for read in (tokens, 7 - tokens))
    assert torch.equal(one.actions, other.actions)
    assert not torch.equal(one.world_logits, other.world_logits)


def test_a_history_adds_one_position_a_frame_and_none_adds_nothing():
    plain, history = build("C").state_dict(), build("C", world_history=4).state_dict()
    assert set(history) - set(plain) == {"world_time_position"}
    assert history["world_time_position"].shape == (5, 32)
    assert all(torch.equal(tensor, history[name]) for name, tensor in plain.items())


def test_world_input_dropout_drops_the_whole_stream():
    policy = build("C", world_input_dropout=0.25, world_history=2)
    tokens = torch.arange(12000).reshape(4000, 3) % 8
    torch.manual_seed(0)
    position = policy.world_time_position + policy.world_position
    dropped = (policy.train()._world_input(tokens) == position).all(dim=2)
    assert abs(float(dropped[:, 0].float().mean()) - 0.25) < 0.03
    assert torch.equal(dropped.all(dim=1), dropped.any(dim=1))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_in_the_dark_nothing_depends_on_the_embedding_and_everything_on_the_state(model_type):
    policy = build(model_type, observation_dropout=0.5)
    torch.nn.init.normal_(policy.dark_observation)
    embeddings, states, tokens = inputs()
    dark = torch.ones(BATCH, 2, dtype=torch.bool)
    before = policy(embeddings, states, tokens, is_dark=dark)
    other = policy(embeddings + 1, states, tokens, is_dark=dark)
    assert torch.equal(before.actions, other.actions)
    if before.world_logits is not None:
        assert torch.equal(before.world_logits, other.world_logits)
    assert not torch.equal(before.actions, policy(embeddings, states, tokens).actions)
    assert not torch.equal(
        before.actions, policy(embeddings, states + 1, tokens, None, dark).actions
    )
    with torch.no_grad():
        policy.dark_observation += 1
    assert not torch.equal(before.actions, policy(embeddings, states, tokens, None, dark).actions)


def test_a_dark_frame_leaves_the_others_of_its_window_seen():
    policy = build("C", observation_dropout=0.5)
    embeddings, states, tokens = inputs()
    dark = torch.zeros(BATCH, 2, dtype=torch.bool)
    plain = policy(embeddings, states, tokens).actions
    assert torch.equal(policy(embeddings, states, tokens, None, dark).actions, plain)
    dark[:3, 1] = True
    shown = policy(embeddings, states, tokens, None, dark).actions
    assert torch.equal(shown[3:], plain[3:]), "other windows"
    older, newest = embeddings.clone(), embeddings.clone()
    older[:, 0] += 1
    newest[:, 1] += 1
    assert torch.equal(policy(newest, states, tokens, None, dark).actions[:3], shown[:3])
    assert not torch.equal(policy(older, states, tokens, None, dark).actions[:3], shown[:3])


def test_every_cell_of_a_dark_frame_is_dark():
    policy = build("B", observation_dropout=0.5, grid_size=2, num_views=2)
    states = inputs()[1]
    cells = torch.randn(BATCH, 2, 8, 6).half()
    dark = torch.ones(BATCH, 2, dtype=torch.bool)
    one, other = (policy(c, states, torch.zeros(BATCH).long(), None, dark) for c in (cells, -cells))
    assert torch.equal(one.actions, other.actions)


def test_a_policy_that_always_sees_refuses_the_dark():
    embeddings, states, tokens = inputs()
    with pytest.raises(ValueError, match="built without observation_dropout"):
        build("C")(embeddings, states, tokens, None, torch.ones(BATCH, 2, dtype=torch.bool))
