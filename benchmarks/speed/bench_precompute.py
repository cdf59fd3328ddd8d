"""How fast frames become embeddings, part by part.

    python -m benchmarks.speed.bench_precompute
    python -m benchmarks.speed.bench_precompute --parts shards

- passes: the pass over a dataset against its two halves alone, decoding and encoding.
- memory: of the whole stage, at N and at 10 N frames.
- shards: two processes, each on a core and a thread of its own, against one; beside it what the
  machine gives, the encoder alone on decoded frames. Starting up is left out.

The datasets are drawn, and stored by LeRobot as PNG images and as video.
"""

import multiprocessing
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.speed.harness.drawn import CAMERA, draw_dataset
from benchmarks.speed.harness.lerobot_peer import frame_by_frame
from benchmarks.speed.harness.measuring import (
    BenchConfig,
    Comparison,
    Figure,
    in_fresh_process,
    memory,
    report,
    take_turns,
    timed,
)
from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.encode.observation_encoder import ObservationEncoder
from world_modality.encode.random_vit import RandomVitSize
from world_modality.encode.vision_encoders import VisionEncoder, VisionEncoderFlags, build_encoder
from world_modality.precompute.embedding_pass import write_embeddings
from world_modality.precompute.shards import FrameShard, ShardPlan, ShardSet
from world_modality.precompute_world_tokens import PrecomputeConfig, open_job
from world_modality.precompute_world_tokens import run as precompute
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.source.lerobot_source import LeRobotSource
from world_modality.system.cli import run_cli
from world_modality.system.device import resolve_device
from world_modality.system.errors import InvalidInputError

Part = Literal["passes", "memory", "shards"]
PCA_FRAMES = 256  # to fit pixel-pca to
PEER_FRAMES = 200
CPU_BLOCKS = 4  # encoded with one thread, for the CPU seconds of a frame
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
START_WITHIN_S = 120.0
MERGE_DIM = 768
MERGE_SHARDS = 4

# In a worker process: where it waits for the other one.
_together: Any = None


@dataclass(frozen=True)
class BenchPrecomputeConfig(BenchConfig):
    """Measure the embedding pass, the stage's memory, and what a second process brings."""

    parts: tuple[Part, ...] = ("passes", "memory")
    """What to measure; see the top of the module."""
    work_dir: Path | None = None
    """Holds the drawn datasets; by default a temporary folder."""
    num_frames: int = 1000
    """N; memory is also measured at 10 N."""
    image_size: int = 128
    """Side of the drawn frames."""
    encoders: tuple[str, ...] = ("random-vit", "efficientnet-lite0", "pixel-pca")
    """Encoders whose pass is measured."""
    random_vit_size: RandomVitSize = "tiny"
    """Size of the random-vit that stands for a realistic encoder."""
    random_vit_image_size: int = 112
    """Side of the image that it sees."""
    batch_size: int = 32
    """Frames a batch."""
    num_rounds: int = 3
    """What is compared takes turns this many times."""
    merged_frames: int = 131_072
    """Frames of 768 dims (0.2 GB) whose shards are merged."""
    device: str = "auto"
    """Device of the encoder; shards are measured on the CPU."""


def measure_passes(config: BenchPrecomputeConfig, folder: Path) -> Iterator[Figure]:
    """Compare the pass with its halves, by camera and encoder."""
    device = resolve_device(config.device)
    for kind in ("image", "video"):
        root = folder / kind
        draw_dataset(root, config.num_frames, config.image_size, kind)
        source = open_dataset(f"bench/{kind}", dataset_root=root)
        sample = next(frame_blocks(source, CAMERA, np.arange(config.num_frames), PCA_FRAMES))
        flags = VisionEncoderFlags(
            random_vit_size=config.random_vit_size,
            random_vit_image_size=config.random_vit_image_size,
        )
        for name in config.encoders:
            named = replace(flags, vision_model_name=name)
            fitted = named.fitted_kind
            encoder = (
                fitted.fit(named, [sample], len(sample)) if fitted else build_encoder(named, device)
            )
            caches = folder / f"{kind}_{encoder.name}"
            yield from compare_pass(config, f"{kind}, {encoder.name}", source, encoder, caches)
        num_frames = min(PEER_FRAMES, config.num_frames)
        name = f"{kind}, LeRobotDataset frame by frame"
        seconds = take_turns({name: frame_by_frame(root, num_frames)}, config.num_rounds)
        yield Figure.alone(name, "frames/s", *(num_frames / seconds[name]))


