"""A synthetic cache whose episodes differ in a way that their labels tell, and small runs on it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coc_vla.labels import CocLabel
from coc_vla.trace import TraceStep, format_trace
from coc_vla.train import CocTrainConfig
from tests.cache_fixtures import SyntheticSpec, replace_arrays, write_synthetic_cache
from world_modality.cache import Cache

SPEC = SyntheticSpec(num_episodes=30, instruction_dim=5, val_fraction=0.3)
UP = (
    TraceStep("Close the gripper around the cube", "a firm hold moves it along"),
    TraceStep("Lift the cube", "it has to come off the table"),
)
DOWN = (
    TraceStep("Push the cube across", "the goal lies beside it"),
    TraceStep("Open the gripper and let go of the cube", "it can stay there"),
)


def is_up(episode: int) -> bool:
    """Say which of the two traces an episode has; half of each task has either."""
    return episode // SPEC.num_tasks % 2 == 0


def write_coc_cache(cache_dir: Path) -> Cache:
    """Write a cache in whose states every frame shows which trace its episode has."""
    cache = write_synthetic_cache(cache_dir, SPEC)
    states = np.array(cache.load("states"))
    episodes = np.array(cache.load("episode_index"))
    states[:] = np.where([is_up(e) for e in episodes.tolist()], 1, -1)[:, None]
    replace_arrays(cache, {"states": states})
    return Cache(cache.cache_dir, cache.dataset_name)


def label(
    episode: int, steps: Sequence[TraceStep] | None, instruction: str | None = None
) -> CocLabel:
    """Return the record of an episode of the synthetic cache; an error where there are no steps."""
    return CocLabel(
        episode_id=episode,
        instruction=instruction or f"do task {episode % SPEC.num_tasks}",
        keyframe_indices=(0, 5, 11),
        coc_text=tuple(steps or ()),
        raw_text=format_trace(steps or ()),
        model_name="hand",
        backend="rules",
        prompt_sha256=None,
        seed=0,
        error=None if steps else "no answer",
        seconds=0.0,
        tokens=None,
        attempts=1,
    )


def write_labels(path: Path, labels: Sequence[CocLabel]) -> Path:
    """Write a file of labels."""
    path.write_text("".join(record.to_json() + "\n" for record in labels))
    return path


def all_labels(path: Path) -> Path:
    """Label every episode of the synthetic cache with the trace that its states show."""
    episodes = range(SPEC.num_episodes)
    return write_labels(path, [label(e, UP if is_up(e) else DOWN) for e in episodes])


def coc_train_config(cache: Cache, labels: Path, log_dir: Path, **changes: Any) -> CocTrainConfig:
    """Return a training run of seconds."""
    config = CocTrainConfig(
        dataset_name=cache.dataset_name,
        cache_dir=cache.cache_dir,
        log_dir=log_dir,
        labels_jsonl=labels,
        use_language=True,
        context_frames=2,
        chunk_size=4,
        future_offset=2,
        d_model=32,
        n_layers=1,
        num_epochs=2,
        batch_size=32,
        warmup_steps=2,
        log_every=5,
        device="cpu",
        coc_samples_per_batch=8,
        max_text_tokens=64,
        text_width=32,
        text_layers=1,
        text_heads=2,
    )
    return dataclasses.replace(config, **changes)
