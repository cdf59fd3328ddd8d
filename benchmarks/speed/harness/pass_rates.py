"""Frames per second of the embedding pass, of its two halves alone, and what bounds it."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.speed.harness.drawn_dataset import CAMERA
from world_modality.cache.contract import Cache
from world_modality.cache.writer import CacheWriter
from world_modality.encode.vision_encoders import VisionEncoder
from world_modality.precompute.embedding_pass import write_embeddings
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_source import LeRobotSource

# Blocks whose encoding is timed with one thread, for its CPU seconds a frame.
CPU_BLOCKS = 4


@dataclass(frozen=True)
class PassRates:
    """Medians over rounds in which each was measured in turn.

    Attributes:
        pass_frames_per_s: decoding, encoding and writing together.
        encoder_frames_per_s: processor and encoder alone on decoded frames, with all its threads.
        decoding_frames_per_s: decoding alone.
        encoder_cpu_s: CPU seconds of encoding a frame with one thread.
        decoding_cpu_s: CPU seconds of decoding a frame.
        on_cpu: whether decoding takes the encoder's cores.
    """

    pass_frames_per_s: float
    encoder_frames_per_s: float
    decoding_frames_per_s: float
    encoder_cpu_s: float
    decoding_cpu_s: float
    on_cpu: bool

    @property
    def slower_half(self) -> float:
        """Frames/s of the slower half alone."""
        return min(self.encoder_frames_per_s, self.decoding_frames_per_s)

    @property
    def bound(self) -> float:
        """Frames/s that no pass can exceed.

        Where both halves need the same cores: cores / (CPU seconds of a frame in both), with no
        core ever idle. Otherwise the slower half.
        """
        if not self.on_cpu:
            return self.slower_half
        return len(os.sched_getaffinity(0)) / (self.encoder_cpu_s + self.decoding_cpu_s)

    def report(self) -> dict[str, Any]:
        """Return the figures and their ratios, for JSON."""
        return {
            **asdict(self),
            "bound_frames_per_s": self.bound,
            "ratio_to_encoder": self.pass_frames_per_s / self.encoder_frames_per_s,
            "possible_ratio_to_encoder": self.bound / self.encoder_frames_per_s,
            "ratio_to_slower_half": self.pass_frames_per_s / self.slower_half,
            "ratio_to_bound": self.pass_frames_per_s / self.bound,
        }


def measure_pass(
    encoder: VisionEncoder,
    source: LeRobotSource,
    batch_size: int,
    *,
    num_rounds: int,
    folder: Path,
) -> PassRates:
    """Measure decoding, the encoder and the pass in turns.

    Args:
        encoder: what embeds.
        source: the dataset.
        batch_size: frames a batch.
        num_rounds: how often.
        folder: for the caches, one a round.
    """
    indices = np.arange(source.num_frames)
    blocks = list(frame_blocks(source, CAMERA, indices, batch_size))
    encoder.encode(blocks[0])
    rounds = []
    for number in range(num_rounds):
        writer = CacheWriter(Cache(folder, f"round{number}"), "embeddings", {})
        decoding_s, decoding_cpu_s = _timed(
            lambda: all(len(b) for b in frame_blocks(source, CAMERA, indices, batch_size))
        )
        encoder_s, _ = _timed(lambda: all(len(encoder.encode(b)) for b in blocks))
        speed = write_embeddings(writer, source, CAMERA, encoder, batch_size)
        rounds.append(
            (speed.seconds, encoder_s, decoding_s, _encoder_cpu_s(encoder, blocks), decoding_cpu_s)
        )
    pass_s, encoder_s, decoding_s, encoder_cpu_s, decoding_cpu_s = map(
        statistics.median, zip(*rounds, strict=True)
    )
    num_frames = len(indices)
    return PassRates(
        pass_frames_per_s=num_frames / pass_s,
        encoder_frames_per_s=num_frames / encoder_s,
        decoding_frames_per_s=num_frames / decoding_s,
        encoder_cpu_s=encoder_cpu_s,
        decoding_cpu_s=decoding_cpu_s / num_frames,
        on_cpu=encoder.compute["device"] == "cpu",
    )


def _encoder_cpu_s(encoder: VisionEncoder, blocks: list[np.ndarray]) -> float:
    """Return CPU seconds a frame with one thread: several would count their waiting."""
    some = blocks[:CPU_BLOCKS]
    with threadpool_limits(1):
        _, cpu_s = _timed(lambda: all(len(encoder.encode(block)) for block in some))
    return cpu_s / sum(map(len, some))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds that the work takes."""
    began, cpu_began = time.monotonic(), time.process_time()
    work()
    return time.monotonic() - began, time.process_time() - cpu_began
