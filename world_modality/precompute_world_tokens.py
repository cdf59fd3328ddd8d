"""Turn a LeRobot dataset into the cache: embeddings, the codebook, one world token per frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_modality.cache.contract import Cache
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.encode.observation_encoder import ObservationFlags
from world_modality.precompute.codebook_step import check_codebook, codebook_step
from world_modality.precompute.embedding_pass import EmbeddingJob, PassSpeed
from world_modality.precompute.inputs import DatasetFlags, PrecomputeInputs
from world_modality.precompute.shards import FrameShard
from world_modality.precompute.steps import columns_step, embeddings_step, shard_step
from world_modality.precompute.validation_episodes import held_out_by_task, validation_advice
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli, write_config
from world_modality.system.errors import InvalidInputError, require_at_least
from world_modality.tokens.codebook import CodebookFlags

STAGE = "precompute_world_tokens"
# Above this share of the spread, float16 moves frames between neighbouring codes.
ROUNDING_LIMIT = 0.01
# faiss warns below this many points a centroid.
MIN_FRAMES_PER_TOKEN = 39


@dataclass(frozen=True, kw_only=True)
class PrecomputeConfig(CodebookFlags, ObservationFlags, DatasetFlags):
    """Embed every frame of a LeRobot dataset, fit a codebook, and write the cache."""

    split: str = "train"
    """Split of the dataset; LeRobot datasets have one, train."""
    cache_dir: Path = Path("cache")
    """Folder of all caches; this one is written to `<cache_dir>/<dataset_name>`."""
    seed: int = 0
    """Seed of the samples, the codebook's fit, and random-vit's weights."""
    batch_size: int = 64
    """Frames that are embedded at a time."""
    device: str = "auto"
    """Where to compute: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    shard: str | None = None
    """Embed only the i-th (from 0) of N consecutive ranges of frames, given as i/N, into a folder
    beside the cache; the same command without --shard merges them. Under accelerate launch each
    process takes one."""


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


def run(config: PrecomputeConfig) -> PrecomputeResult:
    """Write the cache; whatever an earlier run with the same settings has finished is kept."""
    _check(config)
    shard = None if config.shard is None else FrameShard.parse(config.shard)
    # Here, for it imports torch, without which --help answers sooner.
    from world_modality.system.device import keep_freed_memory, resolve_device
    from world_modality.system.process_group import ProcessGroup, is_launched

    if resolve_device(config.device).type == "cpu":
        keep_freed_memory()
    if not is_launched():
        cache, job = open_job(config, config.device)
        return (
            _write_cache(config, cache, job) if shard is None else _write_shard(cache, job, shard)
        )
    with ProcessGroup.independent(config.device) as group:
        if shard is not None:
            raise InvalidInputError(
                f"--shard {config.shard}: under accelerate launch each process takes a shard by "
                "itself; leave --shard out, or start the shards without accelerate"
            )
        own_device = str(group.device) if config.device in ("auto", "cuda") else config.device
        cache, job = open_job(config, own_device)
        result = _write_shard(cache, job, FrameShard(group.index, group.num_processes))
        group.wait()
    # The first process merges the shards, and does the rest.
    return _write_cache(config, cache, job) if group.is_first else result


def _check(config: PrecomputeConfig) -> None:
    if config.split != "train":
        raise InvalidInputError(
            f"--split {config.split}: LeRobot datasets have one split, train; validation episodes "
            "are drawn from it by --val_fraction"
        )
    require_at_least("batch_size", config.batch_size, 1)


def open_job(config: PrecomputeConfig, device: str) -> tuple[Cache, EmbeddingJob]:
    """Check the dataset; return the cache to write, and what is embedded for it."""
    cache = Cache(config.cache_dir, config.dataset_name, config.split)
    inputs = PrecomputeInputs.read(config)
    print(
        f"{inputs.source.name}: {inputs.source.num_frames} frames of "
        f"{', '.join(inputs.image_keys)}, "
        f"{len(inputs.split.train)} training and {len(inputs.split.val)} validation episodes, "
        f"{len(inputs.source.tasks)} tasks"
    )
    job = EmbeddingJob(inputs, config, config.batch_size, device)
    config.check_observation()
    cells = ObservationShape(1, len(inputs.image_keys), config.embedding_grid)
    check_codebook(inputs, config, cells if job.stores_cells else None)
    job.check()
    return cache, job


