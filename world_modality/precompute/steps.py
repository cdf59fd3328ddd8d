"""The precompute stage's first two steps: the dataset's columns, and the embeddings of its frames.

Each step has an identity, all that determines its arrays; a step whose identity the manifest
records and whose arrays are intact is not done again.
"""

from dataclasses import dataclass
from typing import Any

from world_modality.cache.contract import ARRAYS, Cache
from world_modality.cache.writer import CacheWriter
from world_modality.precompute.cache_steps import done_step, is_done, require_space
from world_modality.precompute.codebook_step import CODEBOOK_ARRAYS, codebook_advice
from world_modality.precompute.dataset_columns import column_shapes, write_columns
from world_modality.precompute.embedding_job import PIXEL_PCA_ARRAYS, EmbeddingJob
from world_modality.precompute.embedding_pass import PassSpeed, write_embeddings
from world_modality.precompute.inputs import PrecomputeInputs
from world_modality.precompute.shard_plan import FrameShard
from world_modality.precompute.shard_set import ShardSet


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
    recorded = cache.manifest if cache.manifest_path.exists() else {}
    stale: tuple[str, ...] = ()
    if recorded.get("dataset") != inputs.dataset_section:
        # Another dataset under this name: nothing that was made from the old one may stay.
        stale = tuple(name for name in ARRAYS if name not in names)
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
        speed = write_embeddings(writer, source, camera, encoder, job.execution.batch_size)
    else:
        shards.write_missing(job)
        speed = shards.merge_into(writer)
    sections = {
        "encoder": record,
        "codebook": None,
        "steps": done_step("embeddings", job.identity),
        "compute": {**compute, "frames_per_s": round(speed.frames_per_s, 1)},
    }
    unused = tuple(name for name in PIXEL_PCA_ARRAYS if name not in job.arrays)
    writer.publish(sections, (*CODEBOOK_ARRAYS, *unused))
    if shards is not None:
        shards.remove()
    return speed


def shard_step(cache: Cache, job: EmbeddingJob, shard: FrameShard) -> PassSpeed | None:
    """Embed the frames of one shard; return how fast, None where that was done already."""
    if is_done(cache, "embeddings", job.identity, job.arrays):
        return None
    return ShardSet.join(cache, job, shard.num_shards).write(shard.index, job)


@dataclass(frozen=True)
class PrecomputeResult:
    """What a run did; the numbers themselves are in the manifest.

    Attributes:
        cache: the finished cache, or the one that the shard belongs to.
        reused: the steps that an earlier run had already done.
        speed: of the embedding pass, None where it was reused.
    """

    cache: Cache
    reused: tuple[str, ...]
    speed: PassSpeed | None


def print_summary(result: PrecomputeResult) -> None:
    """Print what the cache holds, and what its figures advise."""
    manifest = result.cache.manifest
    encoder, codebook = manifest["encoder"], manifest["codebook"]
    print(f"\ncache {result.cache.folder}")
    print(f"  reused            {', '.join(result.reused) or 'nothing'}")
    if result.speed is not None:
        print(
            f"  embedded          {result.speed.num_frames} frames at "
            f"{result.speed.frames_per_s:.1f} frames/s"
        )
    print(
        f"  encoder           {encoder['name']}, D={encoder['embedding_dim']}, pooling "
        f"{encoder['pooling']}"
    )
    print(
        f"  codebook          V={codebook['num_tokens']}, {codebook['num_used']} codes used by "
        f"training frames, l2_normalize {codebook['l2_normalize']}, mean squared distance "
        f"{codebook['inertia']:.4g}"
    )
    print(f"  float16 rounding  {codebook['rounding_to_spread']:.2%} of the embeddings' spread")
    for note in (encoder["note"], *codebook_advice(codebook)):
        if note:
            print(f"  note: {note}")
