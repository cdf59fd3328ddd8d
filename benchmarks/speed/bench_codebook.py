"""How fast a codebook is fitted: against sklearn's MiniBatchKMeans, and against the floor.

    python -m benchmarks.speed.bench_codebook

Every fit sees the same drawn embeddings (see `write_rows`) and is judged by its inertia on all of
them. The floor of an iteration is its matrix product, 2 N V D FLOPs, at the speed of a large one.
Memory is measured in fresh processes that fit to a mapped array, at N and at 10 N frames.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.harness.drawn import RowKind, write_rows
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
from world_modality.precompute.codebook_step import StoredRows
from world_modality.system.cli import run_cli
from world_modality.system.device import resolve_device
from world_modality.tokens import torch_kmeans
from world_modality.tokens.codebook import CodebookFlags
from world_modality.tokens.kmeans import KMeans, VqBackend, assign_world_tokens

# The matrix product that stands for the machine's limit: N, V and D of one block.
SGEMM_SHAPE = (16_384, 1_024, 768)
ASSIGNED_ROWS = 1 << 16
# Much smaller than by default, so that ten times the frames do not fit.
MEMORY_RESIDENT_BYTES = 32 << 20
MEMORY_DIM = 128
PEER = "MiniBatchKMeans"


@dataclass(frozen=True)
class BenchCodebookConfig(BenchConfig):
    """Measure the codebook's fit and assignment against MiniBatchKMeans, in one run."""

    data: RowKind = "episodes"
    """Drawn embeddings: episodes are clustered and correlated along episodes; noise is the hard
    case."""
    num_frames: int = 200_000
    """Number N of drawn embeddings."""
    embedding_dim: int = 768
    """Embedding dimension D."""
    num_tokens: int = 1024
    """Codebook size V."""
    vq_fit_frames: int = 65_536
    """Frames of the fit that runs with the stage's default settings."""
    memory_frames: int = 100_000
    """Frames of the fit whose memory is measured; a second fit takes ten times as many."""
    num_rounds: int = 3
    """The ways to assign tokens take turns this many times; each fit is made once."""
    device: str = "auto"
    """Device of the torch backend: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …"""
    work_dir: Path | None = None
    """Folder for the drawn arrays (370 MB); by default a temporary one."""


def fit_peer(rows: np.ndarray, num_tokens: int) -> np.ndarray:
    """Fit MiniBatchKMeans by its usual settings, with the batch of 4,096."""
    from sklearn.cluster import MiniBatchKMeans

    peer = MiniBatchKMeans(num_tokens, batch_size=4_096, n_init="auto", random_state=0)
    return np.asarray(peer.fit(rows).cluster_centers_, dtype=np.float32)


def fit_ours(rows: np.ndarray, num_tokens: int, backend: VqBackend, device: str) -> np.ndarray:
    """Fit as the stage does."""
    flags = CodebookFlags(vq_num_tokens=num_tokens, vq_backend=backend)
    return KMeans.fit(flags, rows, device).centroids


