"""The heads on the trunk's states, and their losses: `L = L_action + λ·L_world`.

An action head is a row of `ACTION_HEADS`, with its prediction and its loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from world_modality.arms import WorldTarget
from world_modality.cache.frame_tensors import IGNORED_TOKEN, Batch
from world_modality.policy.config import VectorLoss
from world_modality.system.errors import missing_key


class ActionHead(nn.Module, ABC):
    """Predicts action chunks from the trunk's states at ACT×H."""

    @abstractmethod
    def forward(self, states: Float[Tensor, "B H d"]) -> Float[Tensor, "B H A"]:
        """Predict standardised actions."""

    @abstractmethod
    def loss(
        self,
        states: Float[Tensor, "B H d"],
        predicted: Float[Tensor, "B H A"],
        target: Float[Tensor, "B H A"],
        action_is_pad: Bool[Tensor, "B H"],
        count: Int[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return the mean loss over the valid part of the chunks.

        Args:
            states: as for `forward`.
            predicted: what `forward` made of them.
            target: standardised actions.
            action_is_pad: marks what is not valid.
            count: number of valid steps that the sum is divided by. The losses of a batch's parts,
                each divided by the count of the whole batch, add up to its loss.
        """


class ChunkRegression(nn.Linear, ActionHead):
    """The chunk at once, by its mean squared error (as in LeRobot's ACT)."""

    def loss(
        self,
        states: Float[Tensor, "B H d"],
        predicted: Float[Tensor, "B H A"],
        target: Float[Tensor, "B H A"],
        action_is_pad: Bool[Tensor, "B H"],
        count: Int[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """Return the mean squared error."""
        squared = (predicted.float() - target).square().mean(dim=-1)
        # No step is valid where no episode of the batch has labels.
        return (squared * ~action_is_pad).sum() / count.clamp(min=1)


# By the name that a checkpoint stores; each is built of d_model and the action's dimension.
ACTION_HEADS: Mapping[str, Callable[[int, int], ActionHead]] = {"mse": ChunkRegression}


def build_action_head(name: str, d_model: int, action_dim: int) -> ActionHead:
    """Return a new action head.

    Raises:
        MissingKeyError: this version has no such head.
    """
    if name not in ACTION_HEADS:
        raise missing_key("action head", name, ACTION_HEADS, "this version")
    return ACTION_HEADS[name](d_model, action_dim)


def world_loss(
    logits: Float[Tensor, "B K *W V"], future_tokens: Int[Tensor, "B K *W"], count: Int[Tensor, ""]
) -> Float[Tensor, " slots"]:
    """Return each slot's mean cross-entropy in nats over the `count` tokens inside the episode.

    0 where there is none; `count` as for an action head.
    """
    sums = [
        functional.cross_entropy(
            scores.flatten(0, 1).float(),
            tokens.flatten(),
            ignore_index=IGNORED_TOKEN,
            reduction="sum",
        )
        for scores, tokens in zip(_by_slot(logits, 3), _by_slot(future_tokens, 2), strict=True)
    ]
    return torch.stack(sums) / count.clamp(min=1)


def vector_loss(
    predicted: Float[Tensor, "B K D"],
    target: Float[Tensor, "B K D"],
    inside: Bool[Tensor, "B K"],
    count: Int[Tensor, ""],
    kind: VectorLoss,
) -> Float[Tensor, ""]:
    """Return the mean loss over the `count` vectors that lie inside the episode.

    0 where there is none; `count` as for an action head.

    Args:
        predicted: in standard deviations.
        target: likewise.
        inside: what counts.
        count: number of vectors that the sum is divided by.
        kind: the mean squared error over the dimensions, or one minus the cosine (as FLARE,
            2505.15659, aligns its future embeddings).
    """
    if kind == "cosine":
        errors = 1 - functional.cosine_similarity(predicted.float(), target, dim=-1)
    else:
        errors = (predicted.float() - target).square().mean(dim=-1)
    return (errors * inside).sum() / count.clamp(min=1)


def change_token_loss(
    logits: Float[Tensor, "B X"], change_tokens: Int[Tensor, " B"], count: Int[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy in nats over the `count` changes inside the episode."""
    summed = functional.cross_entropy(
        logits.float(), change_tokens, ignore_index=IGNORED_TOKEN, reduction="sum"
    )
    return summed / count.clamp(min=1)


def _by_slot(values: Tensor, num_axes: int) -> Sequence[Tensor]:
    """Split along the axis W, which is the third one where there is one."""
    return [values] if values.dim() == num_axes else values.unbind(2)


@dataclass(frozen=True)
class Losses:
    """The total that is minimised, and its parts.

    Attributes:
        total: `action + λ·world`, and the weighted loss of a further head.
        action: of the action head.
        world: of each target, and of a token each of its slots; λ weighs the sum over the targets,
            where slots count by their mean.
        auxiliary: of a further head; 0 without one.
    """

    total: Float[Tensor, ""]
    action: Float[Tensor, ""]
    world: Float[Tensor, " terms"]
    auxiliary: Float[Tensor, ""]

    def with_auxiliary(self, loss: Float[Tensor, ""], weight: float) -> "Losses":
        """Add the weighted loss of a further head."""
        return replace(self, total=self.total + weight * loss, auxiliary=loss)

    def stacked(self) -> Float[Tensor, " terms"]:
        """Return total, action, the world's terms and auxiliary as one tensor without a graph."""
        return torch.stack([self.total, self.action, *self.world, self.auxiliary]).detach()

    @classmethod
    def of_stacked(cls, terms: Float[Tensor, " terms"]) -> "Losses":
        """Take apart what `stacked` made."""
        return cls(terms[0], terms[1], terms[2:-1], terms[-1])


def loss_names(num_world_slots: int, targets: Sequence[WorldTarget] = ("token",)) -> list[str]:
    """Return the names of the terms of `Losses.stacked` without the auxiliary one."""
    slots = [f"_slot{slot}" for slot in range(num_world_slots)] if num_world_slots > 1 else [""]
    names = ["loss", "action_loss"]
    for target in targets:
        is_token = target == "token"
        names += [f"world_loss{slot}" for slot in slots] if is_token else [f"{target}_loss"]
    return names


@dataclass(frozen=True)
class ValidCounts:
    """What the losses are means over.

    Attributes:
        actions: chunk steps inside the episode.
        tokens: future tokens of one slot inside the episode, the same number for every slot.
        changes: windows whose last future step lies inside the episode.
    """

    actions: Int[Tensor, ""]
    tokens: Int[Tensor, ""]
    changes: Int[Tensor, ""]

    @classmethod
    def of(cls, batch: Batch) -> "ValidCounts":
        """Count in one batch."""
        inside = future_is_inside(batch)
        return cls((~batch.action_is_pad).sum(), inside.sum(), inside[:, -1].sum())


def future_is_inside(batch: Batch) -> Bool[Tensor, "B K"]:
    """Mark the future steps inside the episode."""
    return _by_slot(batch.future_tokens, 2)[0] != IGNORED_TOKEN
