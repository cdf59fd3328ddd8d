"""The steps of the precompute stage: the dataset's columns, its frames' embeddings, the codebook.

Each step has an identity, all that determines its arrays; a step whose identity the manifest
records and whose arrays are intact is not done again.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from world_modality.cache.contract import ARRAYS, Cache
from world_modality.cache.writer import CacheWriter
from world_modality.precompute.cache_steps import (
    done_step,
    installed_versions,
    is_done,
    require_space,
)
from world_modality.precompute.dataset_columns import column_shapes, write_columns
from world_modality.precompute.embedding_pass import EmbeddingJob, PassSpeed, write_embeddings
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.precompute.shards import FrameShard, ShardSet
from world_modality.tokens.codebook import QUANTISERS, CodebookFlags

BLOCK_ROWS = 2_048
# More frames than memory holds may be fitted; float16's rounding is seen on these.
ROUNDING_FRAMES = 65_536


def columns_step(cache: Cache, inputs: PrecomputeInputs) -> bool:
    """Write states, actions and indices; return whether they were there already."""
    identity = {"dataset": inputs.dataset_section}
    names = tuple(inputs.keys.arrays)
    if is_done(cache, "columns", identity, names):
        return True
    shapes = column_shapes(inputs.source, inputs.keys, inputs.scan)
    require_space(cache, shapes)
    writer = CacheWriter(cache, "columns", identity)
    write_columns(writer, inputs.source, inputs.keys, inputs.scan)
    sections: dict[str, Any] = {"dataset": inputs.dataset_section}
    steps: dict[str, str | None] = {**done_step("columns", identity)}
    recorded = cache.manifest if cache.manifest_path.exists() else {"arrays": {}}
    stale: tuple[str, ...] = ()
    if recorded.get("dataset") != inputs.dataset_section:
        # Another dataset under this name: nothing that was made from the old one may stay.
        stale = tuple(name for name in {**ARRAYS, **recorded["arrays"]} if name not in names)
        sections |= {"encoder": None, "codebook": None, "split": None, "text": None}
        steps = {**dict.fromkeys(recorded.get("steps", {})), **steps}
    writer.publish({**sections, "steps": steps}, stale)
    return False


def embeddings_step(cache: Cache, job: EmbeddingJob) -> PassSpeed | None:
    """Embed every frame, or merge the shards that others have embedded.

    Returns:
        how fast, None where the embeddings were there already. Of shards: the frames and the
        seconds of all together, so that the rate is that of one process.
    """
    shards = ShardSet.find(cache)
    if is_done(cache, "embeddings", job.identity, job.arrays):
        if shards is not None and shards.is_of(job):
            shards.remove()  # the run that merged them was killed before it could
        return None
    if shards is not None:
        shards.require(job, shards.plan.num_shards)
    encoder = job.make_encoder() if shards is None else shards.encoder(job)
    if encoder.stand_in_note:
        print(f"note: {encoder.stand_in_note}")
    require_space(cache, {"embeddings": (job.inputs.source.num_frames, encoder.embedding_dim)})
    record, compute = encoder.record(), encoder.compute
    if shards is not None:
        record, compute = shards.plan.encoder, shards.plan.compute
    resumable = {**job.identity, "record": record, "compute": compute}
    writer = CacheWriter(cache, "embeddings", resumable)
    for name, array in encoder.arrays.items():
        writer.put(name, array)
    if shards is None:
        source, camera = job.inputs.source, job.inputs.image_key
        speed = write_embeddings(writer, source, camera, encoder, job.batch_size)
    else:
        shards.write_missing(job)
        speed = shards.merge_into(writer)
    sections = {
        "encoder": record,
        "codebook": None,
        "steps": done_step("embeddings", job.identity),
        "compute": {**compute, "frames_per_s": round(speed.frames_per_s, 1)},
    }
    stale = [name for name in cache.model_arrays if name not in job.arrays]
    writer.publish(sections, ("world_tokens", *stale))
    if shards is not None:
        shards.remove()
    return speed


def shard_step(cache: Cache, job: EmbeddingJob, shard: FrameShard) -> PassSpeed | None:
    """Embed the frames of one shard; return how fast, None where that was done already."""
    if is_done(cache, "embeddings", job.identity, job.arrays):
        return None
    return ShardSet.join(cache, job, shard.num_shards).write(shard.index, job)


class StoredRows:
    """Some frames of the embeddings on the disk, in float16; `Cache.load` has checked the file."""

    def __init__(self, path: Path, frames: Int[np.ndarray, " N"]) -> None:
        self.path, self.frames = path, frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B D"]:
        """Copy rows; mapped again for every block, for pages that were read stay resident."""
        frames = self.frames[indices]
        blocks = [
            np.load(self.path, mmap_mode="r", allow_pickle=False)[
                frames[start : start + BLOCK_ROWS]
            ]
            for start in range(0, len(frames), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)


def codebook_step(
    cache: Cache, inputs: PrecomputeInputs, flags: CodebookFlags, device: str
) -> bool:
    """Fit the codebook and assign the tokens; return whether that was done already.

    Tokens are assigned from the float16 embeddings on the disk, so that anybody can compute them
    again.

    The embeddings have been checked or written just before.

    Raises:
        InvalidInputError: the disk or the memory is too small.
    """
    identity = {
        "embeddings": cache.manifest["arrays"]["embeddings"]["sha256"],
        "codebook": flags.codebook_settings,
        "split": inputs.split_section,
    }
    kind = flags.quantiser
    if is_done(cache, "codebook", identity, (*kind.array_names, "world_tokens")):
        return True
    num_frames = inputs.source.num_frames
    require_space(cache, {"world_tokens": (num_frames,)})
    path = cache.array_path("embeddings")
    sample = StoredRows(path, inputs.training_sample(flags.max_fit_frames, flags.seed))
    print(f"fitting {flags.vq_num_tokens} codes to {len(sample)} training frames")
    quantiser = kind.fit(flags, sample, device)
    writer = CacheWriter(cache, "codebook", identity)
    for name, array in quantiser.arrays.items():
        writer.put(name, array)
    stored = StoredRows(path, np.arange(num_frames))
    for start in range(writer.open("world_tokens", (num_frames,)), num_frames, BLOCK_ROWS):
        block = np.arange(start, min(start + BLOCK_ROWS, num_frames))
        writer.write(start, {"world_tokens": quantiser.encode(stored[block])})
    in_training = inputs.episodes.frame_mask(inputs.split.train)
    codebook = {
        **flags.codebook_settings,
        "num_tokens": quantiser.num_codes,
        "fit_frames": len(sample),
        "fitted_on": "training episodes",
        **quantiser.fit_record,
        "num_used": len(np.unique(writer.read_back("world_tokens")[in_training])),
        "rounding_to_spread": _rounding(sample),
    }
    sections = {
        "codebook": codebook,
        "split": inputs.split_section,
        "steps": done_step("codebook", identity),
        "versions": installed_versions(),
    }
    others = {name for other in QUANTISERS.values() for name in other.array_names}
    stale = others - set(kind.array_names)
    writer.publish(sections, tuple(name for name in sorted(stale) if cache.has(name)))
    return False


def _rounding(sample: StoredRows) -> float:
    """Return float16's rounding over the spread of the fitted embeddings."""
    num_seen = min(len(sample), ROUNDING_FRAMES)
    return rounding_to_spread(sample[np.linspace(0, len(sample) - 1, num_seen).astype(np.int64)])


def rounding_to_spread(embeddings: Float[np.ndarray, "N D"]) -> float:
    """Return float16's rounding error over the embeddings' spread, both as root mean squares.

    The error of rounding to a grid of spacing u is u / sqrt(12); the spread is the distance to the
    mean. Near 1 the stored embeddings are mostly rounding; below 0.01 rounding does not matter.
    """
    stored = np.asarray(embeddings, dtype=np.float16)
    rounding = np.spacing(stored).astype(np.float64) / np.sqrt(12)
    spread = stored.astype(np.float64) - stored.mean(axis=0, dtype=np.float64)
    total = float(np.sqrt(np.mean(spread**2)))
    return float(np.sqrt(np.mean(rounding**2))) / total if total > 0 else float("inf")
