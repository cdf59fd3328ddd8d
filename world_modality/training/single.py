"""One training from its flags: the cache loaded, the run opened or resumed, taken to its end."""

import dataclasses
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from world_modality.cache.contract import Cache
from world_modality.cache.frame_tensors import FrameTensors
from world_modality.policy.auxiliary_head import HeadBuilder, HeadSite
from world_modality.policy.checkpoint import (
    Checkpoint,
    checkpoint_arrays,
    load_checkpoint,
    newest_first,
)
from world_modality.policy.network import WorldPolicy
from world_modality.system.cli import config_dict, write_config
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock
from world_modality.system.process_group import ProcessGroup
from world_modality.training.config import TrainConfig, require_same_run
from world_modality.training.run import Company, TrainingRun
from world_modality.training.trainer import Trainer, fit_standardizers


@dataclass(frozen=True)
class TrainResult:
    """Where the run ended."""

    checkpoint: Path
    metrics: dict[str, Any]


def run(config: TrainConfig, build_head: HeadBuilder | None = None) -> TrainResult:
    """Train, or go on training, the arm that `config` names.

    Args:
        config: all flags.
        build_head: makes a further head for the trunk; None trains the policy alone.

    Raises:
        InvalidInputError: the cache, the flags or an existing run in `log_dir` do not fit, or
            another process trains there.
        MissingFileError: the cache is incomplete.
    """
    with ProcessGroup.joined(config.device) as group, ExitStack() as held:
        if build_head is not None and not group.is_alone:
            raise InvalidInputError(
                f"a further head is trained by one process, not by {group.num_processes}; start "
                "the training without a launcher"
            )
        lock = OutputLock(config.log_dir, "--log_dir")

        def begin() -> Checkpoint | None:
            held.enter_context(lock)
            return existing_checkpoint(config)

        stored = group.from_first(begin)
        training = group.together(
            lambda: open_run(config, load_frames(config, group.device), stored, group, build_head)
        )
        metrics = training.to_the_end()
        print(f"checkpoint: {training.checkpoint}")
    return TrainResult(training.checkpoint, metrics)


def load_frames(config: TrainConfig, device: torch.device) -> FrameTensors:
    """Load what is trained on.

    Raises:
        InvalidInputError, MissingFileError: the cache does not fit, or is missing.
    """
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    return FrameTensors.from_cache(
        cache, device, with_language=config.use_language, place=config.embeddings_on
    )


def open_run(
    config: TrainConfig,
    tensors: FrameTensors,
    stored: Checkpoint | None,
    group: ProcessGroup | None = None,
    build_head: HeadBuilder | None = None,
    company: Company | None = None,
) -> TrainingRun:
    """Bring a run to where it goes on from, torch's generators included; trains nothing yet.

    Args:
        config: all flags; its `log_dir` is locked by the caller.
        tensors: what is trained on.
        stored: the checkpoint that the run goes on from, if any.
        group: the processes that train it; None for this one alone.
        build_head: see `run`.
        company: of the runs that are trained beside it.

    Raises:
        InvalidInputError, MissingFileError: see `run`.
    """
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    tensors.episodes.require_context(config.context_frames)
    val_frames = tensors.episodes.frames_of(cache.manifest["split"]["val"])
    if stored is not None:
        stored.require_cache(cache)
    group = group or ProcessGroup(tensors.device)
    trainer = _build_trainer(config, cache, tensors, group, build_head, stored)
    if group.is_first:
        write_config(config, config.log_dir / "config.json")
    if company is None or company.seeds[0] == config.seed:
        _print_header(config, cache, trainer, val_frames)
    start = _blank_checkpoint(config, cache, trainer)
    if stored is not None:
        state = stored.training_state
        start = dataclasses.replace(start, epoch=stored.epoch, training_state=state)
    return TrainingRun(config, trainer, val_frames, start, company)