def inertia_of(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Return the mean squared distance of all rows to their nearest centroid."""
    tokens = assign_world_tokens(rows, centroids)
    blocks = np.array_split(np.arange(len(rows)), -(-len(rows) // 4_096))
    return sum(float(((rows[b] - centroids[tokens[b]]) ** 2).sum()) for b in blocks) / len(rows)


def measure_fits(config: BenchCodebookConfig, rows: np.ndarray) -> Iterator[Figure]:
    """Make the peer's fit and ours one after another; compare time, CPU time and inertia."""
    chosen = np.random.default_rng(0).choice(len(rows), config.vq_fit_frames, replace=False)
    sample = rows[np.sort(chosen)]
    faiss, on_torch = (
        partial(fit_ours, backend=backend, device=config.device) for backend in ("faiss", "torch")
    )
    fits: dict[str, tuple[Callable[..., np.ndarray], np.ndarray]] = {
        PEER: (fit_peer, rows),
        f"faiss on {len(sample)} (default)": (faiss, sample),
        f"torch on {len(sample)}": (on_torch, sample),
        "torch on all": (on_torch, rows),
    }
    for fit in (fit_peer, faiss, on_torch):
        fit(sample[:64], 2)  # imports
    rounds: dict[str, dict[str, list[float]]] = {"s": {}, "CPU-s": {}, "mean squared distance": {}}
    wall, cpu, inertia = (Comparison(unit, values) for unit, values in rounds.items())
    for name, (fit, own) in fits.items():
        found: list[np.ndarray] = []
        seconds = timed(lambda fit=fit, own=own, f=found: f.append(fit(own, config.num_tokens)))  # type: ignore[misc]
        measured = (*seconds, inertia_of(rows, found[0]))
        for values, value in zip(rounds.values(), measured, strict=True):
            values[name] = [value]
        yield from (compared.figure(name) for compared in (wall, cpu, inertia))
        if name != PEER:
            yield wall.figure(PEER, name, "at least 2")
            yield cpu.figure(PEER, name)
            yield inertia.figure(name, PEER, "at most 1")


def measure_assignment(config: BenchCodebookConfig, rows: np.ndarray) -> Iterator[Figure]:
    """Compare both ways to assign tokens with a large float32 matrix product."""
    device = resolve_device(config.device)
    num_rows, num_columns, inner = SGEMM_SHAPE
    left = torch.randn(num_rows, inner, device=device)
    right = torch.randn(inner, num_columns, device=device)
    product = torch.empty(num_rows, num_columns, device=device)

    def multiply() -> None:
        with torch_kmeans.full_precision():
            torch.mm(left, right, out=product)

    part, centroids = rows[:ASSIGNED_ROWS], rows[: config.num_tokens]
    turns: dict[str, Callable[[], object]] = {
        "sgemm": multiply,
        "assignment by faiss": lambda: assign_world_tokens(part, centroids, None),
        "assignment by torch": lambda: assign_world_tokens(part, centroids, device),
    }
    flops = dict.fromkeys(turns, 2 * len(part) * config.num_tokens * config.embedding_dim)
    flops["sgemm"] = 2 * num_rows * num_columns * inner
    seconds = take_turns(turns, config.num_rounds)
    rates = Comparison.rates("GFLOP/s", seconds, {name: f / 1e9 for name, f in flops.items()})
    sgemm, *ways = turns
    yield rates.figure(sgemm)
    yield from (rates.figure(way, sgemm) for way in ways)
    iteration = 2 * config.num_frames * config.num_tokens * config.embedding_dim
    floor_s = seconds[sgemm] * iteration / flops[sgemm]
    yield Figure.alone("an iteration over all frames takes at least", "s", *floor_s)


def measure_memory(config: BenchCodebookConfig, folder: Path) -> Iterator[Figure]:
    """Compare the peak memory of fits to all of N and of 10 N mapped frames."""
    peaks = {}
    for num_frames in (config.memory_frames, 10 * config.memory_frames):
        path = folder / f"{num_frames}.npy"
        write_rows(path, "noise", num_frames, MEMORY_DIM)
        _, peaks[f"at {num_frames} frames"] = in_fresh_process(fit_mapped_rows, path, num_frames)
    yield from memory(peaks, "flat")


def fit_mapped_rows(path: str, num_frames: int) -> None:
    """Fit to all rows of a mapped array, of which few are held in memory."""
    torch_kmeans.RESIDENT_BYTES = MEMORY_RESIDENT_BYTES
    rows = StoredRows(Path(path), np.arange(num_frames))
    torch_kmeans.fit_in_torch(rows, 128, device=torch.device("cpu"), seed=0, num_rounds=3)


def measure(config: BenchCodebookConfig, folder: Path) -> Iterator[Figure]:
    """Measure memory, assignment and fits."""
    yield from measure_memory(config, folder)
    path = folder / "rows.npy"
    write_rows(path, config.data, config.num_frames, config.embedding_dim)
    rows = np.load(path).astype(np.float32)
    yield from measure_assignment(config, rows)
    yield from measure_fits(config, rows)


def run(config: BenchCodebookConfig) -> list[Figure]:
    """Measure, print the table, and write JSON if asked."""
    with tempfile.TemporaryDirectory(dir=config.work_dir) as folder:
        return report(config, measure(config, Path(folder)))


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchCodebookConfig, run)


if __name__ == "__main__":
    main()