def compare_pass(
    config: BenchPrecomputeConfig,
    name: str,
    source: LeRobotSource,
    encoder: VisionEncoder,
    folder: Path,
) -> Iterator[Figure]:
    """Compare a pass with decoding and encoding alone, and with what bounds it.

    Where both need the same cores, the bound is cores / (CPU seconds of a frame in both), with no
    core ever idle. Otherwise it is the slower of the two.
    """
    num_frames, indices = source.num_frames, np.arange(source.num_frames)
    blocks = list(frame_blocks(source, CAMERA, indices, config.batch_size))
    some = blocks[:CPU_BLOCKS]
    caches = (Cache(folder, f"round{number}") for number in count())
    cpu_s: dict[str, list[float]] = {"decoding": [], "encoding": []}  # a frame, of every round

    def encode(blocks: list[np.ndarray]) -> None:
        for block in blocks:
            encoder.encode(block)

    def decode() -> float:
        seconds = timed(lambda: deque(frame_blocks(source, CAMERA, indices, config.batch_size), 0))
        cpu_s["decoding"].append(seconds.cpu / num_frames)
        return seconds.wall

    def encode_on_one_thread() -> None:
        with threadpool_limits(1):  # several would count their waiting as CPU time
            seconds = timed(lambda: encode(some))
        cpu_s["encoding"].append(seconds.cpu / sum(map(len, some)))

    def embed() -> float:
        writer = CacheWriter(next(caches), "embeddings", {})
        observed = ObservationEncoder(encoder)
        return write_embeddings(writer, source, [CAMERA], observed, config.batch_size).seconds

    turns: dict[str, Callable[[], object]] = {
        f"{name}: decoding alone": decode,
        f"{name}: encoder alone": lambda: encode(blocks),
        f"{name}: pass": embed,
        "CPU seconds": encode_on_one_thread,
    }
    seconds = take_turns(turns, config.num_rounds)
    del seconds["CPU seconds"]
    rates = {name: num_frames / own for name, own in seconds.items()}
    decoding, encoding, whole = rates
    slower, bound = f"{name}: slower half", f"{name}: bound"
    rates[slower] = rates[bound] = np.minimum(rates[decoding], rates[encoding])
    if encoder.compute["device"] == "cpu":
        cores = len(os.sched_getaffinity(0))
        rates[bound] = cores / np.add(cpu_s["decoding"][1:], cpu_s["encoding"][1:])
    compared = Comparison("frames/s", rates)
    yield compared.figure(decoding)
    yield compared.figure(encoding)
    yield compared.figure(bound, encoding)
    yield compared.figure(whole, encoding, "at least 0.95, or what the bound allows")
    yield compared.figure(whole, slower)
    yield compared.figure(whole, bound)


def measure_memory(config: BenchPrecomputeConfig, folder: Path) -> Iterator[Figure]:
    """Compare the peak memory of the stage, in processes of their own."""
    peaks = {}
    for num_frames in (config.num_frames, 10 * config.num_frames):
        root = folder / f"{num_frames}_frames"
        draw_dataset(root, num_frames, config.image_size)
        _, peaks[f"at {num_frames} frames"] = in_fresh_process(precompute_pixel_pca, root)
    yield from memory(peaks, "flat")


def precompute_pixel_pca(root: str) -> None:
    """Run the stage with pixel-pca."""
    precompute(
        PrecomputeConfig(
            dataset_name=f"bench/{Path(root).name}",
            dataset_root=Path(root),
            cache_dir=Path(f"{root}_cache"),
            vision_model_name="pixel-pca",
            pixel_pca_fit_frames=512,
            vq_fit_frames=512,
            vq_num_tokens=64,
        )
    )


