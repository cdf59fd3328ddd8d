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
from world_modality.cache.hub_cache import open_cache
from world_modality.policy.checkpoint import (
    Checkpoint,
    checkpoint_arrays,
    load_checkpoint,
    newest_first,
)
from world_modality.policy.config import TrainConfig, flags_of, stored_train_config
from world_modality.policy.futures import num_change_tokens
from world_modality.policy.network import HeadBuilder, HeadSite, WorldPolicy
from world_modality.source.episodes import labelled_episodes
from world_modality.system.atomic import write_json
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock
from world_modality.system.process_group import ProcessGroup
from world_modality.system.stop_signals import StopSignals
from world_modality.tokens.privileged_tokens import PrivilegedCodebook
from world_modality.training.run import TrainingRun
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
    """Load what is trained on; raises as `run`."""
    cache = open_cache(config)
    return FrameTensors.from_cache(
        cache,
        device,
        with_language=config.use_language,
        place=config.embeddings_on,
        futures=config.futures,
        num_change_tokens=num_change_tokens(config, cache),
    )


def open_run(
    config: TrainConfig,
    tensors: FrameTensors,
    stored: Checkpoint | None,
    group: ProcessGroup | None = None,
    build_head: HeadBuilder | None = None,
    stop: StopSignals | None = None,
) -> TrainingRun:
    """Bring a run to where it goes on from, torch's generators included; trains nothing yet.

    Args:
        config: all flags; its `log_dir` is locked by the caller.
        tensors: what is trained on.
        stored: the checkpoint that the run goes on from, if any.
        group: the processes that train it; None for this one alone.
        build_head: see `run`.
        stop: see `TrainingRun`.

    Raises:
        InvalidInputError, MissingFileError: see `run`.
    """
    cache = open_cache(config)
    window, episodes = config.window, tensors.episodes
    episodes.require_context(window.context_frames)
    episodes.require_reach(
        f"--context_frames {window.context_frames} --context_stride {window.context_stride}",
        window.context_lags[0],
    )
    episodes.require_reach(
        f"--world_history {window.world_history} "
        f"--world_history_stride {window.world_history_stride}",
        window.world_lags[0],
    )
    val_frames = episodes.frames_of(cache.manifest["split"]["val"])
    if stored is not None:
        stored.require_cache(cache)
    group = group or ProcessGroup(tensors.device)
    codebook = _privileged_codebook(config, cache, stored)
    own_tokens = None if codebook is None else codebook.tokens(cache)
    trainer = _build_trainer(config, cache, tensors, group, build_head, stored, own_tokens)
    if group.is_first:
        write_json(config.log_dir / "config.json", flags_of(config))
    start = _blank_checkpoint(config, cache, trainer, own_tokens)
    if codebook is not None:
        carried = {name: torch.from_numpy(array) for name, array in codebook.arrays().items()}
        start = dataclasses.replace(start, cache_arrays={**start.cache_arrays, **carried})
    if stored is not None:
        state = stored.training_state
        start = dataclasses.replace(start, epoch=stored.epoch, training_state=state)
    return TrainingRun(config, trainer, val_frames, start, stop)


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
    _require_same_run(stored, config)
    return stored


def _require_same_run(stored: Checkpoint, config: TrainConfig) -> None:
    """Check that a resumption asks for the run that the checkpoint belongs to.

    Raises:
        InvalidInputError: names the flags that differ, with both values.
    """
    then, now = stored.train_flags, flags_of(config)
    names = (then.keys() | now.keys()) - config.may_change
    differing = sorted(name for name in names if then.get(name) != now.get(name))
    if differing:
        shown = ", ".join(f"--{n} {then.get(n)} then, {now.get(n)} now" for n in differing)
        raise InvalidInputError(
            f"cannot resume {config.log_dir}: {shown}; give the same flags, another --log_dir, "
            "or --overwrite"
        )


def _newest_whole(paths: list[Path]) -> Checkpoint:
    """Load the first checkpoint that is not damaged, and warn of those that are.

    Raises:
        InvalidInputError: all are damaged.
    """
    newest, *older = paths
    try:
        stored = load_checkpoint(newest, torch.device("cpu"))
    except InvalidInputError as error:
        if not older:
            raise
        print(f"warning: {error}", file=sys.stderr)
        return _newest_whole(older)
    print(f"going on from {newest}, step {stored.global_step}")
    return stored


def _build_trainer(
    config: TrainConfig,
    cache: Cache,
    tensors: FrameTensors,
    group: ProcessGroup,
    build_head: HeadBuilder | None,
    stored: Checkpoint | None,
    own_tokens: Int[np.ndarray, " N *W"] | None,
) -> Trainer:
    policy_config = config.policy_config(tensors.frame_shape(cache.num_tokens))
    torch.manual_seed(config.seed)
    policy = WorldPolicy(policy_config).to(tensors.device)
    train_ids = cache.manifest["split"]["train"]
    frames = tensors.episodes.frames_of(train_ids)
    labelled = None
    if config.labelled_fraction < 1:
        chosen = config.labelled_fraction, config.seed
        labelled = tensors.episodes.frames_of(
            labelled_episodes(tensors.episodes, train_ids, *chosen)
        )
    fit_standardizers(policy, tensors, frames, labelled)
    head = None
    if build_head is not None:
        kept = None if stored is None else stored.auxiliary_head
        record = None if kept is None else kept["record"]
        head = build_head(HeadSite(cache, tensors, policy_config, record)).to(tensors.device)
        if kept is not None:
            head.load_state_dict(kept["weights"])
    # Dropout draws the same numbers however many the arm's own layers drew at their creation.
    torch.manual_seed(config.seed)
    trainer = Trainer(policy, tensors, frames, config, head, group, own_tokens, labelled)
    if stored is not None:
        policy.load_state_dict(stored.model)
        trainer.restore(stored.training_state, stored.global_step)
    group.draw_own_dropout(config.seed, trainer.global_step)
    return trainer


def _privileged_codebook(
    config: TrainConfig, cache: Cache, stored: Checkpoint | None
) -> PrivilegedCodebook | None:
    """Return the codebook of the true state, the stored run's own one; None where none is read."""
    if config.token_control != "privileged":
        return None
    if stored is None:
        return PrivilegedCodebook.of_cache(cache)
    return PrivilegedCodebook.from_arrays(
        {name: array.numpy() for name, array in stored.cache_arrays.items()}
    )


def _blank_checkpoint(
    config: TrainConfig,
    cache: Cache,
    trainer: Trainer,
    own_tokens: Int[np.ndarray, " N *W"] | None,
) -> Checkpoint:
    """Return what all checkpoints of the run have in common."""
    train_config, further_flags = stored_train_config(flags_of(config))
    return Checkpoint(
        policy_config=trainer.policy.config,
        train_config=train_config,
        further_flags=further_flags,
        epoch=0,
        global_step=0,
        model={},
        training_state={},
        manifest=cache.manifest,
        cache_fingerprint=cache.fingerprint(with_language=config.use_language),
        cache_arrays=checkpoint_arrays(
            cache, with_streams=trainer.policy.config.reads_world, own_tokens=own_tokens
        ),
    )
