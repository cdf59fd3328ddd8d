"""Where the action queries look: their attention to each kind of token, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from world_modality.policy.network import PolicyOutput, WorldPolicy


@dataclass(frozen=True)
class ActionAttention:
    """How the attention of the action queries is spread, averaged over queries and heads.

    Attributes:
        by_kind: the sum over the tokens of each kind (`lang`, `obs`, `world`, `fut`, `act`), of
            which there is one at least; those of a layer add up to 1.
        world: of each world token that is read, those of earlier frames first; none for an arm that
            reads none.
    """

    by_kind: dict[str, Float[Tensor, "B layers"]]
    world: Float[Tensor, "B layers tokens"]

    @classmethod
    def concatenate(cls, parts: Sequence["ActionAttention"]) -> "ActionAttention":
        """Join those of several batches."""
        kinds = parts[0].by_kind
        by_kind = {kind: torch.cat([part.by_kind[kind] for part in parts]) for kind in kinds}
        return cls(by_kind, torch.cat([part.world for part in parts]))


@torch.inference_mode()
def attended_outputs(
    policy: WorldPolicy, *context: Tensor | None
) -> tuple[PolicyOutput, ActionAttention]:
    """Run a policy and return its output, and its attention to reach it.

    The weights are computed again from what each layer was given, since torch's encoder keeps none.

    Args:
        policy: set to evaluation.
        context: what `WorldPolicy.forward` takes.
    """
    given: list[Tensor] = []

    def keep(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        given.append(arguments[0])

    hooks = [layer.register_forward_pre_hook(keep) for layer in policy.trunk.layers]
    try:
        output = policy(*context)
    finally:
        for hook in hooks:
            hook.remove()
    weights = torch.stack(
        [
            _weights(layer, tokens, policy.get_buffer("_blocked"))
            for layer, tokens in zip(policy.trunk.layers, given, strict=True)
        ],
        dim=1,
    )
    kinds = policy._kinds()
    of_queries = weights[:, :, -kinds["act"] :].mean(dim=2)
    parts = dict(zip(kinds, of_queries.split(list(kinds.values()), dim=-1), strict=True))
    by_kind = {kind: part.sum(dim=-1) for kind, part in parts.items() if kinds[kind] > 0}
    return output, ActionAttention(by_kind, parts["world"])


def _weights(layer: Any, tokens: Float[Tensor, "B L d"], blocked: Tensor) -> Float[Tensor, "B L L"]:
    """Return the attention of a pre-norm layer's tokens to each other, averaged over heads."""
    normed = layer.norm1(tokens)
    weights: Tensor = layer.self_attn(normed, normed, normed, attn_mask=blocked)[1]
    return weights