def _write_shard(cache: Cache, job: EmbeddingJob, shard: FrameShard) -> PrecomputeResult:
    speed = shard_step(cache, job, shard)
    if speed is None:
        print(f"shard {shard} was there already")
        return PrecomputeResult(cache, ("embeddings",), None)
    print(f"shard {shard}: {speed.num_frames} frames at {speed.frames_per_s:.1f} frames/s")
    return PrecomputeResult(cache, (), speed)


def _write_cache(config: PrecomputeConfig, cache: Cache, job: EmbeddingJob) -> PrecomputeResult:
    reused = []
    with cache.lock(STAGE):
        write_config(config, cache.folder / f"{cache.split}_{STAGE}_config.json")
        if columns_step(cache, job.inputs):
            reused.append("columns")
        speed = embeddings_step(cache, job)
        if speed is None:
            reused.append("embeddings")
        if codebook_step(cache, job.inputs, config, config.device):
            reused.append("codebook")
    result = PrecomputeResult(cache, tuple(reused), speed)
    episodes, split = job.inputs.episodes, job.inputs.split
    held_out = held_out_by_task(episodes, split)
    advice = validation_advice(episodes, split, job.inputs.source.tasks)
    notes = print_summary(result, advice)
    write_json(
        cache.folder / f"{cache.split}_{STAGE}_summary.json",
        {
            "reused": reused,
            "frames_per_s": None if speed is None else speed.frames_per_s,
            "validation_episodes": sum(held_out.values()),
            "validation_episodes_by_task": {str(task): n for task, n in held_out.items()},
            "notes": notes,
        },
    )
    return result


def print_summary(result: PrecomputeResult, advice: Sequence[str] = ()) -> list[str]:
    """Print what the cache holds; return the notes of what its figures advise, `advice` besides."""
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
    if observation := manifest.get("observation"):
        print(f"  observation       {observation_line(observation)}")
    others = ("num_tokens", "num_used", "fitted_on", "rounding_to_spread")
    about = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in codebook.items()
        if name not in others
    )
    print(
        f"  codebook          V={codebook['num_tokens']}, {codebook['num_used']} codes used by "
        f"training frames; {about}"
    )
    print(f"  float16 rounding  {codebook['rounding_to_spread']:.2%} of the embeddings' spread")
    print(f"  arrays            {result.cache.bytes_per_frame:,} bytes a frame")
    notes = [note for note in (encoder["note"], *codebook_advice(codebook), *advice) if note]
    for note in notes:
        print(f"  note: {note}")
    return notes


def observation_line(section: dict[str, Any]) -> str:
    """Say in words what a manifest's `observation` section keeps of a frame."""
    keys, side, dim = section["image_keys"], section["grid_size"], section["embedding_dim"]
    cells = f"{side}x{side} cells" if side > 1 else "one vector"
    line = f"{', '.join(keys)}: {cells} of M={dim} each"
    if components := section["components"]:
        share, num_frames = components["explained_variance"], components["fit_frames"]
        line += f", components with {share:.1%} of the variance in {num_frames} training frames"
    return line


def codebook_advice(codebook: dict[str, Any]) -> list[str]:
    """Say in words what a manifest's `codebook` section gives reason to change."""
    advice = []
    num_tokens, num_used = codebook["num_tokens"], codebook["num_used"]
    if codebook["rounding_to_spread"] > ROUNDING_LIMIT:
        advice.append(
            "the embeddings' spread is close to float16's rounding, so stored tokens are partly "
            "noise; are the frames all alike, or is the encoder's preprocessing wrong?"
        )
    if num_used < num_tokens / 2:
        advice.append(
            f"only {num_used} of {num_tokens} codes are used; lower --vq_num_tokens, or look at "
            "the frames with python -m world_modality.inspect_token_images"
        )
    # Where a frame has several vectors with tokens the codebook is fitted to all of them.
    per_frame = codebook.get("num_slots", 1) // codebook.get("levels", 1)
    num_fitted = codebook["fit_frames"] * per_frame
    if num_fitted < MIN_FRAMES_PER_TOKEN * num_tokens:
        what = "training frames" if per_frame == 1 else "vectors of training frames"
        advice.append(
            f"the codebook has {num_fitted / num_tokens:.0f} {what} a code, "
            f"fewer than {MIN_FRAMES_PER_TOKEN}; lower --vq_num_tokens where tokens look noisy"
        )
    return advice


def main() -> None:
    """Run the stage from the command line."""
    run_cli(PrecomputeConfig, run)


if __name__ == "__main__":
    main()
