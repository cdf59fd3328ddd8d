"""How likely a decoder finds recorded traces."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from coc_vla.model import TextDecoder
from world_modality.cache.frame_tensors import IGNORED_TOKEN
from world_modality.policy.output import TrunkHidden

EVAL_BATCH_SIZE = 256


def next_token_losses(
    decoder: TextDecoder,
    hidden: TrunkHidden,
    tokens: Int[Tensor, "B L"],
    pad: int,
) -> tuple[Float[Tensor, " B"], Int[Tensor, " B"]]:
    """Return each trace's summed cross-entropy in nats and its number of predicted tokens.

    Args:
        decoder: teacher-forced: it reads the recorded tokens before each.
        hidden: the trunk's states, a frame for each trace.
        tokens: from the begin mark to the end mark, then padding.
        pad: the padding's id; padding neither counts nor is attended to by what counts.
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