def existing_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """Return what a run in `log_dir` goes on from; None where it starts.

    Raises:
        InvalidInputError: another run is there, or this one without `resume`, or a damaged one.
    """
    if config.overwrite:
        for old in config.log_dir.glob("model_*.pt"):
            old.unlink()
        return None
    found = newest_first(config.log_dir, config.model_type)
    others = [] if found else list(config.log_dir.glob("model_*.pt"))
    if others or (found and not config.resume):
        raise InvalidInputError(
            f"{config.log_dir} already holds a run ({(found or others)[0].name}); give --resume to "
            "go on with it, --overwrite to replace it, or another --log_dir"
        )
    if not found:
        return None
    stored = _newest_whole(found)
    require_same_run(stored.train_config, config)
    return stored


def _newest_whole(paths: list[Path]) -> Checkpoint:
    """Load the first checkpoint that is not damaged, and tell of those that are.

    Raises:
        InvalidInputError: all are damaged.
    """
    for number, path in enumerate(paths):
        try:
            stored = load_checkpoint(path, torch.device("cpu"))
        except InvalidInputError as error:
            if number == len(paths) - 1:
                raise
            print(f"warning: {error}", file=sys.stderr)
        else:
            print(f"going on from {path}, step {stored.global_step}")
            return stored
    raise AssertionError("there are no paths")


def _build_trainer(
    config: TrainConfig,
    cache: Cache,
    tensors: FrameTensors,
    group: ProcessGroup,
    build_head: HeadBuilder | None,
    stored: Checkpoint | None,
) -> Trainer:
    policy_config = config.policy_config(
        embedding_dim=tensors.embeddings.shape[1],
        state_dim=tensors.states.shape[1],
        action_dim=tensors.actions.shape[1],
        num_world_tokens=cache.num_tokens,
        instruction_dim=0 if tensors.instructions is None else tensors.instructions.shape[1],
    )
    torch.manual_seed(config.seed)
    policy = WorldPolicy(policy_config).to(tensors.device)
    frames = tensors.episodes.frames_of(cache.manifest["split"]["train"])
    fit_standardizers(policy, tensors, frames)
    head = None
    if build_head is not None:
        kept = None if stored is None else stored.auxiliary_head
        record = None if kept is None else kept["record"]
        head = build_head(HeadSite(cache, tensors, policy_config, record)).to(tensors.device)
        if kept is not None:
            head.load_state_dict(kept["weights"])
    # Dropout draws the same numbers however many the arm's own layers drew at their creation.
    torch.manual_seed(config.seed)
    trainer = Trainer(policy, tensors, frames, config, head, group)
    if stored is not None:
        policy.load_state_dict(stored.model)
        trainer.restore(stored.training_state, stored.global_step)
    group.draw_own_dropout(config.seed, trainer.global_step)
    return trainer


def _blank_checkpoint(config: TrainConfig, cache: Cache, trainer: Trainer) -> Checkpoint:
    """Return what all checkpoints of the run have in common."""
    return Checkpoint(
        policy_config=trainer.policy.config,
        train_config=config_dict(config),
        epoch=0,
        global_step=0,
        model={},
        training_state={},
        manifest=cache.manifest,
        cache_fingerprint=cache.fingerprint(with_language=config.use_language),
        cache_arrays=checkpoint_arrays(cache),
    )


def _print_header(
    config: TrainConfig, cache: Cache, trainer: Trainer, val_frames: Int[np.ndarray, " M"]
) -> None:
    num_parameters = sum(p.numel() for p in trainer.policy.parameters())
    encoder = cache.manifest["encoder"]
    print(
        f"model {config.model_type}: {num_parameters / 1e6:.2f} M parameters on "
        f"{_devices(trainer)}, {trainer.steps_per_epoch} steps an epoch, "
        f"{len(val_frames)} validation frames; encoder {encoder['name']}"
    )
    if config.use_language:
        print(f"language: {cache.manifest['text']['name']}")
    if trainer.head is not None:
        num_own = sum(p.numel() for p in trainer.head.parameters())
        print(f"{trainer.head.name} head: {num_own / 1e6:.2f} M parameters")
    if encoder.get("note"):
        print(f"note: {encoder['note']}")


def _devices(trainer: Trainer) -> str:
    device, group = trainer.tensors.device, trainer.group
    return str(device) if group.is_alone else f"{device.type} of {group.num_processes} processes"
