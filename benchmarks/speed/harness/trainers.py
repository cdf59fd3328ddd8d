"""Trainers on drawn frames, and what they are compared with."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, count
from typing import Any, cast

import torch

from benchmarks.speed.harness.drawn import CACHE_NAME
from world_modality.cache.contract import Cache
from world_modality.cache.frame_shapes import WindowShape
from world_modality.cache.frame_tensors import Batch, FrameTensors
from world_modality.policy.config import TrainConfig, from_flags
from world_modality.policy.network import WorldPolicy
from world_modality.system.device import resolve_device
from world_modality.system.process_group import ProcessGroup
from world_modality.system.recorded_calls import RecordedCalls, Tensors
from world_modality.tokens.control_tokens import TokenControl
from world_modality.training.trainer import StepRecord, Trainer, adamw, autocast


def drawn_train_config(**flags: Any) -> TrainConfig:
    """Return arm C's flags for a drawn cache; `flags` are those that differ from the trainer's."""
    return from_flags(TrainConfig, {"dataset_name": CACHE_NAME, "model_type": "C", **flags})


def open_trainer(cache: Cache, config: TrainConfig, group: ProcessGroup | None = None) -> Trainer:
    """Return a trainer at its beginning, on the training episodes of a drawn cache.

    `group` shares each batch; None leaves it to this process alone.
    """
    device = resolve_device(config.device) if group is None else group.device
    tensors = FrameTensors.from_cache(cache, device, place=config.embeddings_on)
    frames = tensors.episodes.frames_of(cache.manifest["split"]["train"])
    policy_config = config.policy_config(tensors.frame_shape(cache.num_tokens))
    torch.manual_seed(config.seed)
    policy = WorldPolicy(policy_config).to(tensors.device)
    return Trainer(policy, tensors, frames, config, group=group)


def endless_steps(trainer: Trainer) -> Iterator[StepRecord]:
    """Train epoch after epoch."""
    return chain.from_iterable(trainer.epoch(number) for number in count())


def bare_step(trainer: Trainer, *, clip: bool) -> Callable[[], object]:
    """Return a step on one batch that is there already, by a model of the trainer's shape."""
    config, device = trainer.config, trainer.tensors.device
    model = WorldPolicy(trainer.policy.config).to(device).train()
    optimizer = adamw([{"params": list(model.parameters())}], config)
    batch = trainer.tensors.gather(torch.arange(config.batch_size), trainer.window_shape)

    def step(tensors: Tensors) -> torch.Tensor:
        own = Batch(**tensors)
        with autocast(config.precision, device):
            output = model(own.embeddings, own.states, own.world_tokens)
        optimizer.zero_grad(set_to_none=True)
        total = model.losses(output, own, config.world_loss_weight).total
        total.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        return total.detach()

    # A loop that launched kernel by kernel would be no floor on a GPU.
    return partial(RecordedCalls(step, device) if device.type == "cuda" else step, batch.tensors())


def without_dropout(trainer: Trainer, *kinds: type[torch.nn.Module]) -> Trainer:
    """Switch the dropout of these modules off, in a trainer that has not made a step yet."""
    for module in trainer.policy.modules():
        if isinstance(module, kinds):
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    return trainer


class FedBatches:
    """Replaces a trainer's control: hands it the batches that something else has loaded."""

    def __init__(self, batches: Iterator[Batch], device: torch.device) -> None:
        self._batches = batches
        self._device = device

    def gather(
        self, frames: torch.Tensor, shape: WindowShape, step: int, part: slice = slice(None)
    ) -> Batch:
        """Return the next batch on the device, whatever the frames."""
        batch = next(self._batches)
        moved = {n: v.to(self._device) for n, v in vars(batch).items() if v is not None}
        return replace(batch, **moved)


def feed(trainer: Trainer, batches: Iterator[Batch]) -> None:
    """Let a trainer step on these batches from now on."""
    trainer.control = cast(TokenControl, FedBatches(batches, trainer.tensors.device))
