"""A policy's errors on recorded frames, frame by frame, so that any average over them is exact."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from world_modality.cache.frame_tensors import IGNORED_TOKEN, Batch, FrameTensors
from world_modality.policy.network import PolicyOutput, TrunkHidden, WorldPolicy

EVAL_BATCH_SIZE = 1024


@dataclass(frozen=True)
class FrameErrors:
    """Errors of the predictions made at M frames.

    Attributes:
        frames: global frame indices t.
        squared_error: per chunk step, averaged over the A action dims, in units of the training
            standard deviation; 0 where the step is past the episode's end.
        squared_error_raw: the same in the dataset's own units.
        valid: which chunk steps lie inside the episode.
        token_rank: how many tokens were rated above the true one (0 is a top-1 hit); -1 past the
            episode's end; None for an arm that predicts no tokens.
        token_nats: cross-entropy of the true token; 0 past the episode's end; None likewise.
    """

    frames: Int[np.ndarray, " M"]
    squared_error: Float[np.ndarray, "M H"]
    squared_error_raw: Float[np.ndarray, "M H"]
    valid: Bool[np.ndarray, "M H"]
    token_rank: Int[np.ndarray, "M K *W"] | None
    token_nats: Float[np.ndarray, "M K *W"] | None = None


@torch.inference_mode()
def predict(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    world_tokens: Int[np.ndarray, " M *RW"] | None = None,
    progress: str | None = None,
    num_dark: int = 0,
) -> FrameErrors:
    """Run the policy at every one of these frames.

    Args:
        policy: in any mode; it is evaluated without dropout and left in the mode it was in.
        tensors: the recorded frames.
        frames: where to predict.
        world_tokens: given to the policy instead of the recorded tokens that it reads; the
            targets stay.
        progress: label of a progress bar, or None for no bar.
        num_dark: so many frames up to each of these are dark; those of its context are masked.
    """
    parts: list[list[Tensor]] = []
    for batch, output in _outputs(policy, tensors, frames, world_tokens, progress, num_dark):
        errors = list(action_errors(policy, output.actions, batch))
        if output.world_logits is not None:
            errors.append(token_rank(output.world_logits, batch.future_tokens))
            errors.append(token_nats(output.world_logits, batch.future_tokens))
        parts.append([error.cpu() for error in errors])
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    rank, nats = columns[3:] if policy.config.predicts_world else (None, None)
    return FrameErrors(
        frames=frames,
        squared_error=columns[0],
        squared_error_raw=columns[1],
        valid=columns[2],
        token_rank=rank,
        token_nats=nats,
    )


@torch.inference_mode()
def predicted_tokens(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    world_tokens: Int[np.ndarray, " M *RW"] | None = None,
    num_dark: int = 0,
) -> Int[np.ndarray, "M K *W"]:
    """Return the likeliest future tokens at these frames; arguments as for `predict`.

    Raises:
        ValueError: the policy predicts none.
    """
    found = []
    for _, output in _outputs(policy, tensors, frames, world_tokens, None, num_dark):
        if output.world_logits is None:
            raise ValueError(f"arm {policy.config.model_type} predicts no world tokens")
        found.append(output.world_logits.argmax(dim=-1).cpu())
    return torch.cat(found).numpy()


@torch.inference_mode()
def hidden_states(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    world_tokens: Int[np.ndarray, " M *RW"] | None = None,
) -> TrunkHidden:
    """Return the trunk's states that further heads read, at every one of these frames.

    Arguments as for `predict`; the policy is left in the mode it was in.
    """
    outputs = _outputs(policy, tensors, frames, world_tokens, None)
    return TrunkHidden.concatenate([output.hidden for _, output in outputs])


def _outputs(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    world_tokens: Int[np.ndarray, " M *RW"] | None,
    progress: str | None,
    num_dark: int = 0,
) -> Iterator[tuple[Batch, PolicyOutput]]:
    """Yield batches and what the policy makes of them; its mode is restored at the end."""
    was_training = policy.training
    policy.eval()
    shape = policy.config.window
    dark = torch.tensor([lag < num_dark for lag in shape.context_lags], device=tensors.device)
    replaced = None if world_tokens is None else torch.from_numpy(world_tokens).to(tensors.device)
    starts = range(0, len(frames), EVAL_BATCH_SIZE)
    index = [torch.from_numpy(frames[start : start + EVAL_BATCH_SIZE]) for start in starts]
    turns = zip(starts, tensors.ahead(index, shape), strict=True)
    for start, chosen in tqdm(
        turns, desc=progress, disable=progress is None, total=len(starts), unit="batch"
    ):
        batch = tensors.gather(chosen, shape)
        given = None if replaced is None else replaced[start : start + EVAL_BATCH_SIZE].long()
        tokens = batch.world_tokens if given is None else given
        is_dark = dark.expand(len(tokens), -1) if num_dark else None
        yield batch, policy(batch.embeddings, batch.states, tokens, batch.instructions, is_dark)
    policy.train(was_training)


def action_errors(
    policy: WorldPolicy, predicted: Float[Tensor, "B H A"], batch: Batch
) -> tuple[Float[Tensor, "B H"], Float[Tensor, "B H"], Bool[Tensor, "B H"]]:
    """Return squared errors in standard deviations and in raw units, and the valid steps.

    Args:
        policy: whose statistics standardise the actions.
        predicted: standardised actions.
        batch: the recorded actions.
    """
    valid = ~batch.action_is_pad
    difference = predicted.float() - policy.action_norm(batch.actions)
    squared = difference.square().mean(dim=-1) * valid
    raw = (difference * policy.action_norm.std).square().mean(dim=-1) * valid
    return squared, raw, valid


def token_rank(
    logits: Float[Tensor, "B K *W V"], future_tokens: Int[Tensor, "B K *W"]
) -> Int[Tensor, "B K *W"]:
    """Return the rank of the true token, 0 for the best; -1 where it lies past the episode.

    Of equal logits the one with the lower token counts as rated higher, so that a head that rates
    all tokens alike gets no credit.
    """
    inside = future_tokens != IGNORED_TOKEN
    true = future_tokens.clamp(min=0)[..., None]
    score = logits.gather(-1, true)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    above = (logits > score) | ((logits == score) & (ids < true))
    return above.sum(dim=-1).masked_fill(~inside, -1)


def token_nats(
    logits: Float[Tensor, "B K *W V"], future_tokens: Int[Tensor, "B K *W"]
) -> Float[Tensor, "B K *W"]:
    """Return the cross-entropy of the true token in nats; 0 where it lies past the episode."""
    inside = future_tokens != IGNORED_TOKEN
    score = logits.gather(-1, future_tokens.clamp(min=0)[..., None])[..., 0]
    return (logits.float().logsumexp(dim=-1) - score.float()).masked_fill(~inside, 0)
