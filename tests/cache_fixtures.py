"""A small, complete cache with planted dynamics, written through the real CacheWriter.

Each episode walks through the codebook, `w -> (w + 1) % V`, staying `dwell` frames on each token;
with probability `slip` a frame's token is drawn at random instead. The embedding is the token's
centroid plus noise that never crosses a cell border, the action is a table of (task, token), and
states and object positions are linear in the embedding. So every statistic of the cache has a value
known beforehand.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from world_modality.cache import Cache
from world_modality.cache_writer import CacheWriter
from world_modality.episodes import Episodes, Split, split_episodes

DATASET_NAME = "synthetic/demo"
FPS = 10.0


@dataclass(frozen=True)
class SyntheticSpec:
    """Sizes and dynamics of a synthetic cache."""

    num_episodes: int = 20
    num_tasks: int = 2
    min_length: int = 12
    max_length: int = 24
    num_tokens: int = 8
    embedding_dim: int = 6
    state_dim: int = 4
    action_dim: int = 3
    environment_dim: int = 0
    """0 leaves `environment_states` out of the cache."""
    instruction_dim: int = 0
    """0 leaves `instruction_embeddings` out of the cache."""
    dwell: int = 2
    """Frames that the walk stays on each token."""
    slip: float = 0.0
    """Probability that a frame's token is drawn at random."""
    noise: float = 0.01
    """Standard deviation of the noise on states and actions."""
    val_fraction: float = 0.2
    stand_in_note: str | None = None
    """Not None marks the encoder as a stand-in with this note."""
    seed: int = 0


def synthetic_arrays(spec: SyntheticSpec) -> dict[str, np.ndarray]:
    """Return the arrays of the cache by name, in the dtypes of the cache contract."""
    rng = np.random.default_rng(spec.seed)
    lengths = rng.integers(spec.min_length, spec.max_length + 1, spec.num_episodes)
    episode_index = np.repeat(np.arange(spec.num_episodes), lengths)
    task_index = episode_index % spec.num_tasks
    step = np.concatenate([np.arange(length) for length in lengths])
    start = rng.integers(0, spec.num_tokens, spec.num_episodes)
    tokens = (start[episode_index] + step // spec.dwell) % spec.num_tokens
    slipped = rng.random(len(tokens)) < spec.slip
    tokens[slipped] = rng.integers(0, spec.num_tokens, slipped.sum())

    centroids = rng.normal(size=(spec.num_tokens, spec.embedding_dim)).astype(np.float32)
    offsets = rng.normal(size=(len(tokens), spec.embedding_dim))
    offsets *= 0.3 * _nearest_distance(centroids) / np.linalg.norm(offsets, axis=1, keepdims=True)
    embeddings = (centroids[tokens] + offsets).astype(np.float16)

    def linear(num_dims: int) -> np.ndarray:
        weights = rng.normal(size=(spec.embedding_dim, num_dims))
        clean = embeddings.astype(np.float64) @ weights
        return (clean + spec.noise * rng.normal(size=clean.shape)).astype(np.float32)

    table = rng.normal(size=(spec.num_tasks, spec.num_tokens, spec.action_dim))
    actions = table[task_index, tokens]
    actions = actions + spec.noise * rng.normal(size=actions.shape)
    arrays = {
        "embeddings": embeddings,
        "world_tokens": tokens.astype(np.int32),
        "codebook_centroids": centroids,
        "states": linear(spec.state_dim),
        "actions": actions.astype(np.float32),
        "episode_index": episode_index.astype(np.int32),
        "task_index": task_index.astype(np.int32),
    }
    if spec.environment_dim:
        arrays["environment_states"] = linear(spec.environment_dim)
    if spec.instruction_dim:
        per_task = rng.normal(size=(spec.num_tasks, spec.instruction_dim))
        arrays["instruction_embeddings"] = per_task[task_index].astype(np.float16)
    return arrays


def write_synthetic_cache(
    cache_dir: Path, spec: SyntheticSpec | None = None, dataset_name: str = DATASET_NAME
) -> Cache:
    """Write a complete cache (arrays and manifest) and return it opened.

    The held-out episodes are `cache.manifest["split"]["val"]`; `synthetic_arrays(spec)` returns
    what was written.
    """
    spec = spec or SyntheticSpec()
    arrays = synthetic_arrays(spec)
    cache = Cache(cache_dir, dataset_name)
    instructions = arrays.pop("instruction_embeddings", None)
    replace_arrays(cache, arrays, synthetic_sections(spec, arrays))
    if instructions is not None:
        text = {"name": "synthetic-text", "max_length": 8, "embedding_dim": spec.instruction_dim}
        replace_arrays(cache, {"instruction_embeddings": instructions}, {"text": text})
    return Cache(cache_dir, dataset_name)


def replace_arrays(
    cache: Cache, arrays: dict[str, np.ndarray], sections: dict[str, Any] | None = None
) -> None:
    """Write arrays into the cache with the manifest to match, as a stage would."""
    writer = CacheWriter(cache, "synthetic", {"writes": sorted(arrays)})
    for name, array in arrays.items():
        writer.put(name, array)
    writer.publish(sections or {})


def synthetic_split(spec: SyntheticSpec, arrays: dict[str, np.ndarray]) -> Split:
    """Return the split that the manifest of this cache records."""
    episodes = Episodes.from_frames(arrays["episode_index"], arrays["task_index"])
    return split_episodes(episodes, spec.val_fraction, spec.seed)


def synthetic_sections(spec: SyntheticSpec, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the manifest's sections for these arrays."""
    split = synthetic_split(spec, arrays)
    names = [f"object_{i}" for i in range(spec.environment_dim)]
    return {
        "dataset": {
            "name": DATASET_NAME,
            "revision": None,
            "num_frames": len(arrays["world_tokens"]),
            "num_episodes": spec.num_episodes,
            "num_tasks": spec.num_tasks,
            "tasks": {str(i): f"do task {i}" for i in range(spec.num_tasks)},
            "fps": FPS,
            "image_key": "observation.image",
            "state_key": "observation.state",
            "action_key": "action",
            "episode_key": "episode_index",
            "recording": None,
            "environment_state_names": names or None,
        },
        "encoder": {
            "name": "synthetic-encoder",
            "kind": "synthetic",
            "revision": None,
            "weights_sha256": "0" * 64,
            "pooling": "cls",
            "image_size": 32,
            "embedding_dim": spec.embedding_dim,
            "is_stand_in": spec.stand_in_note is not None,
            "note": spec.stand_in_note,
        },
        "codebook": {
            "num_tokens": spec.num_tokens,
            "l2_normalize": False,
            "backend": "sklearn",
            "seed": spec.seed,
            "fitted_on": split.train,
        },
        "split": {
            "val_fraction": spec.val_fraction,
            "seed": spec.seed,
            **dataclasses.asdict(split),
        },
    }


def _nearest_distance(centroids: np.ndarray) -> float:
    distances = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min())
