"""`L = L_action + λ·L_world`, and the loss of a further head where there is one."""

import os
import shutil
from dataclasses import dataclass, fields, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from world_modality.cache.frame_tensors import IGNORED_TOKEN, Batch
from world_modality.policy.network import PolicyOutput, WorldPolicy
from world_modality.system.errors import InvalidInputError


def num_valid_actions(action_is_pad: Bool[Tensor, "B H"]) -> Int[Tensor, ""]:
    """Count the chunk steps that lie inside the episode."""
    return (~action_is_pad).sum()


def num_valid_tokens(future_tokens: Int[Tensor, "B K"]) -> Int[Tensor, ""]:
    """Count the future tokens that lie inside the episode."""
    return (future_tokens != IGNORED_TOKEN).sum()


def action_loss(
    predicted: Float[Tensor, "B H A"],
    target: Float[Tensor, "B H A"],
    action_is_pad: Bool[Tensor, "B H"],
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over the valid part of the action chunks (as in LeRobot's ACT).

    Args:
        predicted: standardised actions.
        target: likewise.
        action_is_pad: marks what is not valid.
        count: divides the sum in the place of the number of valid steps here. The losses of a
            batch's parts, each divided by the count of the whole batch, add up to its loss.
    """
    squared = (predicted - target).square().mean(dim=-1)
    if count is None:
        count = num_valid_actions(action_is_pad)
    return (squared * ~action_is_pad).sum() / count


def world_loss(
    logits: Float[Tensor, "B K V"],
    future_tokens: Int[Tensor, "B K"],
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the future tokens that lie inside the episode; 0 if none.

    `count` as for `action_loss`.
    """
    flat = future_tokens.flatten()
    total = functional.cross_entropy(
        logits.flatten(0, 1).float(), flat, ignore_index=IGNORED_TOKEN, reduction="sum"
    )
    return total / (num_valid_tokens(future_tokens) if count is None else count).clamp(min=1)


@dataclass(frozen=True)
class Losses:
    """The total that is minimised, and its parts."""

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    world: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]

    @classmethod
    def none(cls, device: torch.device) -> "Losses":
        """Return the losses of no rows."""
        zero = torch.zeros((), device=device)
        return cls(total=zero, action=zero, world=zero, auxiliary=zero)

    def with_auxiliary(self, loss: Float[Tensor, ""], weight: float) -> "Losses":
        """Add the weighted loss of a further head."""
        return replace(self, total=self.total + weight * loss, auxiliary=loss)

    def detach(self) -> "Losses":
        """Return the same values without their graph."""
        return Losses(*(getattr(self, field.name).detach() for field in fields(self)))


@dataclass(frozen=True)
class ValidCounts:
    """What the losses are means over."""

    actions: Int[Tensor, ""]
    tokens: Int[Tensor, ""]

    @classmethod
    def of(cls, batch: Batch) -> "ValidCounts":
        """Count in one batch."""
        return cls(num_valid_actions(batch.action_is_pad), num_valid_tokens(batch.future_tokens))


def policy_losses(
    policy: WorldPolicy,
    output: PolicyOutput,
    batch: Batch,
    world_loss_weight: float,
    counts: ValidCounts | None = None,
) -> Losses:
    """Compare a prediction with its batch.

    Args:
        policy: that predicted.
        output: its prediction.
        batch: what it predicted from, and what is right.
        world_loss_weight: λ.
        counts: of the whole batch where this one is a part of it.
    """
    counts = counts or ValidCounts.of(batch)
    target = policy.action_norm(batch.actions)
    action = action_loss(output.actions.float(), target, batch.action_is_pad, counts.actions)
    zero = torch.zeros_like(action)
    if output.world_logits is None:
        return Losses(total=action, action=action, world=zero, auxiliary=zero)
    world = world_loss(output.world_logits, batch.future_tokens, counts.tokens)
    total = action + world_loss_weight * world
    return Losses(total=total, action=action, world=world, auxiliary=zero)


_CXX_COMPILERS = ("g++", "clang++")


def compiled(policy: nn.Module, device: torch.device) -> nn.Module:
    """Return a module that computes as the policy does, with its weights, from compiled kernels.

    Each shape of batch is compiled at its first step; the policy itself stays as it is.

    Raises:
        InvalidInputError: the kernels would be C++, and there is no compiler.
    """
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else list(_CXX_COMPILERS)
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        raise InvalidInputError(
            f"--compile on a CPU needs a C++ compiler, and there is no {' or '.join(compilers)}; "
            "apt-get install g++, or leave out --compile"
        )
    return cast(nn.Module, torch.compile(policy))
