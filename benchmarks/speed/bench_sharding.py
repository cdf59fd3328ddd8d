"""How much faster two processes embed a dataset than one, each on a core and a thread of its own.

    python -m benchmarks.speed.bench_sharding

What the machine itself gives is measured beside it: the encoder alone on decoded frames, in one
process and in two. Starting up is left out; the merge of the shards is timed on its own.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.bench_precompute import machine
from benchmarks.speed.harness.drawn_dataset import CAMERA, draw_dataset
from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.encode.random_vit import RandomVitSize
from world_modality.precompute.shards import FrameShard, ShardPlan, ShardSet
from world_modality.precompute_world_tokens import PrecomputeConfig, open_job
from world_modality.source.frame_decoding import frame_blocks
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
START_WITHIN_S = 120.0
MERGE_SHAPE = (131_072, 768)  # 0.2 GB
MERGE_SHARDS = 4

# In a worker process: where it waits for the other one.
_together: Any = None


@dataclass(frozen=True)
class BenchShardingConfig:
    """Measure one process against two, in turns."""

    work_dir: Path | None = None
    """Holds the drawn dataset; by default a temporary folder."""
    num_frames: int = 1000
    """N."""
    image_size: int = 128
    """Side of the drawn frames."""
    random_vit_size: RandomVitSize = "tiny"
    """Size of the random-vit that stands for a realistic encoder."""
    random_vit_image_size: int = 112
    """Side of the image that it sees."""
    batch_size: int = 32
    """Frames a batch."""
    num_turns: int = 3
    """How often each is measured; the median counts."""
    output_json: Path | None = None
    """Also write the figures here."""


@dataclass(frozen=True)
class Span:
    """What one process did, and when (s, on the clock that all processes share)."""

    num_frames: int
    began: float
    ended: float


def precompute_config(config: BenchShardingConfig, folder: Path, name: str) -> PrecomputeConfig:
    """Return the command whose shards are measured, with a cache of its own."""
    return PrecomputeConfig(
        dataset_name="bench/drawn",
        dataset_root=folder / "drawn",
        cache_dir=folder / name,
        vision_model_name="random-vit",
        random_vit_size=config.random_vit_size,
        random_vit_image_size=config.random_vit_image_size,
        batch_size=config.batch_size,
        vq_num_tokens=1,
        device="cpu",
    )


def work_alone_on_a_core(cores: Any, together: Any) -> None:
    """Begin a worker process: pin it, and keep the barrier at which two wait for each other."""
    global _together
    with cores.get_lock():
        os.sched_setaffinity(0, {cores.value})
        cores.value += 1
    _together = together


def embed_shard(config: PrecomputeConfig, index: int, num_shards: int) -> Span:
    """Embed one shard; dataset and model are open before the clock runs."""
    cache, job = open_job(config, config.device)
    shards = ShardSet.join(cache, job, num_shards)
    began = _begin(num_shards)
    speed = shards.write(index, job)
    assert speed is not None
    return Span(speed.num_frames, began, time.monotonic())


def encode_only(config: PrecomputeConfig, index: int, num_processes: int) -> Span:
    """Encode decoded frames, as many as `embed_shard` would in as many processes."""
    _, job = open_job(config, config.device)
    num_frames = job.inputs.source.num_frames
    frames = FrameShard(index, num_processes).frames(num_frames, config.batch_size)
    blocks = list(frame_blocks(job.inputs.source, CAMERA, np.array(frames), config.batch_size))
    encoder = job.make_encoder()
    began = _begin(num_processes)
    for _ in encoder.encode_blocks(iter(blocks), config.batch_size):
        pass
    return Span(len(frames), began, time.monotonic())


def _begin(num_processes: int) -> float:
    if num_processes == 2:
        _together.wait(START_WITHIN_S)
    return time.monotonic()


def together_rate(spans: list[Span]) -> float:
    """Return frames per second from the first beginning to the last end."""
    seconds = max(s.ended for s in spans) - min(s.began for s in spans)
    return sum(s.num_frames for s in spans) / seconds


def measure_turns(config: BenchShardingConfig, folder: Path) -> dict[str, list[float]]:
    """Return frames per second of each turn: passes and encoders, in one process and in two."""
    context = multiprocessing.get_context("spawn")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise InvalidInputError("this machine gives one core; two processes would share it")
    arguments = (context.Value("i", cores[0]), context.Barrier(2))
    rates: dict[str, list[float]] = {}
    with ProcessPoolExecutor(2, context, work_alone_on_a_core, arguments) as pool:
        for turn in range(config.num_turns):
            for job in (encode_only, embed_shard):
                for num in (1, 2):
                    name = f"{job.__name__}_{num}"
                    command = precompute_config(config, folder, f"{name}_{turn}")
                    running = [pool.submit(job, command, i, num) for i in range(num)]
                    spans = [future.result() for future in running]
                    rates.setdefault(name, []).append(together_rate(spans))
    return rates


def measure_merge(folder: Path) -> float:
    """Return the bytes per second at which finished shards become the array, checked and synced."""
    identity = {"dataset": {"num_frames": MERGE_SHAPE[0]}}
    plan = ShardPlan(MERGE_SHARDS, 1, identity, {"embedding_dim": MERGE_SHAPE[1]}, {})
    cache = Cache(folder, "bench/merge")
    shards = ShardSet(cache, plan)
    rows = np.random.default_rng(0).random(MERGE_SHAPE, dtype=np.float32).astype(np.float16)
    for index in range(MERGE_SHARDS):
        own = plan.frames(index)
        writer = CacheWriter(shards.shard(index), "embeddings", {})
        writer.put("embeddings", rows[own.start : own.stop])
        section = {"index": index, "num_frames": len(own), "seconds": 0.0}
        writer.publish({"plan": plan.content(), "shard": section})
    began = time.monotonic()
    writer = CacheWriter(cache, "embeddings", {})
    shards.merge_into(writer)
    writer.publish({})
    return rows.nbytes / (time.monotonic() - began)


def run(config: BenchShardingConfig) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    os.environ |= ONE_THREAD  # of the processes that are started from here
    with tempfile.TemporaryDirectory(dir=config.work_dir) as name:
        folder = Path(name)
        draw_dataset(folder / "drawn", config.num_frames, config.image_size)
        rates = measure_turns(config, folder)
        merge = measure_merge(folder)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    speedups = {
        job: [two / one for one, two in zip(rates[f"{job}_1"], rates[f"{job}_2"], strict=True)]
        for job in ("embed_shard", "encode_only")
    }
    report = {
        "machine": machine("cpu"),
        "num_frames": config.num_frames,
        "frames_per_s": rates,
        "median_frames_per_s": medians,
        "speedups": speedups,
        "merge_bytes_per_s": merge,
    }
    print(json.dumps(report["machine"]))
    for job, what in (("embed_shard", "precompute"), ("encode_only", "encoder alone")):
        each = ", ".join(f"{s:.2f}" for s in speedups[job])
        print(
            f"{what}: {medians[f'{job}_1']:.1f} frames/s in one process, "
            f"{medians[f'{job}_2']:.1f} in two: {statistics.median(speedups[job]):.2f} ({each})"
        )
    print(f"merge of {MERGE_SHARDS} shards: {merge / 1e6:.0f} MB/s, hashed and synced")
    if config.output_json is not None:
        write_json(config.output_json, report)
    return report


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchShardingConfig, run)


if __name__ == "__main__":
    main()
