"""How good a policy is on held-out frames, as it is measured after each epoch."""

import numpy as np
from jaxtyping import Int

from world_modality.policy.predictions import predict
from world_modality.training.trainer import Trainer


def validate(trainer: Trainer, frames: Int[np.ndarray, " M"]) -> dict[str, float]:
    """Return exact means over the validation frames.

    `val_action_mse` is in units of the training standard deviation; `val_world_top1` and
    `val_world_top5` are over all horizons.
    """
    tokens = trainer.control.evaluation_tokens(frames, trainer.window_shape)
    errors = predict(trainer.policy, trainer.tensors, frames, tokens)
    metrics = {"val_action_mse": float(errors.squared_error.sum() / errors.valid.sum())}
    if errors.token_rank is not None:
        ranks = errors.token_rank[errors.token_rank >= 0]
        metrics["val_world_top1"] = float((ranks == 0).mean())
        metrics["val_world_top5"] = float((ranks < 5).mean())
    return metrics
