"""From a checkpoint to the parts of an exported policy, each checked against the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

from world_modality.cache.contract import image_keys_of, sha256_of_array, sha256_of_file
from world_modality.encode.embedding_components import EmbeddingComponents
from world_modality.encode.text_encoder import IDENTITY, REQUESTED, load_text_encoder
from world_modality.encode.vision_encoders import ENCODERS, load_encoder
from world_modality.export.policy_record import (
    INSTRUCTION_ARRAY,
    ArrayRecord,
    PolicyRecord,
    lerobot_key,
    require_readable_token,
)
from world_modality.policy.checkpoint import Checkpoint, load_checkpoint
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.codebook import load_quantiser

CPU = torch.device("cpu")
# The actions of these suites' recordings are shares of the largest step.
RANGES_BY_SUITE = {"libero": (-1.0, 1.0), "metaworld": (-1.0, 1.0)}
_DATASET_ENTRIES = (
    *("name", "revision", "content_sha256", "fps", "num_episodes", "num_frames", "num_tasks"),
    *("tasks", "action_key"),
)


@dataclass(frozen=True)
class PolicyParts:
    """An exported policy before it is written.

    Attributes:
        record: what its `config.json` says.
        weights: the network's weights and statistics.
        arrays: those that the record describes.
        checkpoint: where all came from.
    """

    record: PolicyRecord
    weights: Mapping[str, Tensor]
    arrays: Mapping[str, np.ndarray]
    checkpoint: Checkpoint

    @classmethod
    def of(cls, path: Path, text_model_name: str | None = None) -> "PolicyParts":
        """Read a checkpoint and embed the instructions that it was trained with.

        Args:
            path: the checkpoint's file.
            text_model_name: the text model's folder or hub name where it has moved since.

        Raises:
            UserError: the file is missing or damaged, its parts do not belong together, it reads
                what LeRobot does not give, or its text model cannot be loaded.
        """
        checkpoint = load_checkpoint(path, CPU)
        manifest = checkpoint.manifest
        if not checkpoint.cache_fingerprint:
            raise InvalidInputError(
                f"{path} has no fingerprint of the cache it was trained on, so that its encoder "
                "and codebook cannot be checked; train again"
            )
        control = checkpoint.train_config.token_control
        require_readable_token(control)
        arrays = _checked_arrays(checkpoint)
        text: dict[str, Any] | None = None
        instructions: tuple[str, ...] = ()
        if checkpoint.policy_config.reads_language:
            text, instructions = _text_of(manifest)
            arrays[INSTRUCTION_ARRAY] = _embedded(instructions, text, text_model_name)
        dataset = manifest["dataset"]
        record = PolicyRecord(
            policy=checkpoint.policy_config,
            token_control=control,
            image_key=image_keys_of(dataset)[0],
            state_key=str(dataset["state_key"]),
            encoder=manifest["encoder"],
            codebook=manifest["codebook"],
            text=text,
            instructions=instructions,
            arrays={name: ArrayRecord.of(array) for name, array in arrays.items()},
            dataset={name: dataset.get(name) for name in _DATASET_ENTRIES},
            checkpoint={
                "sha256": sha256_of_file(path),
                "epoch": checkpoint.epoch,
                "global_step": checkpoint.global_step,
                "cache_fingerprint": checkpoint.cache_fingerprint,
                "seed": checkpoint.train_config.seed,
            },
            observation=manifest.get("observation"),
        )
        _require_cameras(record, image_keys_of(dataset))
        record.load_tokeniser(arrays)
        return cls(record, checkpoint.model, arrays, checkpoint)

    @property
    def recording(self) -> Mapping[str, Any]:
        """What the dataset says of its recording; nothing where this project did not record it."""
        return self.checkpoint.manifest["dataset"].get("recording") or {}

    @property
    def suite(self) -> str:
        """The suite that was recorded; empty where it is not known."""
        return str((self.recording.get("suite") or {}).get("name", ""))

    @property
    def rendering(self) -> Mapping[str, Any]:
        """How the recording's images were made; nothing where it is not known."""
        return self.recording.get("rendering") or {}

    @property
    def recorded_action_range(self) -> tuple[float, float] | None:
        """The range of a simulator's actions; None for a dataset that does not say it."""
        ranges = [one for name, one in RANGES_BY_SUITE.items() if self.suite.startswith(name)]
        return ranges[0] if ranges else None


def _require_cameras(record: PolicyRecord, image_keys: list[str]) -> None:
    if list(record.image_keys) != image_keys:
        raise InvalidInputError(
            f"the checkpoint's dataset was read from {' and '.join(image_keys)}, but its frames "
            f"are views of {' and '.join(record.image_keys)}; train again on one cache"
        )
    if len(set(record.observed_images)) < len(image_keys):
        raise InvalidInputError(
            f"LeRobot's names of the cameras {' and '.join(image_keys)} are the same "
            f"({lerobot_key(image_keys[0])}, …); rename one in the dataset, and train again"
        )


def _checked_arrays(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Return the arrays of codebook, encoder and components.

    Raises:
        InvalidInputError: one is missing, or is not the one that the manifest describes.
    """
    manifest = checkpoint.manifest
    held = {name: one.cpu().numpy() for name, one in checkpoint.cache_arrays.items()}
    arrays = dict(load_quantiser(manifest["codebook"], held).arrays)
    kind = manifest["encoder"]["kind"]
    if kind in ENCODERS and ENCODERS[kind].fitted is not None:
        arrays |= load_encoder(manifest["encoder"], held, CPU).arrays
    observation = manifest.get("observation")
    if observation is not None and observation["components"] is not None:
        arrays |= EmbeddingComponents.load(observation["components"], held).arrays
    for name, array in arrays.items():
        if sha256_of_array(array) != manifest["arrays"].get(name, {}).get("sha256"):
            raise InvalidInputError(
                f"the checkpoint's array {name} is not the one that its manifest describes (the "
                "SHA-256 differs); train again on one cache"
            )
    return arrays


def _text_of(manifest: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    text = manifest.get("text")
    if text is None:
        raise InvalidInputError(
            "the checkpoint's policy reads language, but its manifest does not say which text "
            "model embedded the instructions; train again"
        )
    record = {name: text[name] for name in (*REQUESTED, *IDENTITY, "note") if name in text}
    return record, tuple(dict.fromkeys(text.get("texts", {}).values()))


def _embedded(
    instructions: tuple[str, ...], text: Mapping[str, Any], model_name: str | None
) -> Float16[np.ndarray, "n L"]:
    encoder = load_text_encoder(text, CPU, model_name=model_name)
    # One by one, as a rollout does it: a batch could round the last bit otherwise.
    rows = [encoder.encode([one])[0].astype(np.float16) for one in instructions]
    return np.array(rows, dtype=np.float16).reshape(len(rows), encoder.embedding_dim)
