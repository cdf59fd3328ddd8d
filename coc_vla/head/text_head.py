"""The explaining head as the trainer sees it: a loss on part of each batch, and a record."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from coc_vla.head.decoding import next_token_losses, trace_losses
from coc_vla.head.targets import TextTargets, frames_along
from coc_vla.head.tokenizer import TextTokenizer
from coc_vla.model import DecoderConfig, TextContext, TextDecoder, decoder_config_from_dict
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.checkpoint import Checkpoint
from world_modality.policy.network import AuxiliaryHead, TrunkHidden, WorldPolicy
from world_modality.policy.predictions import hidden_states
from world_modality.system.errors import InvalidInputError

HEAD_NAME = "coc"
# Where in an episode the decoder is evaluated, as shares of its length.
EVAL_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class HeadTraining:
    """How the head is trained.

    Attributes:
        loss_weight: α.
        samples_per_batch: of each batch, at most so many frames have their text loss computed.
        seed: of the choice of these frames, of initial weights and dropout.
    """

    loss_weight: float
    samples_per_batch: int
    seed: int


@dataclass(frozen=True)
class HeadRecord:
    """What a checkpoint keeps of the head beside its weights.

    Attributes:
        decoder: its shape.
        context: what it reads of the trunk.
        tokenizer: as JSON.
        labels_sha256: of the label file.
    """

    decoder: DecoderConfig
    context: TextContext
    tokenizer: str
    labels_sha256: str

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "HeadRecord":
        """Read what `dataclasses.asdict` made of it."""
        decoder = decoder_config_from_dict(values["decoder"])
        return cls(decoder, values["context"], values["tokenizer"], values["labels_sha256"])


class ExplainingHead(AuxiliaryHead):
    """`L_coc`: mean cross-entropy over the real tokens of the traces of some frames of a batch.

    Every frame of a labelled episode has its episode's trace as the target. The decoder costs many
    times what the policy does, so each step computes it on a random part of the batch: the same
    mean, with more noise.

    Args:
        record: shape and tokenizer.
        training: weight, share and seed.
        targets: of training episodes.
        held_out: of validation episodes.
    """

    def __init__(
        self,
        record: HeadRecord,
        training: HeadTraining,
        targets: TextTargets,
        held_out: TextTargets,
    ) -> None:
        super().__init__()
        self.name = HEAD_NAME
        self.loss_weight = training.loss_weight
        self._record = record
        self._training = training
        self._targets = targets
        self._held_out = held_out
        self.tokenizer = TextTokenizer(record.tokenizer)
        with _own_random_numbers([training.seed], torch.device("cpu")):
            self.decoder = TextDecoder(record.decoder)

    def loss(
        self, frames: Int[Tensor, " B"], hidden: TrunkHidden, global_step: int
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy in nats; 0 where no frame has a trace."""
        rows = self._targets.of_frame[frames]
        labelled = self._targets.is_labelled[rows].nonzero()[:, 0]
        if len(labelled) == 0:
            return torch.zeros((), device=frames.device)
        rng = np.random.default_rng([self._training.seed, global_step])
        picked = rng.permutation(len(labelled))[: self._training.samples_per_batch]
        chosen = labelled[torch.from_numpy(picked).to(frames.device)]
        with _own_random_numbers([self._training.seed, global_step], frames.device):
            sums, counts = next_token_losses(
                self.decoder,
                hidden.select(chosen),
                self._targets.tokens[rows[chosen]],
                self.tokenizer.pad,
            )
        return sums.sum() / counts.sum()

    def validate(self, policy: WorldPolicy, tensors: FrameTensors) -> dict[str, float]:
        """Return the mean loss per token on held-out episodes, at five frames of each."""
        rows = self._held_out.is_labelled.nonzero()[:, 0].tolist()
        if not rows or self.loss_weight == 0:
            return {}
        frames = np.concatenate([frames_along(tensors.episodes, rows, s) for s in EVAL_SHARES])
        sums, counts = trace_losses(
            self.decoder,
            hidden_states(policy, tensors, frames),
            self._held_out.tokens[self._held_out.of_frame[torch.from_numpy(frames)]],
            self.tokenizer.pad,
        )
        return {f"val_{HEAD_NAME}_loss": float(sums.sum() / counts.sum())}

    def record(self) -> dict[str, Any]:
        """Return shape, context, tokenizer and the label file's hash."""
        return dataclasses.asdict(self._record)


@dataclass(frozen=True)
class Explainer:
    """The trained head of a checkpoint, to explain with."""

    decoder: TextDecoder
    tokenizer: TextTokenizer
    record: HeadRecord

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: torch.device) -> "Explainer":
        """Rebuild it in evaluation mode; no file but the checkpoint is read.

        Raises:
            InvalidInputError: the checkpoint has no explaining head, or an untrained one.
        """
        kept = checkpoint.auxiliary_head
        if kept is None or kept["name"] != HEAD_NAME:
            raise InvalidInputError(
                "the checkpoint has no explaining head; train one with python -m coc_vla.train"
            )
        if checkpoint.further_flags.get("coc_loss_weight") == 0:
            raise InvalidInputError(
                "the checkpoint's explaining head is untrained (--coc_loss_weight 0); train one "
                "with a positive weight"
            )
        record = HeadRecord.from_dict(kept["record"])
        decoder = TextDecoder(record.decoder)
        weights = {k.removeprefix("decoder."): v for k, v in kept["weights"].items()}
        decoder.load_state_dict(weights)
        return cls(decoder.to(device).eval(), TextTokenizer(record.tokenizer), record)


@contextmanager
def _own_random_numbers(seed: list[int], device: torch.device) -> Iterator[None]:
    """Draw from a generator of its own, and leave torch's global one as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield
