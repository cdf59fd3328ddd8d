"""The explaining head as the trainer sees it: targets, a loss on part of each batch, a record."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coc_vla.head.decoder_config import DecoderConfig, TextContext, decoder_config_from_dict
from coc_vla.head.decoding import next_token_losses, trace_losses
from coc_vla.head.tokenizer import TextTokenizer
from coc_vla.labels.record import GENERATION_COMMAND, read_records
from coc_vla.labels.settings import require_episode_key
from coc_vla.labels.trace import TraceStep
from coc_vla.model import TextDecoder
from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.checkpoint import Checkpoint
from world_modality.policy.network import AuxiliaryHead, TrunkHidden, WorldPolicy
from world_modality.policy.predictions import hidden_states
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError

HEAD_NAME = "coc"
# Where in an episode the decoder is evaluated, as shares of its length.
EVAL_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class EpisodeTraces:
    """The traces and instructions of a file's labels by `episode_index`, and a count of errors."""

    path: Path
    steps: dict[int, tuple[TraceStep, ...]]
    instructions: dict[int, str]
    num_errors: int

    def among(self, episode_ids: Sequence[int]) -> dict[int, tuple[TraceStep, ...]]:
        """Return the traces of those of these episodes that have one."""
        return {i: self.steps[i] for i in episode_ids if i in self.steps}


def read_traces(path: Path, cache: Cache, episodes: Episodes) -> EpisodeTraces:
    """Read the labels of a cache's episodes.

    Raises:
        MissingFileError: there is no such file.
        InvalidInputError: it is damaged, numbers the episodes by another column, or labels episodes
            that the cache lacks or that were told something else.
    """
    require_episode_key(path, cache.episode_key)
    steps: dict[int, tuple[TraceStep, ...]] = {}
    instructions: dict[int, str] = {}
    num_errors = 0
    known = dict(zip(episodes.ids.tolist(), episodes.tasks.tolist(), strict=True))
    for label in read_records(path):
        if label.episode_id not in known:
            raise InvalidInputError(
                f"{path} labels episode {label.episode_id}, which {cache.dataset_name} in "
                f"{cache.folder} does not have ({len(known)} episodes, {min(known)} to "
                f"{max(known)}); give the labels of this dataset, or label it with "
                f"{GENERATION_COMMAND} --dataset_name {cache.dataset_name} …"
            )
        expected = _instructions(cache, known[label.episode_id])
        if label.instruction.strip() not in {text.strip() for text in expected}:
            shown = " or ".join(repr(text) for text in sorted(expected)[:3])
            raise InvalidInputError(
                f"{path} labels episode {label.episode_id} with the instruction "
                f"{label.instruction!r}, but the cache says {shown}: labels of another dataset?"
            )
        if label.is_label:
            steps[label.episode_id] = label.coc_text
            instructions[label.episode_id] = label.instruction
        num_errors += not label.is_label
    return EpisodeTraces(path, steps, instructions, num_errors)


def _instructions(cache: Cache, task: int) -> set[str]:
    """Return what an episode of this task may have been told."""
    manifest = cache.manifest
    own = {manifest["dataset"]["tasks"][str(task)]}
    text = manifest.get("text") or {}
    if text.get("source", "task_table") == "task_table":
        return own
    # Texts of a column are listed without their frames.
    return own | set(text["texts"].values())


@dataclass(frozen=True)
class TextTargets:
    """Traces as token ids, one row for each episode of the cache.

    Attributes:
        tokens: begin mark to end mark, then padding; all padding without a trace.
        is_labelled: which episodes have one.
        of_frame: each frame's row.
    """

    tokens: Int[Tensor, "E L"]
    is_labelled: Bool[Tensor, " E"]
    of_frame: Int[Tensor, " N"]

    def tokens_at(self, frames: Int[np.ndarray, " B"]) -> Int[Tensor, "B L"]:
        """Return the trace of each of these frames' episodes."""
        return self.tokens[self.of_frame[torch.from_numpy(frames)]]


