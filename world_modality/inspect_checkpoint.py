"""Show a checkpoint in one screen: arm, flags, data, fingerprints, results."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from world_modality.arms import ARMS
from world_modality.cache.contract import image_keys_of
from world_modality.export.reported_results import (
    PREDICTORS,
    CheckpointIdentity,
    ReportedResults,
)
from world_modality.policy.config import TrainConfig, flags_of
from world_modality.system.cli import flag_arguments, run_cli

if TYPE_CHECKING:
    from world_modality.policy.checkpoint import Checkpoint

_LABEL_WIDTH = 12
# Named on lines of their own.
_SHOWN_ELSEWHERE = ("dataset_name", "model_type", "token_control", "use_language", "seed")


@dataclass(frozen=True)
class InspectCheckpointConfig:
    """Show what a checkpoint is, what it was trained on, and what its reports say of it."""

    checkpoint: Path
    """A `model_<TYPE>_epoch<n>.pt` of the trainer."""


@dataclass(frozen=True)
class InspectedCheckpoint:
    """What a screen shows.

    Attributes:
        checkpoint: the file's content.
        identity: by what reports are known to be its own.
        results: those that lie beside it.
        lines: label and text, in their order.
    """

    checkpoint: "Checkpoint"
    identity: CheckpointIdentity
    results: ReportedResults
    lines: tuple[tuple[str, str], ...]


def run(config: InspectCheckpointConfig) -> InspectedCheckpoint:
    """Read the checkpoint and the reports beside it, and print them.

    Raises:
        UserError: the file or a report is missing or damaged.
    """
    import torch

    from world_modality.policy.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(config.checkpoint, torch.device("cpu"))
    identity = CheckpointIdentity.of(config.checkpoint, checkpoint)
    recording = checkpoint.manifest["dataset"].get("recording") or {}
    results = ReportedResults.of(identity, recording.get("rendering") or {})
    lines = (
        *_of_policy(checkpoint),
        *_of_data(checkpoint),
        *_of_identity(identity, checkpoint.manifest),
        *_of_results(results),
    )
    print(config.checkpoint)
    for label, text in lines:
        print(f"  {label:{_LABEL_WIDTH}} {text}")
    return InspectedCheckpoint(checkpoint, identity, results, lines)


def _of_policy(checkpoint: "Checkpoint") -> Iterator[tuple[str, str]]:
    policy, train = checkpoint.policy_config, checkpoint.train_config
    arm = ARMS[policy.model_type]
    reads = "reads the world token" if arm.reads_world else "reads no world token"
    targets = policy.target.world_target
    what = "future tokens" if targets == ("token",) else f"the future's {' and '.join(targets)}"
    predicts = f"{'predicts' if arm.predicts_world else 'does not predict'} {what}"
    control = "" if train.token_control == "none" else f", control {train.token_control}"
    yield "arm", f"{policy.model_type}{control}: {reads}, {predicts}"
    yield (
        "progress",
        f"{checkpoint.epoch} of {train.num_epochs} epochs, {checkpoint.global_step} steps, "
        f"seed {train.seed}",
    )
    window, trunk = policy.window, policy.trunk
    count = sum(weights.numel() for weights in checkpoint.model.values())
    yield (
        "network",
        f"{count / 1e6:.2f} M numbers, {trunk.n_layers} layers of width {trunk.d_model}; "
        f"{window.context_frames} frame{'s' * (window.context_frames > 1)} seen, "
        f"{window.chunk_size} actions at once, "
        f"{'language' if policy.reads_language else 'no language'}",
    )
    if checkpoint.auxiliary_head is not None:
        yield "head", f"{checkpoint.auxiliary_head['name']}, beside the actions"
    changed = " ".join(flag_arguments(_changed_flags(checkpoint)))
    yield "flags", changed or "the defaults"


def _changed_flags(checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return the flags that differ from their defaults and change what was trained."""
    defaults = flags_of(TrainConfig(dataset_name=""))
    hidden = {*_SHOWN_ELSEWHERE, *TrainConfig.may_change}
    return {
        name: value
        for name, value in checkpoint.train_flags.items()
        if name not in hidden and (name not in defaults or value != defaults[name])
    }


def _of_data(checkpoint: "Checkpoint") -> Iterator[tuple[str, str]]:
    manifest = checkpoint.manifest
    dataset, encoder, split = manifest["dataset"], manifest["encoder"], manifest["split"]
    revision = f" at {dataset['revision']}" if dataset.get("revision") else ""
    yield (
        "dataset",
        f"{dataset['name']}{revision}: {dataset['num_episodes']} episodes "
        f"({len(split['train'])} of training, {len(split['val'])} held out), "
        f"{dataset['num_frames']} frames, {dataset['num_tasks']} tasks, {dataset['fps']:g} fps",
    )
    columns = [*image_keys_of(dataset), dataset["state_key"], dataset["action_key"]]
    yield "columns", ", ".join(map(str, columns))
    if rendering := (dataset.get("recording") or {}).get("rendering"):
        yield "rendering", ", ".join(f"{k} {json.dumps(v)}" for k, v in rendering.items())
    pooling = f", pooling {encoder['pooling']}" if encoder.get("pooling") else ""
    yield (
        "encoder",
        f"{_named(encoder)}{pooling}, D={encoder['embedding_dim']}, weights "
        f"{encoder['weights_sha256'][:12]}",
    )
    yield "codebook", f"V={manifest['codebook']['num_tokens']}"
    if checkpoint.policy_config.reads_language and (text := manifest.get("text")):
        yield "text", f"{_named(text)}, L={text['embedding_dim']}"
    if encoder.get("note"):
        yield "note", encoder["note"]


def _named(record: Mapping[str, Any]) -> str:
    return f"{record['name']}@{record['revision']}" if record.get("revision") else record["name"]


def _of_identity(
    identity: CheckpointIdentity, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    num_bytes = identity.path.stat().st_size
    yield "file", f"{num_bytes / 1e6:.1f} MB, SHA-256 {identity.sha256}"
    yield "cache", f"fingerprint {identity.cache_fingerprint or 'none: it cannot be checked'}"
    versions = manifest.get("versions") or {}
    yield "made with", ", ".join(f"{name} {one}" for name, one in versions.items()) or "not known"


def _of_results(results: ReportedResults) -> Iterator[tuple[str, str]]:
    if results.offline is not None:
        errors = results.offline.errors
        shown = "; ".join(f"{label} {errors[name]}" for name, label in PREDICTORS.items())
        yield "offline", f"action error (training std²) on held-out episodes: {shown}"
        if results.offline.token_accuracy is not None:
            yield "", f"next world token, top-1: {results.offline.token_accuracy.percent}"
    for one in results.rollouts:
        token = "" if one.corruption == "none" else f" given a wrong token ({one.corruption})"
        yield (
            "success",
            f"{one.suite}{token}: {one.overall.percent} of {one.overall.num_episodes} episodes of "
            f"{len(one.tasks)} tasks, rendering {one.rendering}",
        )
    if results.offline is None and not results.rollouts:
        yield "results", "no report lies beside the checkpoint"


def main() -> None:
    """Run the stage from the command line."""
    run_cli(InspectCheckpointConfig, run)


if __name__ == "__main__":
    main()
