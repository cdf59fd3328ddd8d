"""How fast a codebook is fitted: against sklearn's MiniBatchKMeans, and against the floor.

    python -m benchmarks.speed.bench_codebook

Every fit sees the same drawn embeddings (see `codebook_rows`) and is judged by its inertia on all
of them. The floor of an iteration is its matrix product, 2 N V D FLOPs, at the speed of a large
one. Memory is measured in fresh processes that fit to a mapped array, at N and at 10 N frames.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.bench_precompute import machine
from benchmarks.speed.harness.codebook_rows import RowKind, write_rows
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli
from world_modality.tokens.codebook import CodebookFlags
from world_modality.tokens.kmeans import KMeans, VqBackend, assign_world_tokens

# The matrix product that stands for the machine's limit: N, V and D of one block.
SGEMM_SHAPE = (16_384, 1_024, 768)
# Much smaller than by default, so that ten times the frames do not fit.
MEMORY_RESIDENT_BYTES = 32 << 20
MEMORY_FRAMES = 100_000
MEMORY_DIM = 128
_PEAK = """
import sys
from pathlib import Path
import numpy as np
import torch
from benchmarks.speed.harness.turns import peak_resident_bytes
from world_modality.tokens import kmeans
from world_modality.precompute.steps import StoredRows
kmeans.RESIDENT_BYTES = int(sys.argv[2])
rows = StoredRows(Path(sys.argv[1]), np.arange(int(sys.argv[3])))
kmeans.fit_in_torch(rows, 128, device=torch.device("cpu"), seed=0, num_rounds=3)
print(peak_resident_bytes())
"""


@dataclass(frozen=True)
class BenchCodebookConfig:
    """Measure the codebook's fit and assignment against MiniBatchKMeans, in one run."""

    data: RowKind = "episodes"
    """episodes: clustered, correlated along episodes; noise: the hard case."""
    num_frames: int = 200_000
    """N."""
    embedding_dim: int = 768
    """D."""
    num_tokens: int = 1024
    """V."""
    vq_fit_frames: int = 65_536
    """Of the fit by the stage's default settings."""
    small: bool = False
    """Try it out: N 10,000, D 64, V 64, fitted on 4,096."""
    device: str = "auto"
    """Device of the torch backend."""
    work_dir: Path | None = None
    """Holds the drawn arrays (370 MB); by default a temporary folder."""
    output_json: Path | None = None
    """Also write the figures here."""

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """N, D, V and the frames of the default fit."""
        if self.small:
            return 10_000, 64, 64, 4_096
        return self.num_frames, self.embedding_dim, self.num_tokens, self.vq_fit_frames


def measure(fit: Callable[[], np.ndarray]) -> dict[str, Any]:
    """Return a fit's centroids, seconds, and CPU seconds over all threads."""
    began, cpu_began = time.perf_counter(), time.process_time()
    centroids = fit()
    return {
        "centroids": centroids,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
    }


def fit_peer(rows: np.ndarray, num_tokens: int) -> np.ndarray:
    """Fit MiniBatchKMeans by its usual settings, with the batch of 4,096."""
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(num_tokens, batch_size=4_096, n_init="auto", random_state=0)
    return np.asarray(kmeans.fit(rows).cluster_centers_, dtype=np.float32)


def fit_ours(rows: np.ndarray, num_tokens: int, backend: VqBackend, device: str) -> np.ndarray:
    """Fit as the stage does."""
    flags = CodebookFlags(vq_num_tokens=num_tokens, vq_backend=backend)
    return KMeans.fit(flags, rows, device).centroids


def sgemm_flops(device: str) -> float:
    """Return the FLOP/s of a large float32 matrix product, the best of five."""
    import torch

    from world_modality.system.device import resolve_device
    from world_modality.tokens.kmeans import full_precision

    rows, columns, inner = SGEMM_SHAPE
    on = resolve_device(device)
    left, right = torch.randn(rows, inner, device=on), torch.randn(inner, columns, device=on)
    product, seconds = torch.empty(rows, columns, device=on), []
    with full_precision():
        for _ in range(6):
            began = time.perf_counter()
            torch.mm(left, right, out=product)
            if on.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return 2 * rows * columns * inner / min(seconds[1:])


