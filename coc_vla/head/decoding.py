"""Traces written by a decoder, token by token: greedy, or sampled with a seed."""

import torch
from jaxtyping import Int
from torch import Tensor

from coc_vla.head.tokenizer import TextTokenizer
from coc_vla.labels.trace import TraceStep
from coc_vla.model import TextDecoder
from world_modality.policy.output import TrunkHidden


@torch.inference_mode()
def write_traces(
    decoder: TextDecoder,
    tokenizer: TextTokenizer,
    hidden: TrunkHidden,
    temperature: float | None = None,
    seed: int = 0,
) -> list[tuple[TraceStep, ...]]:
    """Return a trace for each frame of `hidden`.

    A trace that has not ended after the decoder's `max_tokens` is cut there.

    Args:
        decoder: evaluated without dropout.
        tokenizer: that it was trained with.
        hidden: the trunk's states at the frames.
        temperature: None for greedy decoding; else tokens are drawn from softmax(logits / T).
        seed: of the draws, which do not touch torch's global generator.
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
