"""`L = L_action + λ·L_world`, and the loss of a further head where there is one."""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from world_modality.frame_tensors import IGNORED_TOKEN, Batch
from world_modality.policy import WorldPolicy
from world_modality.policy_output import PolicyOutput


def action_loss(
    predicted: Float[Tensor, "B H A"],
    target: Float[Tensor, "B H A"],
    action_is_pad: Bool[Tensor, "B H"],
) -> Float[Tensor, ""]:
    """Mean squared error over the valid part of the action chunks (as in LeRobot's ACT)."""
    valid = ~action_is_pad
    squared = (predicted - target).square().mean(dim=-1)
    return (squared * valid).sum() / valid.sum()


def world_loss(
    logits: Float[Tensor, "B K V"], future_tokens: Int[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the future tokens that lie inside the episode; 0 if none."""
    flat = future_tokens.flatten()
    total = functional.cross_entropy(
        logits.flatten(0, 1).float(), flat, ignore_index=IGNORED_TOKEN, reduction="sum"
    )
    return total / (flat != IGNORED_TOKEN).sum().clamp(min=1)


@dataclass(frozen=True)
class Losses:
    """The total that is minimised, and its parts."""

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    world: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]

    def with_auxiliary(self, loss: Float[Tensor, ""], weight: float) -> "Losses":
        """Add the weighted loss of a further head."""
        return replace(self, total=self.total + weight * loss, auxiliary=loss)

    def detach(self) -> "Losses":
        """Return the same values without their graph."""
        return Losses(*(getattr(self, field.name).detach() for field in fields(self)))


def policy_losses(
    policy: WorldPolicy, output: PolicyOutput, batch: Batch, world_loss_weight: float
) -> Losses:
    """Compare a prediction with its batch."""
    target = policy.action_norm(batch.actions)
    action = action_loss(output.actions.float(), target, batch.action_is_pad)
    zero = torch.zeros_like(action)
    if output.world_logits is None:
        return Losses(total=action, action=action, world=zero, auxiliary=zero)
    world = world_loss(output.world_logits, batch.future_tokens)
    total = action + world_loss_weight * world
    return Losses(total=total, action=action, world=world, auxiliary=zero)
