"""Action error of a policy beside predictors that look at nothing."""

import numpy as np
import torch
from jaxtyping import Float, Int

from world_modality.evaluation.offline_run import OfflineRun
from world_modality.policy.predictions import (
    EVAL_BATCH_SIZE,
    FrameErrors,
    action_errors,
    window_shape,
)
from world_modality.statistics.intervals import Interval


def action_metrics(run: OfflineRun, errors: FrameErrors, seed: int) -> dict[str, object]:
    """Return the mean squared error of one predictor, overall and per chunk step.

    `mse` is in units of the training standard deviation squared (1 is a constant prediction of the
    overall training mean, about), `mse_raw` in the action's own units squared; both are means over
    all valid steps of all validation frames and over the action's dimensions.
    """
    counts = errors.valid.sum(axis=1)

    def mean(squared: Float[np.ndarray, "M H"]) -> Interval:
        return run.mean_over_frames(errors.frames, squared.sum(axis=1), counts, seed)

    per_step = errors.squared_error.sum(axis=0, dtype=np.float64) / errors.valid.sum(axis=0)
    raw_per_step = errors.squared_error_raw.sum(axis=0, dtype=np.float64) / errors.valid.sum(axis=0)
    return {
        "mse": mean(errors.squared_error),
        "mse_raw": mean(errors.squared_error_raw),
        "mse_per_step": per_step.tolist(),
        "mse_raw_per_step": raw_per_step.tolist(),
    }


def trivial_errors(run: OfflineRun) -> dict[str, FrameErrors]:
    """Return the errors of two predictors that hold one action over the whole chunk.

    `task_mean` predicts the mean action of the frame's task over training episodes (of all training
    frames where the task has none); `last_action` the action before frame t (at an episode's first
    frame, where there is none, the task mean).
    """
    frames = run.val_frames
    task_mean = _task_means(run)[run.tensors.episodes.of_frame[frames]]
    actions = run.tensors.actions.cpu().numpy()
    is_first = np.isin(frames, run.tensors.episodes.starts)
    last_action = np.where(is_first[:, None], task_mean, actions[frames - 1])
    return {
        "task_mean": _held_action_errors(run, frames, task_mean),
        "last_action": _held_action_errors(run, frames, last_action),
    }


def _task_means(run: OfflineRun) -> Float[np.ndarray, "E A"]:
    """Return, for each episode, the mean training action of its task."""
    episodes = run.tensors.episodes
    actions = run.tensors.actions.cpu().numpy().astype(np.float64)
    train = episodes.frame_mask(run.train_ids)
    task_of_frame = episodes.tasks[episodes.of_frame]
    overall = actions[train].mean(axis=0)
    means = np.tile(overall, (len(episodes), 1))
    for task in np.unique(episodes.tasks):
        chosen = train & (task_of_frame == task)
        if chosen.any():
            means[episodes.tasks == task] = actions[chosen].mean(axis=0)
    return means.astype(np.float32)


@torch.inference_mode()
def _held_action_errors(
    run: OfflineRun, frames: Int[np.ndarray, " M"], held: Float[np.ndarray, "M A"]
) -> FrameErrors:
    policy, shape = run.policy, window_shape(run.policy)
    parts = []
    for start in range(0, len(frames), EVAL_BATCH_SIZE):
        chosen = slice(start, start + EVAL_BATCH_SIZE)
        batch = run.tensors.gather(torch.from_numpy(frames[chosen]), shape)
        action = torch.from_numpy(held[chosen]).to(run.tensors.device)
        predicted = policy.action_norm(action)[:, None].expand_as(batch.actions)
        parts.append([e.cpu() for e in action_errors(policy, predicted, batch)])
    squared, raw, valid = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return FrameErrors(frames, squared, raw, valid, token_rank=None)
