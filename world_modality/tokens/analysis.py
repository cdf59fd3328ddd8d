"""All figures about one cache's world tokens, for the report, the plot and the advice."""

from dataclasses import dataclass

import numpy as np

from world_modality.cache.contract import Cache, require_arrays
from world_modality.source.episodes import Episodes, Split
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.information import (
    Dependence,
    episode_phase,
    phase_dependence,
    phase_histogram,
    task_dependence,
)
from world_modality.tokens.linear_probe import ProbeFrames, ProbeResult, run_probes
from world_modality.tokens.statistics import (
    Dwell,
    HorizonScores,
    Usage,
    codebook_usage,
    horizon_scores,
    token_dwell,
)


@dataclass(frozen=True)
class Analysis:
    """What is known about the world tokens of one cache.

    Attributes:
        fps: frames per second, where the manifest has it.
        encoder_note: what has to be said about the encoder wherever its figures appear, or None.
        train_usage, val_usage: the codebook's usage by training and by validation frames.
        train_dwell, val_dwell: how long tokens last there.
        horizons: predictability for k = 1…max_k, on validation episodes.
        task, phase: what the token tells, on training episodes.
        phase_counts: training frames by token and phase, [V, 10].
        probes: by array name, `states` and where recorded `environment_states`; None where nothing
            varies.
    """

    dataset_name: str
    fps: float | None
    encoder_name: str
    encoder_note: str | None
    l2_normalize: bool
    num_tokens: int
    num_train_episodes: int
    num_val_episodes: int
    train_usage: Usage
    val_usage: Usage
    train_dwell: Dwell
    val_dwell: Dwell
    horizons: list[HorizonScores]
    task: Dependence
    phase: Dependence
    phase_counts: np.ndarray
    probes: dict[str, ProbeResult | None]


def analyze_cache(cache: Cache, max_k: int, max_probe_frames: int, seed: int) -> Analysis:
    """Compute all figures from the cache alone.

    Args:
        cache: written by `precompute_world_tokens`.
        max_k: the longest horizon, in frames.
        max_probe_frames: training frames, and validation frames, that the probe takes at most.
        seed: of subsamples, shuffles and intervals.

    Raises:
        MissingFileError: an array or the manifest is not there.
        InvalidInputError: an array is not what the manifest says, or not finite.
    """
    arrays = require_arrays(cache, _array_names(cache))
    episodes = Episodes.from_frames(
        arrays["episode_index"], arrays["task_index"], cache.episode_ids
    )
    split = _read_split(cache, episodes)
    tokens = np.asarray(arrays["world_tokens"])
    num_tokens = len(arrays["codebook_centroids"])
    train = episodes.frames_of(split.train)
    dataset, encoder = cache.manifest["dataset"], cache.manifest["encoder"]
    return Analysis(
        dataset_name=cache.dataset_name,
        fps=dataset.get("fps"),
        encoder_name=encoder["name"],
        encoder_note=encoder.get("note"),
        l2_normalize=bool(cache.manifest["codebook"]["l2_normalize"]),
        num_tokens=num_tokens,
        num_train_episodes=len(split.train),
        num_val_episodes=len(split.val),
        train_usage=codebook_usage(tokens[train], num_tokens),
        val_usage=codebook_usage(tokens[episodes.frames_of(split.val)], num_tokens),
        train_dwell=token_dwell(tokens, episodes, split.train, seed),
        val_dwell=token_dwell(tokens, episodes, split.val, seed),
        horizons=[
            horizon_scores(tokens, episodes, split, steps, num_tokens, seed)
            for steps in range(1, max_k + 1)
        ],
        task=task_dependence(tokens, episodes, split.train, num_tokens, seed),
        phase=phase_dependence(tokens, episodes, split.train, num_tokens, seed),
        phase_counts=phase_histogram(tokens[train], episode_phase(episodes)[train], num_tokens),
        probes=_probe_targets(cache, arrays, episodes, split, max_probe_frames, seed),
    )


def _array_names(cache: Cache) -> list[str]:
    optional = ["environment_states"] if cache.has("environment_states") else []
    required = ["world_tokens", "codebook_centroids", "embeddings", "states"]
    return [*required, "episode_index", "task_index", *optional]


def _read_split(cache: Cache, episodes: Episodes) -> Split:
    missing = [
        name for name in ("dataset", "encoder", "codebook", "split") if name not in cache.manifest
    ]
    if missing:
        raise InvalidInputError(f"{cache.manifest_path} has no {missing}; {cache.mend()}")
    recorded = cache.manifest["split"]
    split = Split(train=recorded["train"], val=recorded["val"])
    if sorted([*split.train, *split.val]) != sorted(episodes.ids.tolist()):
        raise InvalidInputError(
            f"the split in {cache.manifest_path} does not hold each episode of the "
            f"arrays exactly once; {cache.mend()}"
        )
    if not split.train or not split.val:
        raise InvalidInputError(
            f"the split in {cache.manifest_path} has {len(split.train)} training and "
            f"{len(split.val)} validation episodes, expected some of each; {cache.mend()}"
        )
    return split


def _probe_targets(
    cache: Cache,
    arrays: dict[str, np.ndarray],
    episodes: Episodes,
    split: Split,
    max_frames: int,
    seed: int,
) -> dict[str, ProbeResult | None]:
    rng = np.random.default_rng(seed)
    chosen = []
    for ids in (split.train, split.val):
        frames = episodes.frames_of(ids)
        if len(frames) > max_frames:
            frames = np.sort(rng.choice(frames, max_frames, replace=False))
        chosen.append(frames)
    results: dict[str, ProbeResult | None] = {}
    for target in ("states", "environment_states"):
        if target in arrays:
            parts = [
                ProbeFrames(
                    embeddings=arrays["embeddings"][frames].astype(np.float32),
                    tokens=arrays["world_tokens"][frames],
                    targets=arrays[target][frames],
                    positions=episodes.of_frame[frames],
                )
                for frames in chosen
            ]
            names = _dim_names(cache, target, arrays[target].shape[1])
            try:
                results[target] = run_probes(
                    parts[0], parts[1], names, len(arrays["codebook_centroids"]), seed
                )
            except InvalidInputError as error:
                raise InvalidInputError(
                    f"{error} ({target} of {cache.folder}); {cache.mend()}"
                ) from error
    return results


def _dim_names(cache: Cache, target: str, num_dims: int) -> list[str]:
    dataset = cache.manifest["dataset"]
    key = "environment_state_names" if target == "environment_states" else "state_names"
    prefix = "environment_state" if target == "environment_states" else "state"
    names = dataset.get(key) or [f"{prefix}_{i}" for i in range(num_dims)]
    if len(names) != num_dims or len(set(names)) != num_dims:
        raise InvalidInputError(
            f"{cache.manifest_path} gives {len(names)} names ({len(set(names))} distinct) for the "
            f"{num_dims} dimensions of {target}; {cache.mend()}"
        )
    return [str(name) for name in names]