def text_targets(
    traces: dict[int, tuple[TraceStep, ...]],
    episodes: Episodes,
    tokenizer: TextTokenizer,
    max_tokens: int,
    device: torch.device,
) -> TextTargets:
    """Encode traces.

    Raises:
        InvalidInputError: some are longer than `max_tokens`.
    """
    encoded = {i: tokenizer.encode(steps) for i, steps in traces.items()}
    lengths = np.array([len(ids) for ids in encoded.values()], dtype=np.int64)
    if (lengths > max_tokens).any():
        raise InvalidInputError(
            f"{(lengths > max_tokens).sum()} of {len(lengths)} traces are longer than "
            f"--max_text_tokens {max_tokens}, the longest has {lengths.max()} tokens; raise it to "
            f"{lengths.max()} or more"
        )
    tokens = np.full((len(episodes), max_tokens), tokenizer.pad, dtype=np.int64)
    for row, episode in enumerate(episodes.ids.tolist()):
        ids = encoded.get(episode, [])
        tokens[row, : len(ids)] = ids
    return TextTargets(
        tokens=torch.from_numpy(tokens).to(device),
        is_labelled=torch.from_numpy(np.isin(episodes.ids, list(encoded))).to(device),
        of_frame=torch.from_numpy(episodes.of_frame).to(device),
    )


def eval_frames(episodes: Episodes, rows: Int[np.ndarray, " E2"]) -> Int[np.ndarray, "shares E2"]:
    """Return the frames at `EVAL_SHARES` of the length of the episodes at these positions."""
    steps = np.rint(np.outer(EVAL_SHARES, episodes.lengths[rows] - 1)).astype(np.int64)
    frames: np.ndarray = episodes.starts[rows] + steps
    return frames


@dataclass(frozen=True)
class HeadRecord:
    """What a checkpoint keeps of the head beside its weights; the tokenizer as JSON."""

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
        targets: of training episodes.
        held_out: of validation episodes.
        loss_weight: α.
        samples_per_batch: of each batch, at most this many frames have their text loss computed.
        seed: of the choice of these frames, of initial weights and dropout.
    """

    def __init__(
        self,
        record: HeadRecord,
        targets: TextTargets,
        held_out: TextTargets,
        *,
        loss_weight: float,
        samples_per_batch: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.name = HEAD_NAME
        self.loss_weight = loss_weight
        self.tokenizer = TextTokenizer(record.tokenizer)
        self._record, self._targets, self._held_out = record, targets, held_out
        self._samples_per_batch, self._seed = samples_per_batch, seed
        with _own_random_numbers([seed], torch.device("cpu")):
            self.decoder = TextDecoder(record.decoder)

    def loss(
        self, frames: Int[Tensor, " B"], hidden: TrunkHidden, global_step: int
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy in nats; 0 where no frame has a trace."""
        rows = self._targets.of_frame[frames]
        labelled = self._targets.is_labelled[rows].nonzero()[:, 0]
        if len(labelled) == 0:
            return torch.zeros((), device=frames.device)
        rng = np.random.default_rng([self._seed, global_step])
        picked = rng.permutation(len(labelled))[: self._samples_per_batch]
        chosen = labelled[torch.from_numpy(picked).to(frames.device)]
        with _own_random_numbers([self._seed, global_step], frames.device):
            tokens = self._targets.tokens[rows[chosen]]
            sums, counts = next_token_losses(
                self.decoder, hidden.select(chosen), tokens, self.tokenizer.pad
            )
        return sums.sum() / counts.sum()

    def validate(self, policy: WorldPolicy, tensors: FrameTensors) -> dict[str, float]:
        """Return the mean loss per token on held-out episodes, at five frames of each."""
        rows = self._held_out.is_labelled.nonzero()[:, 0].cpu().numpy()
        if len(rows) == 0 or self.loss_weight == 0:
            return {}
        frames = eval_frames(tensors.episodes, rows).reshape(-1)
        hidden, tokens = hidden_states(policy, tensors, frames), self._held_out.tokens_at(frames)
        sums, counts = trace_losses(self.decoder, hidden, tokens, self.tokenizer.pad)
        return {f"val_{HEAD_NAME}_loss": float(sums.sum() / counts.sum())}

    def record(self) -> dict[str, Any]:
        """Return what rebuilds the head beside its weights."""
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
        decoder.load_state_dict(
            {name.removeprefix("decoder."): value for name, value in kept["weights"].items()}
        )
        return cls(decoder.to(device).eval(), TextTokenizer(record.tokenizer), record)


@contextmanager
def _own_random_numbers(seed: list[int], device: torch.device) -> Iterator[None]:
    """Draw from numbers of its own, and leave torch's global generator as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        yield
