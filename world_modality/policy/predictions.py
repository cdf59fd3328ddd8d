"""A policy's errors on recorded frames, frame by frame, so that any average over them is exact."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from world_modality.cache.frame_tensors import IGNORED_TOKEN, Batch, FrameTensors
from world_modality.policy.futures import VectorErrors, vector_errors
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
        vectors: by target, of those that are vectors.
        change_rank: as `token_rank`, of the change token; None for an arm that predicts none.
    """

    frames: Int[np.ndarray, " M"]
    squared_error: Float[np.ndarray, "M H"]
    squared_error_raw: Float[np.ndarray, "M H"]
    valid: Bool[np.ndarray, "M H"]
    token_rank: Int[np.ndarray, "M K *W"] | None
    token_nats: Float[np.ndarray, "M K *W"] | None = None
    vectors: dict[str, VectorErrors] = field(default_factory=dict)
    change_rank: Int[np.ndarray, " M"] | None = None


@torch.inference_mode()
def predict(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    world_tokens: Int[np.ndarray, " M *RW"] | None = None,
    progress: str | None = None,
    num_dark: int = 0,
    *,
    true_future: bool = False,
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
        true_future: let actions that attend to the future attend to the true one.
    """
    parts: list[dict[str, Tensor]] = []
    targets = policy.config.target.vectors if policy.config.predicts_world else ()
    outputs = _outputs(policy, tensors, frames, world_tokens, progress, num_dark, true_future)
    for chosen, batch, output in outputs:
        squared, raw, valid = action_errors(policy, output.actions, batch)
        errors = {"squared_error": squared, "squared_error_raw": raw, "valid": valid}
        if output.world_logits is not None:
            errors["token_rank"] = token_rank(output.world_logits, batch.future_tokens)
            errors["token_nats"] = token_nats(output.world_logits, batch.future_tokens)
        if policy.config.predicts("change_token"):
            assert batch.change_tokens is not None
            logits, true = output.futures["change_token"], batch.change_tokens
            errors["change_rank"] = token_rank(logits[:, None], true[:, None])[:, 0]
        for target in targets:
            assert tensors.future_rows is not None
            present = tensors.future_rows.embeddings[chosen]
            found = vector_errors(policy, target, output.futures[target], batch, present)
            errors |= {f"{target}/{name}": error for name, error in found.items()}
        parts.append({name: error.cpu() for name, error in errors.items()})
    columns = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
    vectors = {str(target): _vector_errors_of(columns, target) for target in targets}
    return FrameErrors(
        frames=frames,
        squared_error=columns["squared_error"],
        squared_error_raw=columns["squared_error_raw"],
        valid=columns["valid"],
        token_rank=columns.get("token_rank"),
        token_nats=columns.get("token_nats"),
        vectors=vectors,
        change_rank=columns.get("change_rank"),
    )


def _vector_errors_of(columns: dict[str, np.ndarray], target: str) -> VectorErrors:
    return VectorErrors(
        **{one.name: columns[f"{target}/{one.name}"] for one in fields(VectorErrors)}
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
    for _, _, output in _outputs(policy, tensors, frames, world_tokens, None, num_dark):
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
    return TrunkHidden.concatenate([output.hidden for _, _, output in outputs])


def _outputs(
    policy: WorldPolicy,
    tensors: FrameTensors,
    frames: Int[np.ndarray, " M"],
    world_tokens: Int[np.ndarray, " M *RW"] | None,
    progress: str | None,
    num_dark: int = 0,
    true_future: bool = False,
) -> Iterator[tuple[Int[Tensor, " B"], Batch, PolicyOutput]]:
    """Yield frames, their batch and what the policy makes of it; its mode is restored at the end.

    The true future is read by an oracle, and where `true_future` asks for it.
    """
    was_training = policy.training
    given_future = policy.config.future_input if policy.config.oracle or true_future else None
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
        future = None if given_future is None else batch.vectors(given_future)
        inputs = batch.embeddings, batch.states, tokens, batch.instructions
        yield chosen, batch, policy(*inputs, is_dark, future)
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
