"""How fast frames become embeddings: the pass over a dataset against the encoder alone.

    python -m benchmarks.speed.bench_precompute

The dataset is drawn and stored as PNG images by LeRobot; memory is measured in fresh
processes, at N and at 4 N frames.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.drawn_dataset import CAMERA, draw_dataset
from world_modality.atomic import write_json
from world_modality.cache import Cache
from world_modality.cache_writer import CacheWriter
from world_modality.cli import run_cli
from world_modality.embedding_pass import write_embeddings
from world_modality.frame_decoding import frame_blocks
from world_modality.lerobot_adapter import open_dataset
from world_modality.lerobot_source import LeRobotSource
from world_modality.pixel_pca import PixelPCA, area_average
from world_modality.vision_encoders import (
    EncoderRequest,
    RandomVitSize,
    VisionEncoder,
    build_encoder,
)

# Runs the stage in a fresh interpreter. The kernel's high-water mark begins anew there, while
# getrusage would still count the parent's memory.
_PEAK = """
from benchmarks.speed.memory import peak_resident_bytes
from world_modality.precompute_world_tokens import main
main()
print("RESULT", peak_resident_bytes())
"""


@dataclass(frozen=True)
class BenchPrecomputeConfig:
    """Measure the embedding pass against its encoder alone, and the stage's peak memory."""

    work_dir: Path | None = None
    """Holds the drawn datasets; by default a temporary folder."""
    num_frames: int = 1000
    """N; memory is also measured at 4 N."""
    image_size: int = 128
    """Side of the drawn frames."""
    random_vit_size: RandomVitSize = "tiny"
    """Size of the random-vit that stands for a realistic encoder."""
    random_vit_image_size: int = 112
    """Side of the image that it sees."""
    batch_size: int = 32
    """Frames a batch."""
    device: str = "auto"
    """Device of the encoder."""
    output_json: Path | None = None
    """Also write the figures here."""


def encoder_rate(encoder: VisionEncoder, blocks: list[np.ndarray]) -> float:
    """Return the frames per second of the encoder on frames that are already decoded."""
    began = time.monotonic()
    for block in blocks:
        encoder.encode(block)
    return sum(map(len, blocks)) / (time.monotonic() - began)


def measure_pass(
    encoder: VisionEncoder, source: LeRobotSource, batch_size: int, folder: Path
) -> dict[str, Any]:
    """Run the pass between two measurements of the encoder alone and of decoding alone."""
    indices = np.arange(source.num_frames)
    began = time.monotonic()
    blocks = list(frame_blocks(source, CAMERA, indices, batch_size))
    decoding = len(indices) / (time.monotonic() - began)
    encoder.encode(blocks[0])
    before = encoder_rate(encoder, blocks)
    writer = CacheWriter(Cache(folder, f"bench/{encoder.name}"), "embeddings", {})
    speed = write_embeddings(writer, source, CAMERA, encoder, batch_size)
    alone = 2 / (1 / before + 1 / encoder_rate(encoder, blocks))
    bound = min(alone, decoding)
    return {
        "encoder": encoder.name,
        "embedding_dim": encoder.embedding_dim,
        "pass_frames_per_s": speed.frames_per_s,
        "encoder_only_frames_per_s": alone,
        "decoding_only_frames_per_s": decoding,
        "ratio_to_encoder": speed.frames_per_s / alone,
        "ratio_to_slower_half": speed.frames_per_s / bound,
    }


def peak_memory(root: Path, folder: Path) -> int:
    """Return the peak resident memory (bytes) of the stage with pixel-pca, in its own process."""
    flags = ["--dataset_name", f"bench/{root.name}", "--dataset_root", root, "--cache_dir", folder]
    flags += ["--vision_model_name", "pixel-pca", "--pixel_pca_fit_frames", 512]
    flags += ["--vq_fit_frames", 512, "--vq_num_tokens", 64]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *map(str, flags)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return int(line.split()[1])


def machine(device: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    return {
        "cpu": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def run(config: BenchPrecomputeConfig) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    from world_modality.device import resolve_device

    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory(dir=config.work_dir) as name:
        folder = Path(name)
        for factor in (1, 4):
            root = folder / f"x{factor}"
            draw_dataset(root, factor * config.num_frames, config.image_size)
        source = open_dataset("bench/x1", dataset_root=folder / "x1")
        sample = next(frame_blocks(source, CAMERA, np.arange(config.num_frames), 256))
        request = EncoderRequest(
            "random-vit",
            random_vit_size=config.random_vit_size,
            random_vit_image_size=config.random_vit_image_size,
        )
        encoders = [
            build_encoder(request, device),
            PixelPCA.fit_to(area_average(sample, 32), 192, seed=0),
        ]
        passes = [measure_pass(e, source, config.batch_size, folder / "cache") for e in encoders]
        peaks = [peak_memory(folder / f"x{factor}", folder / "peak") for factor in (1, 4)]
    report = {
        "machine": machine(str(device)),
        "num_frames": config.num_frames,
        "image_size": config.image_size,
        "passes": passes,
        "peak_bytes": {"N": peaks[0], "4N": peaks[1]},
    }
    _print(report)
    if config.output_json is not None:
        write_json(config.output_json, report)
    return report


def _print(report: dict[str, Any]) -> None:
    print(json.dumps(report["machine"]))
    for measured in report["passes"]:
        print(
            f"{measured['encoder']} (D={measured['embedding_dim']}): "
            f"pass {measured['pass_frames_per_s']:.1f} frames/s, "
            f"encoder alone {measured['encoder_only_frames_per_s']:.1f}, "
            f"decoding alone {measured['decoding_only_frames_per_s']:.1f}; "
            f"{measured['ratio_to_encoder']:.2f} of the encoder, "
            f"{measured['ratio_to_slower_half']:.2f} of the slower of the two"
        )
    small, large = report["peak_bytes"].values()
    num = report["num_frames"]
    print(
        f"peak memory {small / 1e6:.0f} MB at {num} frames, "
        f"{large / 1e6:.0f} MB at {4 * num} frames"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchPrecomputeConfig, run)


if __name__ == "__main__":
    main()