def measure_shards(config: BenchPrecomputeConfig, folder: Path) -> Iterator[Figure]:
    """Compare two processes with one, in the pass and in its encoder alone; time a merge."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise InvalidInputError("this machine gives one core; two processes would share it")
    os.environ |= ONE_THREAD  # of the processes that are started from here
    draw_dataset(folder / "drawn", config.num_frames, config.image_size)
    context = multiprocessing.get_context("spawn")
    arguments = (context.Value("i", cores[0]), context.Barrier(2))
    caches = (folder / f"cache_{number}" for number in count())
    with ProcessPoolExecutor(2, context, work_alone_on_a_core, arguments) as pool:

        def play(job: Callable[..., tuple[float, float]], num_processes: int) -> float:
            """Return the seconds from the first beginning to the last end."""
            command = shard_command(config, folder / "drawn", next(caches))
            running = [pool.submit(job, command, i, num_processes) for i in range(num_processes)]
            began, ended = zip(*(future.result() for future in running), strict=True)
            return max(ended) - min(began)

        turns: dict[str, Callable[[], object]] = {
            f"{what}, {words}": lambda job=job, num=num: play(job, num)  # type: ignore[misc]
            for what, job in (("encoder alone", encode_only), ("precompute", embed_shard))
            for num, words in ((1, "one process"), (2, "two processes"))
        }
        seconds = take_turns(turns, config.num_rounds)
    compared = Comparison.rates("frames/s", seconds, config.num_frames)
    for what, wanted in (("encoder alone", ""), ("precompute", "at least 1.7")):
        yield compared.figure(f"{what}, one process")
        yield compared.figure(f"{what}, two processes", f"{what}, one process", wanted)
    merged = f"merge of {MERGE_SHARDS} shards, hashed and synced"
    rate = merge_rate(folder, config.merged_frames) / 1e6
    yield Figure.alone(merged, "MB/s", rate)


def shard_command(config: BenchPrecomputeConfig, root: Path, cache_dir: Path) -> PrecomputeConfig:
    """Return the command whose shards are measured, with a cache of its own."""
    return PrecomputeConfig(
        dataset_name="bench/drawn",
        dataset_root=root,
        cache_dir=cache_dir,
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


def embed_shard(config: PrecomputeConfig, index: int, num_shards: int) -> tuple[float, float]:
    """Embed one shard; return when it began and ended, on the clock that all processes share.

    Dataset and model are open before it begins.
    """
    cache, job = open_job(config, config.device)
    shards = ShardSet.join(cache, job, num_shards)
    began = _begin(num_shards)
    shards.write(index, job)
    return began, time.monotonic()


def encode_only(config: PrecomputeConfig, index: int, num_processes: int) -> tuple[float, float]:
    """Encode decoded frames, as many as `embed_shard` would in as many processes."""
    _, job = open_job(config, config.device)
    source = job.inputs.source
    frames = FrameShard(index, num_processes).frames(source.num_frames, config.batch_size)
    blocks = list(frame_blocks(source, CAMERA, np.array(frames), config.batch_size))
    encoder = job.make_encoder().encoder
    began = _begin(num_processes)
    for _ in encoder.encode_blocks(iter(blocks), config.batch_size):
        pass
    return began, time.monotonic()


def _begin(num_processes: int) -> float:
    if num_processes == 2:
        _together.wait(START_WITHIN_S)
    return time.monotonic()


def merge_rate(folder: Path, num_frames: int) -> float:
    """Return the bytes per second at which finished shards become the array, checked and synced."""
    identity = {"dataset": {"num_frames": num_frames}}
    plan = ShardPlan(MERGE_SHARDS, 1, identity, {"embedding_dim": MERGE_DIM}, {})
    cache = Cache(folder, "bench/merge")
    shards = ShardSet(cache, plan)
    rng = np.random.default_rng(0)
    rows = rng.random((num_frames, MERGE_DIM), dtype=np.float32).astype(np.float16)
    for index in range(MERGE_SHARDS):
        own = plan.frames(index)
        writer = CacheWriter(shards.shard(index), "embeddings", {})
        writer.put("embeddings", rows[own.start : own.stop])
        section = {"index": index, "num_frames": len(own), "seconds": 0.0}
        writer.publish({"plan": plan.content(), "shard": section})

    def merge() -> None:
        writer = CacheWriter(cache, "embeddings", {})
        shards.merge_into(writer)
        writer.publish({})

    return rows.nbytes / timed(merge).wall


MEASURES: dict[Part, Callable[[BenchPrecomputeConfig, Path], Iterator[Figure]]] = {
    "passes": measure_passes,
    "memory": measure_memory,
    "shards": measure_shards,
}


def run(config: BenchPrecomputeConfig) -> list[Figure]:
    """Measure the parts, print the table, and write JSON if asked."""
    with tempfile.TemporaryDirectory(dir=config.work_dir) as folder:
        parts = (MEASURES[part](config, Path(folder)) for part in config.parts)
        return report(config, (figure for part in parts for figure in part))


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchPrecomputeConfig, run)


if __name__ == "__main__":
    main()
