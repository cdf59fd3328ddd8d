"""Small policies and frames for tests of models and training."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tests.cache_fixtures import SyntheticSpec, write_synthetic_cache
from world_modality import archive_seal
from world_modality.cache import Cache
from world_modality.checkpoint import load_checkpoint
from world_modality.frame_tensors import FrameTensors
from world_modality.policy import ModelType, PolicyConfig
from world_modality.train_config import TrainConfig

MODEL_TYPES: tuple[ModelType, ...] = ("A", "B", "C", "C_no_world_input")


def tiny_policy_config(model_type: ModelType, **changes: Any) -> PolicyConfig:
    """Return a policy of two layers that fits the default synthetic cache."""
    config = PolicyConfig(
        model_type=model_type,
        embedding_dim=6,
        state_dim=4,
        action_dim=3,
        num_world_tokens=8,
        instruction_dim=0,
        context_frames=2,
        chunk_size=4,
        future_offset=3,
        future_stride=2,
        d_model=32,
        n_layers=2,
        n_heads=4,
        dropout=0.0,
        world_input_scale=1.0,
        world_input_dropout=0.0,
        world_input_layernorm=False,
        block_world_to_action=False,
    )
    return dataclasses.replace(config, **changes)


def tiny_train_config(
    cache: Cache, log_dir: Path, model_type: ModelType, **changes: Any
) -> TrainConfig:
    """Return a training run of seconds on a synthetic cache."""
    config = TrainConfig(
        dataset_name=cache.dataset_name,
        cache_dir=cache.cache_dir,
        log_dir=log_dir,
        model_type=model_type,
        context_frames=2,
        chunk_size=4,
        future_offset=3,
        future_stride=2,
        d_model=32,
        n_layers=2,
        num_epochs=2,
        batch_size=32,
        warmup_steps=2,
        log_every=5,
        device="cpu",
    )
    return dataclasses.replace(config, **changes)


def synthetic_tensors(cache_dir: Path, spec: SyntheticSpec | None = None) -> FrameTensors:
    """Return a synthetic cache's frames on the CPU."""
    cache = write_synthetic_cache(cache_dir, spec)
    return FrameTensors.from_cache(cache, torch.device("cpu"))


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights and statistics that a checkpoint holds."""
    return load_checkpoint(path, torch.device("cpu")).model


def save_sealed(content: Any, path: Path) -> None:
    """Write what a checkpoint could hold as its file, whatever it is."""
    with path.open("wb") as file:
        archive_seal.save_sealed(content, file)


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Check that two policies are equal to the last bit."""
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def assert_same_content(one, other):
    """Compare what checkpoints hold, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_content(one[key], other[key])
    elif isinstance(one, list):
        for item, other_item in zip(one, other, strict=True):
            assert_same_content(item, other_item)
    else:
        assert one == other
