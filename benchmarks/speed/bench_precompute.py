"""How fast frames become embeddings: the pass over a dataset against the encoder alone.

    python -m benchmarks.speed.bench_precompute

The datasets are drawn, and stored by LeRobot as PNG images and as video; memory is measured in
fresh processes, at N and at 10 N frames.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.speed.harness.drawn_dataset import CAMERA, draw_dataset
from benchmarks.speed.harness.lerobot_peer import frame_by_frame_rate
from benchmarks.speed.harness.pass_rates import measure_pass
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.encode.random_vit import RandomVitSize
from world_modality.encode.vision_encoders import VisionEncoderFlags, build_encoder
from world_modality.source.frame_decoding import frame_blocks
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli

if TYPE_CHECKING:
    import torch

PCA_FRAMES = 256  # to fit pixel-pca to
PEER_FRAMES = 200
# Runs the stage in a fresh interpreter. The kernel's high-water mark begins anew there, while
# getrusage would still count the parent's memory.
_PEAK = """
from benchmarks.speed.harness.turns import peak_resident_bytes
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
    """N; memory is also measured at 10 N."""
    image_size: int = 128
    """Side of the drawn frames."""
    random_vit_size: RandomVitSize = "tiny"
    """Size of the random-vit that stands for a realistic encoder."""
    random_vit_image_size: int = 112
    """Side of the image that it sees."""
    batch_size: int = 32
    """Frames a batch."""
    num_rounds: int = 3
    """Rounds, in each of which decoding, the encoder and the pass are measured in turn."""
    device: str = "auto"
    """Device of the encoder."""
    output_json: Path | None = None
    """Also write the figures here."""


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
    from world_modality.system.device import resolve_device

    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory(dir=config.work_dir) as name:
        folder = Path(name)
        draw_dataset(folder / "x1", config.num_frames, config.image_size)
        draw_dataset(folder / "x10", 10 * config.num_frames, config.image_size)
        draw_dataset(folder / "video", config.num_frames, config.image_size, "video")
        roots = {"image": folder / "x1", "video": folder / "video"}
        passes = [
            measured for kind in roots for measured in _passes(config, kind, roots[kind], device)
        ]
        peers = {kind: frame_by_frame_rate(roots[kind], PEER_FRAMES) for kind in roots}
        peaks = [peak_memory(folder / f"x{factor}", folder / "peak") for factor in (1, 10)]
    report = {
        "machine": machine(str(device)),
        "num_frames": config.num_frames,
        "image_size": config.image_size,
        "passes": passes,
        "frame_by_frame": peers,
        "peak_bytes": {"N": peaks[0], "10N": peaks[1]},
    }
    _print(report)
    if config.output_json is not None:
        write_json(config.output_json, report)
    return report


def _passes(
    config: BenchPrecomputeConfig, kind: str, root: Path, device: "torch.device"
) -> Iterator[dict[str, Any]]:
    """Measure the pass over one dataset with each encoder."""
    source = open_dataset(f"bench/{root.name}", dataset_root=root)
    sample = next(frame_blocks(source, CAMERA, np.arange(config.num_frames), PCA_FRAMES))
    flags = VisionEncoderFlags(
        vision_model_name="random-vit",
        random_vit_size=config.random_vit_size,
        random_vit_image_size=config.random_vit_image_size,
    )
    for encoder in (
        build_encoder(flags, device),
        PixelPCA.fit(flags, [sample], len(sample)),
    ):
        rates = measure_pass(
            encoder,
            source,
            config.batch_size,
            num_rounds=config.num_rounds,
            folder=root.parent / f"cache_{kind}_{encoder.name}",
        )
        yield {
            "camera": kind,
            "encoder": encoder.name,
            "embedding_dim": encoder.embedding_dim,
            **rates.report(),
        }


def _print(report: dict[str, Any]) -> None:
    print(json.dumps(report["machine"]))
    for measured in report["passes"]:
        print(
            f"{measured['camera']} frames, {measured['encoder']} (D={measured['embedding_dim']}): "
            f"pass {measured['pass_frames_per_s']:.1f} frames/s, "
            f"encoder alone {measured['encoder_frames_per_s']:.1f}, "
            f"decoding alone {measured['decoding_frames_per_s']:.1f}, "
            f"bound {measured['bound_frames_per_s']:.1f}; "
            f"{measured['ratio_to_encoder']:.2f} of the encoder (the bound allows "
            f"{measured['possible_ratio_to_encoder']:.2f}), "
            f"{measured['ratio_to_slower_half']:.2f} of the slower half, "
            f"{measured['ratio_to_bound']:.2f} of the bound"
        )
    for kind, rate in report["frame_by_frame"].items():
        print(f"{kind} frames read one by one through LeRobotDataset: {rate:.1f} frames/s")
    small, large = report["peak_bytes"].values()
    num = report["num_frames"]
    print(
        f"peak memory {small / 1e6:.0f} MB at {num} frames, "
        f"{large / 1e6:.0f} MB at {10 * num} frames"
    )


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchPrecomputeConfig, run)


if __name__ == "__main__":
    main()
