"""What the policy gives for a batch: its predictions, and the trunk's states that they rest on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TrunkHidden:
    """The trunk's output at the tokens that say what is asked, what is there and what comes.

    Each is None where the arm has no such token. A further head reads these, so that the trunk runs
    once for all heads.

    Attributes:
        lang: at LANG, which attends to itself alone: a function of the instruction.
        world: at WORLD_CUR.
        future: at FUT×K, which see LANG, OBS, WORLD_CUR and each other.
    """

    lang: Float[Tensor, "B 1 d"] | None
    world: Float[Tensor, "B 1 d"] | None
    future: Float[Tensor, "B K d"] | None

    def select(self, samples: Int[Tensor, " B2"]) -> "TrunkHidden":
        """Return the states of these samples of the batch."""
        return TrunkHidden(
            lang=None if self.lang is None else self.lang[samples],
            world=None if self.world is None else self.world[samples],
            future=None if self.future is None else self.future[samples],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["TrunkHidden"]) -> "TrunkHidden":
        """Join the states of several batches of one policy; at least one batch."""

        def joined(states: list[Tensor | None]) -> Tensor | None:
            given = [state for state in states if state is not None]
            return torch.cat(given) if given else None

        return cls(
            lang=joined([part.lang for part in parts]),
            world=joined([part.world for part in parts]),
            future=joined([part.future for part in parts]),
        )


@dataclass(frozen=True)
class PolicyOutput:
    """What the policy predicts.

    Attributes:
        actions: standardised action chunk.
        world_logits: of the future tokens; None for arm A.
        hidden: what further heads read.
    """

    actions: Float[Tensor, "B H A"]
    world_logits: Float[Tensor, "B K V"] | None
    hidden: TrunkHidden
