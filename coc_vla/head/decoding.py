"""Traces written by a decoder, token by token: greedy, or sampled with a seed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from coc_vla.head.tokenizer import TextTokenizer
from coc_vla.labels.trace import TraceStep
from coc_vla.model import TextDecoder
from world_modality.cache.frame_tensors import IGNORED_TOKEN
from world_modality.policy.network import TrunkHidden

EVAL_BATCH_SIZE = 256


@torch.inference_mode()
def write_traces(
    decoder: TextDecoder,
    tokenizer: TextTokenizer,
    hidden: TrunkHidden,
    temperature: float | None = None,
    seed: int = 0,
) -> list[tuple[TraceStep, ...]]:
    """Return a trace for each frame at which the trunk has these states, without dropout.

    A trace that has not ended after the decoder's `max_tokens` is cut there. Decoding is greedy, or
    with a temperature T draws from softmax(logits / T), with the seed and without touching torch's
    global generator.
    """
    was_training = decoder.training
    decoder.eval()
    memory = decoder.memory(hidden)
    generator = torch.Generator().manual_seed(seed)
    past = decoder.begin(memory)
    token = torch.full((len(memory),), tokenizer.begin, device=memory.device)
    written = [token]
    ended = torch.zeros_like(token, dtype=torch.bool)
    for _ in range(decoder.config.max_tokens - 1):
        logits, past = decoder.step(token, memory, past)
        logits[:, [tokenizer.pad, tokenizer.begin]] = -torch.inf
        token = _choose(logits, temperature, generator).masked_fill(ended, tokenizer.pad)
        written.append(token)
        ended |= token == tokenizer.end
        if bool(ended.all()):
            break
    decoder.train(was_training)
    return [tokenizer.decode(ids) for ids in torch.stack(written, dim=1).tolist()]


def _choose(
    logits: Tensor, temperature: float | None, generator: torch.Generator
) -> Int[Tensor, " B"]:
    if temperature is None:
        return logits.argmax(dim=-1)
    # Drawn on the CPU, so that a seed gives the same text on every device up to rounding.
    shares = torch.softmax(logits.float() / temperature, dim=-1).cpu()
    return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)


def next_token_losses(
    decoder: TextDecoder,
    hidden: TrunkHidden,
    tokens: Int[Tensor, "B L"],
    pad: int,
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Return each trace's summed cross-entropy in nats and its number of predicted tokens.

    The decoder is teacher-forced: it reads the recorded tokens before each. Padding after a trace's
    end mark neither counts nor is attended to by what counts.
    """
    length = int((tokens != pad).sum(dim=1).max())
    tokens = tokens[:, :length]
    logits = decoder(tokens[:, :-1], decoder.memory(hidden))
    targets = tokens[:, 1:].masked_fill(tokens[:, 1:] == pad, IGNORED_TOKEN)
    losses = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="none"
    )
    return losses.view(targets.shape).sum(dim=1), (targets != IGNORED_TOKEN).sum(dim=1)


@torch.inference_mode()
def trace_losses(
    decoder: TextDecoder, hidden: TrunkHidden, tokens: Int[Tensor, "B L"], pad: int
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Return what `next_token_losses` does, without dropout and in batches."""
    was_training = decoder.training
    decoder.eval()
    index = torch.arange(len(tokens), device=tokens.device)
    parts = [
        next_token_losses(decoder, hidden.select(chosen), tokens[chosen], pad)
        for chosen in torch.split(index, EVAL_BATCH_SIZE)
    ]
    decoder.train(was_training)
    sums, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    return sums, counts
