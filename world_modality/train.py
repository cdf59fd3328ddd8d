"""Train one arm: `train_baseline_a.py`, `train_baseline_b.py` and `train_model_c.py` start here."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tqdm import tqdm

from world_modality.auxiliary_head import HeadBuilder, HeadSite
from world_modality.cache import Cache
from world_modality.checkpoint import (
    Checkpoint,
    checkpoint_arrays,
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from world_modality.cli import config_dict, write_config
from world_modality.device import resolve_device
from world_modality.errors import InvalidInputError
from world_modality.frame_tensors import FrameTensors
from world_modality.offline_predictions import predict
from world_modality.policy import WorldPolicy
from world_modality.run_log import RunLog
from world_modality.train_config import TrainConfig, require_same_run
from world_modality.trainer import Trainer, fit_standardizers


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
        InvalidInputError: the cache, the flags or an existing run in `log_dir` do not fit.
        MissingFileError: the cache is incomplete.
    """
    stored = _existing_checkpoint(config)
    device = resolve_device(config.device)
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    tensors = FrameTensors.from_cache(cache, device, with_language=config.use_language)
    tensors.episodes.require_context(config.context_frames)
    val_frames = tensors.episodes.frames_of(cache.manifest["split"]["val"])
    if stored is not None:
        stored.require_cache(cache)
    trainer = _build_trainer(config, cache, tensors, build_head, stored)
    first_epoch = 0 if stored is None else stored.epoch
    write_config(config, config.log_dir / "config.json")
    _print_header(config, cache, trainer, val_frames)
    log = RunLog(config.log_dir, num_epochs=first_epoch, num_steps=trainer.global_step)
    metrics = log.last_epoch_metrics
    for epoch in range(first_epoch, config.num_epochs):
        metrics = _train_epoch(trainer, epoch, log) | validate(trainer.policy, tensors, val_frames)
        if trainer.head is not None:
            metrics |= trainer.head.validate(trainer.policy, tensors)
        log.epoch(epoch, trainer.global_step, metrics)
        # The checkpoint goes last: what it says is done has been logged.
        save_checkpoint(
            checkpoint_path(config.log_dir, config.model_type, epoch),
            _checkpoint(config, cache, trainer, epoch + 1),
        )
        print(f"epoch {epoch}: " + ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
    log.close()
    path = checkpoint_path(config.log_dir, config.model_type, config.num_epochs - 1)
    print(f"checkpoint: {path}")
    return TrainResult(path, metrics)


def _existing_checkpoint(config: TrainConfig) -> Checkpoint | None:
    path = latest_checkpoint(config.log_dir, config.model_type)
    others = [p for p in config.log_dir.glob("model_*.pt") if path is None]
    if config.overwrite:
        for old in config.log_dir.glob("model_*.pt"):
            old.unlink()
        return None
    if others or (path is not None and not config.resume):
        raise InvalidInputError(
            f"{config.log_dir} already holds a run ({(path or others[0]).name}); give --resume to "
            "go on with it, --overwrite to replace it, or another --log_dir"
        )
    if path is None:
        return None
    stored = load_checkpoint(path, torch.device("cpu"))
    require_same_run(stored.train_config, config)
    return stored


def _build_trainer(
    config: TrainConfig,
    cache: Cache,
    tensors: FrameTensors,
    build_head: HeadBuilder | None,
    stored: Checkpoint | None,
) -> Trainer:
    policy_config = config.policy_config(
        embedding_dim=tensors.embeddings.shape[1],
        state_dim=tensors.states.shape[1],
        action_dim=tensors.actions.shape[1],
        num_world_tokens=cache.manifest["arrays"]["codebook_centroids"]["shape"][0],
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
    trainer = Trainer(policy, tensors, frames, config, head)
    if stored is not None:
        policy.load_state_dict(stored.model)
        trainer.restore(stored.training_state, stored.global_step)
    return trainer


def _train_epoch(trainer: Trainer, epoch: int, log: RunLog) -> dict[str, float]:
    names = ["loss", "action_loss", "world_loss"]
    names += [] if trainer.head is None else [f"{trainer.head.name}_loss"]
    totals = torch.zeros(len(names), device=trainer.tensors.device)
    every = trainer.config.log_every
    bar = tqdm(trainer.epoch(epoch), total=trainer.steps_per_epoch, desc=f"epoch {epoch}")
    for record in bar:
        losses = torch.stack(dataclasses.astuple(record.losses)[: len(names)])
        totals += losses
        if record.global_step % every == 0:
            total, *parts = losses.tolist()
            _require_finite_loss(total, record.global_step)
            named = dict(zip(names[1:], parts, strict=True))
            log.step(record.global_step, named, record.learning_rate)
            bar.set_postfix(loss=f"{total:.4f}")
    mean = (totals / trainer.steps_per_epoch).tolist()
    _require_finite_loss(mean[0], trainer.global_step)
    return {f"train_{name}": value for name, value in zip(names, mean, strict=True)}


def _require_finite_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise InvalidInputError(
            f"the loss is {loss} at step {step}; lower --learning_rate, or look for outliers "
            "in the cache's actions, states and embeddings"
        )


def validate(
    policy: WorldPolicy, tensors: FrameTensors, frames: Int[np.ndarray, " M"]
) -> dict[str, float]:
    """Return exact means over the validation frames.

    `val_action_mse` is in units of the training standard deviation; `val_world_top1` and
    `val_world_top5` are over all horizons.
    """
    errors = predict(policy, tensors, frames)
    metrics = {"val_action_mse": float(errors.squared_error.sum() / errors.valid.sum())}
    if errors.token_rank is not None:
        ranks = errors.token_rank[errors.token_rank >= 0]
        metrics["val_world_top1"] = float((ranks == 0).mean())
        metrics["val_world_top5"] = float((ranks < 5).mean())
    return metrics


def _checkpoint(config: TrainConfig, cache: Cache, trainer: Trainer, epoch: int) -> Checkpoint:
    return Checkpoint(
        policy_config=trainer.policy.config,
        train_config=config_dict(config),
        epoch=epoch,
        global_step=trainer.global_step,
        model=trainer.policy.state_dict(),
        training_state=trainer.state(),
        manifest=cache.manifest,
        cache_fingerprint=cache.fingerprint(with_language=config.use_language),
        cache_arrays=checkpoint_arrays(cache),
        auxiliary_head=None if trainer.head is None else trainer.head.content(),
    )


def _print_header(
    config: TrainConfig, cache: Cache, trainer: Trainer, val_frames: Int[np.ndarray, " M"]
) -> None:
    num_parameters = sum(p.numel() for p in trainer.policy.parameters())
    encoder = cache.manifest["encoder"]
    print(
        f"model {config.model_type}: {num_parameters / 1e6:.2f} M parameters on "
        f"{trainer.tensors.device}, {trainer.steps_per_epoch} steps an epoch, "
        f"{len(val_frames)} validation frames; encoder {encoder['name']}"
    )
    if config.use_language:
        print(f"language: {cache.manifest['text']['name']}")
    if trainer.head is not None:
        num_own = sum(p.numel() for p in trainer.head.parameters())
        print(f"{trainer.head.name} head: {num_own / 1e6:.2f} M parameters")
    if encoder.get("note"):
        print(f"note: {encoder['note']}")
