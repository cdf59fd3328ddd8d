"""A trainer on a cache of random arrays, for measuring."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.source.episodes import Episodes, split_episodes

if TYPE_CHECKING:
    from world_modality.cache.frame_tensors import FrameTensors
    from world_modality.policy.config import TrainConfig
    from world_modality.system.process_group import ProcessGroup
    from world_modality.training.trainer import Trainer

DATASET_NAME = "synthetic/libero_sized"
NUM_TASKS = 40


def synthetic_train_config(**flags: Any) -> "TrainConfig":
    """Return arm C's flags for such a cache; `flags` are those that differ from the trainer's."""
    from world_modality.policy.config import TrainConfig, from_flags

    return from_flags(TrainConfig, {"dataset_name": DATASET_NAME, "model_type": "C", **flags})


def write_synthetic_cache(cache_dir: Path, num_frames: int, embedding_dim: int) -> Cache:
    """Write a complete cache of random arrays; S 8 and A 7 are LIBERO's, V is 1,024."""
    cache = Cache(cache_dir, DATASET_NAME)
    if cache.manifest_path.exists():
        return cache
    rng = np.random.default_rng(0)
    episode_index = np.arange(num_frames, dtype=np.int32) // 160
    task_index = episode_index % NUM_TASKS
    writer = CacheWriter(cache, "precompute", {"num_frames": num_frames, "dim": embedding_dim})
    writer.open("embeddings", (num_frames, embedding_dim))
    for start in range(0, num_frames, 16_384):
        rows = min(16_384, num_frames - start)
        block = rng.standard_normal((rows, embedding_dim), dtype=np.float32)
        writer.write(start, {"embeddings": block.astype(np.float16)})
    writer.put("world_tokens", rng.integers(0, 1024, num_frames, dtype=np.int32))
    centroids = rng.standard_normal((1024, embedding_dim), dtype=np.float32)
    writer.put("codebook_centroids", centroids)
    writer.put("states", rng.standard_normal((num_frames, 8), dtype=np.float32))
    writer.put("actions", rng.standard_normal((num_frames, 7), dtype=np.float32))
    writer.put("episode_index", episode_index)
    writer.put("task_index", task_index.astype(np.int32))
    split = split_episodes(Episodes.from_frames(episode_index, task_index), 0.1, 0)
    writer.publish(
        {
            "dataset": {
                "name": DATASET_NAME,
                "num_frames": num_frames,
                "tasks": {str(task): f"task {task}" for task in range(NUM_TASKS)},
            },
            "encoder": {"name": "random numbers", "note": None},
            "codebook": {"num_tokens": 1024},
            "split": {"train": split.train, "val": split.val},
        }
    )
    return cache


def open_trainer(
    cache: Cache, config: "TrainConfig", group: "ProcessGroup | None" = None
) -> "Trainer":
    """Return a trainer at its beginning, on the training episodes of such a cache.

    `group` shares each batch; None leaves it to this process alone.
    """
    from world_modality.cache.frame_tensors import FrameTensors
    from world_modality.system.device import resolve_device

    device = resolve_device(config.device) if group is None else group.device
    tensors = FrameTensors.from_cache(cache, device, place=config.embeddings_on)
    frames = tensors.episodes.frames_of(cache.manifest["split"]["train"])
    num_tokens = cache.manifest["arrays"]["codebook_centroids"]["shape"][0]
    return trainer_on(tensors, frames, num_tokens, config, group)


def trainer_on(
    tensors: "FrameTensors",
    frames: Int[np.ndarray, " M"],
    num_world_tokens: int,
    config: "TrainConfig",
    group: "ProcessGroup | None" = None,
) -> "Trainer":
    """Return a trainer at its beginning, on frames that came from anywhere."""
    import torch

    from world_modality.policy.network import WorldPolicy
    from world_modality.training.trainer import Trainer

    policy_config = config.policy_config(tensors.frame_shape(num_world_tokens))
    torch.manual_seed(config.seed)
    policy = WorldPolicy(policy_config).to(tensors.device)
    return Trainer(policy, tensors, frames, config, group=group)
