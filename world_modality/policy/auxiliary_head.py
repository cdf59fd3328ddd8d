"""A further head on the trunk, trained by the same loop and kept in the same checkpoint."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.network import PolicyConfig, TrunkHidden, WorldPolicy


class AuxiliaryHead(nn.Module, ABC):
    """What the trainer asks of a further head.

    `L = L_action + λ·L_world + loss_weight·L_head`. A weight of 0 leaves the head out of the
    training altogether, and the policy ends bit-identical to one trained without it. To keep that
    so for every other weight as far as the random numbers go, a head draws nothing from torch's
    global generator when it computes its loss: what it needs depends on `global_step` alone, which
    also makes a resumed run repeat it.

    Attributes:
        name: what its loss is called in metrics.jsonl.
        loss_weight: factor on its loss.
    """

    name: str
    loss_weight: float

    @abstractmethod
    def loss(
        self, frames: Int[Tensor, " B"], hidden: TrunkHidden, global_step: int
    ) -> Float[Tensor, ""]:
        """Return the loss at these frames, from the trunk's states there."""

    @abstractmethod
    def validate(self, policy: WorldPolicy, tensors: FrameTensors) -> dict[str, float]:
        """Return metrics on held-out episodes, named `val_…`."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """Return what rebuilds the head beside its weights: plain values only."""

    def content(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"name": self.name, "record": self.record(), "weights": self.state_dict()}


@dataclass(frozen=True)
class HeadSite:
    """Where a head is built.

    Attributes:
        cache: that is trained on.
        tensors: its frames on the device.
        policy_config: of the trunk.
        stored: the record of the checkpoint that the run goes on from, or None.
    """

    cache: Cache
    tensors: FrameTensors
    policy_config: PolicyConfig
    stored: dict[str, Any] | None


HeadBuilder = Callable[[HeadSite], AuxiliaryHead]
