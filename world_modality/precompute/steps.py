"""The steps of the precompute stage up to the codebook: the dataset's columns, the embeddings.

Each step has an identity, all that determines its arrays; a step whose identity the manifest
records and whose arrays are intact is not done again.
"""

from typing import Any

from world_modality.cache.contract import ARRAYS, Cache
from world_modality.cache.manifest_differences import differences
from world_modality.cache.writer import CacheWriter
from world_modality.precompute.cache_steps import done_step, is_done, require_space
from world_modality.precompute.dataset_columns import column_shapes, write_columns
from world_modality.precompute.embedding_pass import (
    EmbeddingJob,
    PassSpeed,
    array_shapes,
    write_embeddings,
)
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.precompute.shards import NOT_COMPARED, FrameShard, ShardSet

SHOWN_DIFFERENCES = 4


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
        _say_why(cache, recorded, {"dataset": inputs.dataset_section})
        # Another dataset under this name: nothing that was made from the old one may stay.
        stale = tuple(name for name in {**ARRAYS, **recorded["arrays"]} if name not in names)
        sections |= dict.fromkeys(("encoder", "observation", "codebook", "split", "text"))
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
    if encoder.encoder.stand_in_note:
        print(f"note: {encoder.encoder.stand_in_note}")
    num_frames, dim = job.inputs.source.num_frames, encoder.encoder.embedding_dim
    require_space(cache, array_shapes(num_frames, dim, encoder.cell_shape))
    record, compute = encoder.record(), encoder.encoder.compute
    observation = encoder.observation_record(job.inputs.image_keys)
    if shards is not None:
        record, compute = shards.plan.encoder, shards.plan.compute
    _say_why(cache, cache.manifest, {"encoder": record, "observation": observation})
    resumable = {**job.identity, "record": record, "compute": compute}
    if observation is not None:
        resumable["observation_record"] = observation
    writer = CacheWriter(cache, "embeddings", resumable)
    for name, array in encoder.arrays.items():
        writer.put(name, array)
    if shards is None:
        source, cameras = job.inputs.source, job.inputs.image_keys
        speed = write_embeddings(writer, source, cameras, encoder, job.batch_size)
    else:
        shards.write_missing(job)
        speed = shards.merge_into(writer)
    sections = {
        "encoder": record,
        "observation": observation,
        "codebook": None,
        "steps": done_step("embeddings", job.identity),
        "compute": {**compute, "frames_per_s": round(speed.frames_per_s, 1)},
    }
    possible = ("view_embeddings", *cache.model_arrays)
    stale = [name for name in possible if name not in job.arrays]
    writer.publish(sections, ("world_tokens", *stale))
    if shards is not None:
        shards.remove()
    return speed


def _say_why(cache: Cache, recorded: dict[str, Any], sections: dict[str, Any]) -> None:
    """Print in what a cache that is there differs from what is asked for."""
    found = {name: recorded[name] for name in sections if recorded.get(name) is not None}
    if not found:
        return
    asked = {name: section for name, section in sections.items() if section is not None}
    shown = differences(found, asked, NOT_COMPARED)[:SHOWN_DIFFERENCES]
    if shown:
        print(f"{cache.folder} holds another cache, which is replaced: {'; '.join(shown)}")


def shard_step(cache: Cache, job: EmbeddingJob, shard: FrameShard) -> PassSpeed | None:
    """Embed the frames of one shard; return how fast, None where that was done already."""
    if is_done(cache, "embeddings", job.identity, job.arrays):
        return None
    return ShardSet.join(cache, job, shard.num_shards).write(shard.index, job)
