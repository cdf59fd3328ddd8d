"""A policy's action head as one recorded graph: the same kernels without Python between them."""

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from world_modality.policy.network import WorldPolicy


class _ActionHead(nn.Module):
    """Context in, actions in the simulator's units out."""

    def __init__(self, policy: WorldPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, *context: Tensor) -> Tensor:
        """Predict an action chunk, as float32."""
        actions: Tensor = self.policy(*context).actions
        return self.policy.action_norm.inverse(actions.float())


class TracedActions:
    """Predicts the action chunks of groups of one size, bit for bit as the policy itself does.

    For one observation most of a small policy's time is Python: a trace of the demo's takes 0.7 ms
    where its modules take 1.2.
    """

    def __init__(self, policy: WorldPolicy, group_size: int) -> None:
        """Record a policy that is set to evaluation; its weights are shared, not copied.

        Args:
            policy: on the device where the groups will be.
            group_size: B of every call.
        """
        self._context_shapes = _context_shapes(policy, group_size)
        device = policy.action_norm.mean.device
        example = tuple(
            torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in self._context_shapes
        )
        with warnings.catch_warnings(), torch.no_grad():
            # The trace holds for this batch size only, which is the one it gets.
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            # torch names torch.export instead, whose graph rounds otherwise and is slower here.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._graph: Any = torch.jit.trace(
                _ActionHead(policy).eval(), example, check_trace=False
            )

    def __call__(self, *context: Tensor) -> Float[Tensor, "B H A"]:
        """Predict from what `WorldPolicy.forward` takes, in its order.

        Raises:
            ValueError: a tensor is not of the shape and type that was recorded.
        """
        found = [(tuple(tensor.shape), tensor.dtype) for tensor in context]
        if found != self._context_shapes:
            raise ValueError(
                f"the policy was recorded for inputs of {self._context_shapes}, got {found}"
            )
        # Later calls would fuse operations that the first ones do not, and round otherwise.
        unfused = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
        with torch.inference_mode(), unfused:
            actions: Tensor = self._graph(*context)
        return actions


def _context_shapes(
    policy: WorldPolicy, group_size: int
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    config, frame = policy.config, policy.config.frame
    observation = frame.observation
    frames = (group_size, config.window.context_frames)
    shapes = [
        ((*frames, *observation.axis, observation.embedding_dim), torch.float16),
        ((*frames, frame.state_dim), torch.float32),
        ((group_size, *config.world_axis), torch.int64),
    ]
    if config.reads_language:
        shapes.append(((group_size, frame.instruction_dim), torch.float16))
    return shapes
