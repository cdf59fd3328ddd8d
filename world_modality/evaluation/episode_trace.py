"""What a policy makes of every frame of a recorded episode: prediction, attention, actions."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from world_modality.cache.frame_tensors import IGNORED_TOKEN
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.attention import ActionAttention, attended_outputs
from world_modality.system.errors import InvalidInputError

# The attention of every token to every other is in memory at once.
_BATCH_SIZE = 64


@dataclass(frozen=True)
class TokenPrediction:
    """The world tokens that are predicted some frames ahead.

    Attributes:
        frames_ahead: how many.
        top: the token that is held most probable.
        probability: of it.
        recorded: the token that came; -1 past the episode's end.
        probability_of_recorded: of that one; 0 past the end.
    """

    frames_ahead: int
    top: Int[np.ndarray, " n *W"]
    probability: Float[np.ndarray, " n *W"]
    recorded: Int[np.ndarray, " n *W"]
    probability_of_recorded: Float[np.ndarray, " n *W"]


@dataclass(frozen=True)
class EpisodeTrace:
    """An episode of n frames, and what the policy makes of each.

    Attributes:
        episode_index: of the dataset.
        is_held_out: whether the policy was not trained on it.
        frames: global frame indices.
        world_tokens: the recorded tokens of each frame.
        prediction: of later tokens; None for an arm that predicts none.
        attention: of the action queries.
        recorded_actions: in the dataset's units.
        predicted_actions: for the frame itself, in the dataset's units, not clipped.
    """

    episode_index: int
    is_held_out: bool
    frames: Int[np.ndarray, " n"]
    world_tokens: Int[np.ndarray, " n *W"]
    prediction: TokenPrediction | None
    attention: ActionAttention
    recorded_actions: Float[np.ndarray, "n A"]
    predicted_actions: Float[np.ndarray, "n A"]


def trace_episode(run: OfflineRun, episode: int | None, horizon: int) -> EpisodeTrace:
    """Run the policy at every frame of an episode.

    Args:
        run: a checkpoint and its cache.
        episode: an `episode_index`; None takes the first held-out one.
        horizon: which of the K predictions, from 1.

    Raises:
        InvalidInputError: there is no such episode or horizon.
    """
    window = run.policy.config.window
    if run.policy.config.predicts_world and not 1 <= horizon <= window.future_offset:
        raise InvalidInputError(
            f"--horizon {horizon}: the policy predicts {window.future_offset} tokens; give 1 to "
            f"{window.future_offset}"
        )
    chosen = run.val_ids[0] if episode is None else episode
    frames = run.tensors.episodes.frames_of([chosen])
    if len(frames) == 0:
        ids = run.tensors.episodes.ids
        raise InvalidInputError(
            f"--episode {chosen}: {run.cache.dataset_name} has {len(ids)} episodes, numbered from "
            f"{min(ids)} to {max(ids)}; held out are {', '.join(map(str, run.val_ids[:10]))}"
        )
    given = run.tokens_read_instead(frames)
    parts = [
        _of_batch(run, frames[start : start + _BATCH_SIZE], given, start, horizon)
        for start in range(0, len(frames), _BATCH_SIZE)
    ]
    columns = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    actions = columns.pop("actions")
    return EpisodeTrace(
        episode_index=chosen,
        is_held_out=chosen in run.val_ids,
        frames=frames,
        world_tokens=run.tokens[frames],
        prediction=TokenPrediction(horizon * window.future_stride, **columns) if columns else None,
        attention=ActionAttention.concatenate([part[1] for part in parts]),
        recorded_actions=run.tensors.actions[torch.from_numpy(frames)].cpu().numpy(),
        predicted_actions=actions,
    )


def _of_batch(
    run: OfflineRun,
    frames: Int[np.ndarray, " B"],
    given: Int[np.ndarray, " n *RW"] | None,
    start: int,
    horizon: int,
) -> tuple[dict[str, np.ndarray], ActionAttention]:
    """Return actions and, where tokens are predicted, `TokenPrediction`'s columns; attention."""
    policy = run.policy
    batch = run.tensors.gather(torch.from_numpy(frames), policy.config.window)
    tokens = batch.world_tokens
    if given is not None:
        tokens = torch.from_numpy(given[start : start + len(frames)]).to(tokens.device).long()
    output, attention = attended_outputs(
        policy, batch.embeddings, batch.states, tokens, batch.instructions
    )
    found = {"actions": policy.action_norm.inverse(output.actions.float())[:, 0]}
    if output.world_logits is not None:
        shares = output.world_logits[:, horizon - 1].float().softmax(dim=-1)
        probability, top = shares.max(dim=-1)
        recorded = batch.future_tokens[:, horizon - 1]
        own = shares.gather(-1, recorded.clamp(min=0)[..., None])[..., 0]
        is_past = recorded == IGNORED_TOKEN
        found |= {
            "top": top,
            "probability": probability,
            "recorded": recorded.masked_fill(is_past, -1),
            "probability_of_recorded": own.masked_fill(is_past, 0),
        }
    return {name: one.cpu().numpy() for name, one in found.items()}, attention