def inertia_of(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Return the mean squared distance of all rows to their nearest centroid."""
    tokens = assign_world_tokens(rows, centroids)
    blocks = np.array_split(np.arange(len(rows)), -(-len(rows) // 4_096))
    return sum(float(((rows[b] - centroids[tokens[b]]) ** 2).sum()) for b in blocks) / len(rows)


def measure_fits(config: BenchCodebookConfig, rows: np.ndarray) -> dict[str, dict[str, Any]]:
    """Run the peer and our fits one after another; add inertia and ratios to the peer."""
    _, _, num_tokens, fit_frames = config.sizes
    sample = rows[np.sort(np.random.default_rng(0).choice(len(rows), fit_frames, replace=False))]
    fits: dict[str, Callable[[], np.ndarray]] = {
        "MiniBatchKMeans": lambda: fit_peer(rows, num_tokens),
        f"faiss on {fit_frames} (default)": lambda: fit_ours(sample, num_tokens, "faiss", ""),
        f"torch on {fit_frames}": lambda: fit_ours(sample, num_tokens, "torch", config.device),
        "torch on all": lambda: fit_ours(rows, num_tokens, "torch", config.device),
    }
    # Imports.
    fit_ours(sample[:64], 2, "faiss", config.device)
    fit_ours(sample[:64], 2, "torch", config.device)
    fit_peer(sample[:64], 2)
    results: dict[str, dict[str, Any]] = {}
    for name, fit in fits.items():
        result = measure(fit)
        result["inertia"] = inertia_of(rows, result.pop("centroids"))
        peer = results.get("MiniBatchKMeans", result)
        result["times_faster"] = peer["seconds"] / result["seconds"]
        result["times_less_cpu"] = peer["cpu_seconds"] / result["cpu_seconds"]
        result["inertia_ratio"] = result["inertia"] / peer["inertia"]
        results[name] = result
        print(_line(name, result), flush=True)
    return results


def _line(name: str, result: dict[str, Any]) -> str:
    return (
        f"{name}: {result['seconds']:.1f} s, {result['cpu_seconds']:.1f} CPU-s, inertia "
        f"{result['inertia']:.5g}; {result['times_faster']:.2f} times faster "
        f"({result['times_less_cpu']:.2f} by CPU time), {result['inertia_ratio']:.4f} of the "
        "peer's inertia"
    )


def measure_assignment(config: BenchCodebookConfig, rows: np.ndarray) -> dict[str, float]:
    """Return the FLOP/s of an iteration's product alone, and of both ways to assign tokens."""
    from world_modality.system.device import resolve_device

    num_frames, dim, num_tokens, _ = config.sizes
    device = resolve_device(config.device)
    part, centroids = rows[: 1 << 16], rows[:num_tokens]
    flops = 2 * len(part) * num_tokens * dim
    ways = {"faiss": None, "torch": device}
    rates: dict[str, list[float]] = {"sgemm": [], **{name: [] for name in ways}}
    for _ in range(3):
        rates["sgemm"].append(sgemm_flops(config.device))
        for name, on in ways.items():
            began = time.perf_counter()
            assign_world_tokens(part, centroids, on)
            rates[name].append(flops / (time.perf_counter() - began))
    best = {name: max(rate) for name, rate in rates.items()}
    return {
        **{f"{name}_gflops": rate / 1e9 for name, rate in best.items()},
        **{f"{name}_of_floor": best[name] / best["sgemm"] for name in ways},
        "iteration_floor_seconds": 2 * num_frames * num_tokens * dim / best["sgemm"],
    }


def measure_memory(folder: Path) -> dict[int, int]:
    """Return the peak resident bytes of fits to all of N and of 10 N mapped frames."""
    peaks = {}
    for num_frames in (MEMORY_FRAMES, 10 * MEMORY_FRAMES):
        path = folder / f"{num_frames}.npy"
        write_rows(path, "noise", num_frames, MEMORY_DIM)
        command = [sys.executable, "-c", _PEAK, path, MEMORY_RESIDENT_BYTES, num_frames]
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True)
        peaks[num_frames] = int(done.stdout)
    return peaks


def run(config: BenchCodebookConfig) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    num_frames, dim, num_tokens, _ = config.sizes
    about = machine(config.device)
    print(f"{about}\n{num_frames} x {dim} ({config.data}) into {num_tokens}")
    with tempfile.TemporaryDirectory(dir=config.work_dir) as name:
        peaks = measure_memory(Path(name))
        path = Path(name) / "rows.npy"
        write_rows(path, config.data, num_frames, dim)
        rows = np.load(path).astype(np.float32)
        assignment = measure_assignment(config, rows)
        fits = measure_fits(config, rows)
    print(
        f"assignment: faiss {assignment['faiss_of_floor']:.2f}, torch "
        f"{assignment['torch_of_floor']:.2f} of an sgemm's {assignment['sgemm_gflops']:.0f} "
        f"GFLOP/s; an iteration over all frames takes at least "
        f"{assignment['iteration_floor_seconds']:.2f} s"
    )
    print("peak memory: " + ", ".join(f"{b / 1e6:.0f} MB at {n} frames" for n, b in peaks.items()))
    report = {"machine": about, "assignment": assignment, "fits": fits, "peak_bytes": peaks}
    if config.output_json is not None:
        write_json(config.output_json, report)
    return report


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchCodebookConfig, run)


if __name__ == "__main__":
    main()
