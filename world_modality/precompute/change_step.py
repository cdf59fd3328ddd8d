"""The change tokens of a cache: k-means on `e_{t+horizon} - e_t` of training episodes.

They stand for what changes and not for what is there, as those of ΔVLA (2603.08361).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.cache.contract import (
    CHANGE_ARRAYS,
    PRECOMPUTE_COMMAND,
    Cache,
    require_arrays,
    sha256_of_json,
)
from world_modality.cache.writer import CacheWriter
from world_modality.precompute.cache_steps import done_step, is_done, require_space
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.tokens.kmeans import (
    KMeansFlags,
    PreparedRows,
    assign_world_tokens,
    explained_variance,
    fit_centroids,
    in_codebook_space,
)
from world_modality.tokens.statistics import frames_with_future

BLOCK_ROWS = 2_048


@dataclass(frozen=True, kw_only=True)
class ChangeFlags(KMeansFlags):
    """Flags of the codebook of changes."""

    future_offset: int = 8
    """Number K of future steps of the training that predicts these tokens."""
    future_stride: int = 1
    """Frames between the K steps; the change is that over future_offset * future_stride frames, for
    which the end of the action chunk is the documented choice."""
    change_tokens: int = 128
    """Size of the codebook of changes."""
    vq_fit_frames: int = 65_536
    """Largest number of training frames that are sampled to fit the codebook; 0 takes all."""
    seed: int = 0
    """Seed of the sample and of the fit."""

    def __post_init__(self) -> None:
        for name in ("future_offset", "future_stride", "change_tokens", "vq_iterations"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("vq_fit_frames", self.vq_fit_frames, 0)

    @property
    def horizon(self) -> int:
        """Over how many frames a change is."""
        return self.future_offset * self.future_stride

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the codebook, for the manifest."""
        return {
            "num_tokens": self.change_tokens,
            "horizon": self.horizon,
            "l2_normalize": self.l2_normalize,
            "backend": self.vq_backend,
            "iterations": self.vq_iterations,
            "fit_frames": self.vq_fit_frames,
            "seed": self.seed,
        }


@dataclass(frozen=True)
class StoredChanges:
    """The changes from some frames to others, read from the cache's file as they are asked for.

    Attributes:
        path: of the pooled embeddings.
        sources: frames t.
        targets: as many frames ahead of them.
    """

    path: Path
    sources: Int[np.ndarray, " N"]
    targets: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        """Copy rows; mapped again for every block, for pages that were read stay resident."""
        rows: np.ndarray = np.load(self.path, mmap_mode="r", allow_pickle=False)
        there, here = (rows[frames[indices]] for frames in (self.targets, self.sources))
        return there.astype(np.float32) - here.astype(np.float32)


def change_step(cache: Cache, flags: ChangeFlags, device: str) -> bool:
    """Fit the codebook and assign the tokens; return whether that was done already.

    The change at t ends at frame t + horizon, or at the episode's last frame; the codebook is
    fitted to those that are whole.

    Raises:
        MissingFileError, InvalidInputError: the cache is incomplete or damaged, no training episode
            is longer than the horizon, or there are more codes than changes.
    """
    arrays = require_arrays(cache, ("embeddings", "episode_index", "task_index"))
    split = cache.manifest.get("split")
    if split is None:
        raise InvalidInputError(
            f"{cache.manifest_path} has no split, so the training episodes are not known; run "
            f"{PRECOMPUTE_COMMAND} --dataset_name {cache.dataset_name} … again"
        )
    made_of = {
        "embeddings_sha256": cache.manifest["arrays"]["embeddings"]["sha256"],
        "split_sha256": sha256_of_json(split),
    }
    identity = {**flags.settings, **made_of}
    if is_done(cache, "change_tokens", identity, CHANGE_ARRAYS):
        return True
    episodes = Episodes.from_frames(
        arrays["episode_index"], arrays["task_index"], cache.episode_ids
    )
    path, frames = cache.array_path("embeddings"), np.arange(episodes.num_frames)
    last = episodes.ends[episodes.of_frame] - 1
    whole = _fit_frames(episodes, split["train"], flags)
    sample = PreparedRows(
        StoredChanges(path, whole, whole + flags.horizon), normalize=flags.l2_normalize
    )
    require_space(cache, {"change_tokens": (len(frames),)})
    fitted = fit_centroids(sample, flags.change_tokens, flags, flags.seed, device)
    changes = StoredChanges(path, frames, np.minimum(frames + flags.horizon, last))
    tokens = np.concatenate(
        [
            assign_world_tokens(
                in_codebook_space(changes[block], normalize=flags.l2_normalize),
                fitted.centroids,
                fitted.device,
            )
            for block in np.split(frames, range(BLOCK_ROWS, len(frames), BLOCK_ROWS))
        ]
    )
    writer = CacheWriter(cache, "change_tokens", identity)
    writer.put("change_tokens", tokens)
    writer.put("change_centroids", fitted.centroids)
    section = {
        **identity,
        "fit_frames": len(whole),
        "fitted_on": "training episodes",
        "inertia": fitted.inertia,
        "explained_variance": explained_variance(sample, fitted.inertia),
        "num_used": len(np.unique(tokens[episodes.frame_mask(split["train"])])),
    }
    writer.publish({"change_codebook": section, "steps": done_step("change_tokens", identity)})
    return False


def _fit_frames(
    episodes: Episodes, train_ids: list[int], flags: ChangeFlags
) -> Int[np.ndarray, " M"]:
    """Draw the training frames whose changes the codebook is fitted to, ascending."""
    whole = frames_with_future(episodes, train_ids, flags.horizon)
    num_frames = min(len(whole), flags.vq_fit_frames or sys.maxsize)
    if flags.change_tokens > num_frames:
        raise InvalidInputError(
            f"--change_tokens {flags.change_tokens} is more than the {num_frames} changes over "
            f"{flags.horizon} frames that the codebook is fitted to; lower it, or the horizon "
            f"(--future_offset {flags.future_offset} x --future_stride {flags.future_stride})"
        )
    rng = np.random.default_rng(flags.seed)
    return np.sort(rng.choice(whole, num_frames, replace=False))
