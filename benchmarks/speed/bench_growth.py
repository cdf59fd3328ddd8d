"""How each stage's time and memory grow with frames, model width and processes.

    python -m benchmarks.speed.bench_growth

Exponents are slopes of a least-squares line in log-log coordinates, with a 95 % t interval; they
hold for the range that was measured, which is printed. Each size runs in a process of its own with
one thread.
"""

import contextlib
import io
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.speed.harness.drawn import CAMERA, draw_cache, draw_dataset, write_rows
from benchmarks.speed.harness.measuring import machine, reset_peak, status_bytes, turn_seconds
from benchmarks.speed.harness.trainers import drawn_train_config, endless_steps, open_trainer
from world_modality.encode.random_vit import RandomVitSize
from world_modality.policy.predictions import predict
from world_modality.precompute.codebook_step import StoredRows
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli
from world_modality.tokens.codebook import CodebookFlags
from world_modality.tokens.kmeans import KMeans
from world_modality.training.trainer import Trainer

CONFIDENCE = 0.95
PROCESSES = (1, 2, 4)
REPEATS = 3
NUM_TOKENS = 64
NUM_LAYERS = 3
EMBEDDING_DIM = 64
TRAINING_BATCH = 128
ASSIGNMENT_BLOCK = 2_048
IMAGE_SIZE = 64
VIT_IMAGE_SIZE = 28
VIT_SIZES: dict[int, RandomVitSize] = {192: "tiny", 384: "small", 768: "base"}
# What the stages import when they run; it is to be there before they are measured.
LAZILY_IMPORTED = (
    *("faiss", "pandas", "sklearn.cluster", "torch._dynamo", "torchvision"),
    *("transformers.models.dinov2.modeling_dinov2", "world_modality.source.lerobot_adapter"),
    "world_modality.encode.network_encoder",
)
_PANELS_A_ROW = 3

Work = Callable[[], object]
"""A stage, ready to run, as `turn_seconds` takes it."""


def embedding_pass(frames: int, width: int, folder: Path) -> Work:
    """Prepare the precompute stage with an untrained ViT on drawn PNG images; times its pass."""
    root = folder / "dataset"
    draw_dataset(root, frames, IMAGE_SIZE)

    def work() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as cache_dir:
            config = PrecomputeConfig(
                dataset_name="bench/growth",
                dataset_root=root,
                image_key=(CAMERA,),
                cache_dir=Path(cache_dir),
                vision_model_name="random-vit",
                random_vit_size=VIT_SIZES[width],
                random_vit_image_size=VIT_IMAGE_SIZE,
                vq_num_tokens=2,
                val_fraction=0.5,
                device="cpu",
            )
            speed = precompute(config).speed
        assert speed is not None
        return speed.seconds

    return work


def vq_fit(frames: int, width: int, folder: Path) -> Work:
    """Prepare the torch fit to all rows of a mapped array."""
    rows = _rows(frames, width, folder)
    return lambda: KMeans.fit(
        CodebookFlags(vq_num_tokens=NUM_TOKENS, vq_backend="torch"), rows, "cpu"
    )


def vq_assignment(frames: int, width: int, folder: Path) -> Work:
    """Prepare faiss's assignment of all rows of a mapped array, in the stage's blocks."""
    rows = _rows(frames, width, folder)
    codebook = KMeans(rows[np.arange(NUM_TOKENS)].astype(np.float32), l2_normalize=False)

    def work() -> None:
        for indices in np.array_split(np.arange(frames), -(-frames // ASSIGNMENT_BLOCK)):
            codebook.encode(rows[indices])

    return work


def _rows(frames: int, width: int, folder: Path) -> StoredRows:
    path = folder / "rows.npy"
    write_rows(path, "episodes", frames, width)
    return StoredRows(path, np.arange(frames))


def training_step(frames: int, width: int, folder: Path) -> Work:
    """Prepare arm C's optimiser step."""
    return partial(next, endless_steps(_trainer(frames, width, folder)))


def offline_evaluation(frames: int, width: int, folder: Path) -> Work:
    """Prepare the predictions of arm C at every frame, as `eval_offline` makes them."""
    trainer = _trainer(frames, width, folder)
    return lambda: predict(trainer.policy, trainer.tensors, np.arange(frames))


def _trainer(frames: int, width: int, folder: Path) -> Trainer:
    cache = draw_cache(folder, frames, EMBEDDING_DIM)
    config = drawn_train_config(
        d_model=width, n_layers=NUM_LAYERS, batch_size=TRAINING_BATCH, device="cpu"
    )
    return open_trainer(cache, config)


@dataclass(frozen=True)
class Stage:
    """A stage and its sizes.

    Attributes:
        prepare: from N, a width and a folder.
        frames: N; the width is the first one meanwhile.
        widths: of encoder, embedding or trunk, whichever the stage computes with.
        base_frames: N while the width varies, and in several processes.
    """

    prepare: Callable[[int, int, Path], Work]
    frames: tuple[int, ...]
    widths: tuple[int, ...]
    base_frames: int


STAGES = {
    stage.prepare.__name__: stage
    for stage in (
        Stage(embedding_pass, (200, 400, 800, 1_600), (192, 384, 768), 200),
        Stage(vq_fit, (4_096, 8_192, 16_384, 32_768, 65_536), (64, 128, 256, 512), 8_192),
        Stage(vq_assignment, (8_192, 16_384, 32_768, 65_536), (64, 128, 256, 512), 16_384),
        Stage(training_step, (2_048, 8_192, 32_768, 131_072), (64, 128, 256, 512), 4_096),
        Stage(offline_evaluation, (1_024, 2_048, 4_096, 8_192), (64, 128, 256), 1_024),
    )
}


@dataclass(frozen=True)
class BenchGrowthConfig:
    """Fit how the stages' time and memory grow."""

    stages: tuple[str, ...] = tuple(STAGES)
    """Which stages."""
    out_dir: Path = Path("growth")
    """Gets growth.json and growth.png."""


def measure(name: str, frames: int, width: int) -> dict[str, float]:
    """Prepare a stage, warm it up, and measure it in this process.

    Returns:
        `seconds`, the median over repeats; `peak_bytes`, the resident memory that it added at its
        peak; `began_s` and `ended_s`, the wall-clock times around the repeats.
    """
    torch.set_num_threads(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        work = STAGES[name].prepare(frames, width, Path(folder))
        before = status_bytes("VmRSS")
        reset_peak()
        work()
        began = time.time()
        seconds = [turn_seconds(work) for _ in range(REPEATS)]
        ended = time.time()
    added = max(status_bytes("VmHWM") - before, 1)  # a logarithm is taken of it
    median = float(np.median(seconds))
    return {"seconds": median, "peak_bytes": added, "began_s": began, "ended_s": ended}


@dataclass(frozen=True)
class Growth:
    """One exponent: `y` grows as `x` to its power.

    Attributes:
        stage: which one.
        quantity: `seconds`, `peak_bytes`, or `runs_per_s` of all processes together.
        axis: what x is: `frames`, `width` or `processes`.
        x: sizes.
        y: measured there.
        exponent: the slope.
        low: lower end of its interval.
        high: upper end.
    """

    stage: str
    quantity: str
    axis: str
    x: list[float]
    y: list[float]
    exponent: float
    low: float
    high: float

    @classmethod
    def fit(cls, labels: tuple[str, str, str], x: Iterable[int], y: list[float]) -> "Growth":
        """Fit the line through at least three sizes; labels are stage, quantity and axis."""
        sizes = [float(size) for size in x]
        line = stats.linregress(np.log(sizes), np.log(y))
        margin = stats.t.ppf((1 + CONFIDENCE) / 2, len(sizes) - 2) * line.stderr
        slope = float(line.slope)
        return cls(*labels, sizes, y, slope, slope - margin, slope + margin)

    def row(self) -> str:
        """Return a line of the table."""
        return (
            f"{self.stage:20}{self.quantity:12}{self.axis:11}{self.exponent:7.2f}  "
            f"[{self.low:5.2f}, {self.high:5.2f}]  {self.x[0]:g} to {self.x[-1]:g}: "
            f"{self.y[0]:.3g} to {self.y[-1]:.3g}"
        )


def measure_together(
    name: str, frames: int, width: int, num_processes: int = 1
) -> list[dict[str, float]]:
    """Measure a stage in fresh processes side by side."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([measure.__module__, *LAZILY_IMPORTED])
    with ProcessPoolExecutor(num_processes, context) as pool:
        running = [pool.submit(measure, name, frames, width) for _ in range(num_processes)]
        return [future.result() for future in running]


def measure_stage(name: str) -> list[Growth]:
    """Measure one stage along the three axes."""
    stage = STAGES[name]
    base = (stage.base_frames, stage.widths[0])
    axes = {
        "frames": {n: (n, base[1]) for n in stage.frames},
        "width": {width: (base[0], width) for width in stage.widths},
    }
    found = []
    for axis, sizes in axes.items():
        measured = [measure_together(name, *size)[0] for size in sizes.values()]
        for quantity in ("seconds", "peak_bytes"):
            y = [m[quantity] for m in measured]
            found.append(Growth.fit((name, quantity, axis), sizes, y))
    rates = []
    for number in PROCESSES:
        together = measure_together(name, *base, number)
        span = max(m["ended_s"] for m in together) - min(m["began_s"] for m in together)
        rates.append(number * REPEATS / span)
    return [*found, Growth.fit((name, "runs_per_s", "processes"), PROCESSES, rates)]


def plot(growths: list[Growth], path: Path) -> None:
    """Draw every quantity along every axis, relative to its first size."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(dict.fromkeys((g.quantity, g.axis) for g in growths))
    num_rows = (len(panels) + _PANELS_A_ROW - 1) // _PANELS_A_ROW
    figure, axes = plt.subplots(
        num_rows, _PANELS_A_ROW, figsize=(13, 4 * num_rows), layout="constrained", squeeze=False
    )
    colours = {g.stage: f"C{i}" for i, g in enumerate({g.stage: g for g in growths}.values())}
    for (quantity, axis), panel in zip(panels, axes.flat, strict=False):
        for growth in growths:
            if (growth.quantity, growth.axis) == (quantity, axis):
                x, y = (np.array(values) / values[0] for values in (growth.x, growth.y))
                label = f"{growth.stage}: power {growth.exponent:.2f}"
                panel.plot(x, y, marker="o", label=label, color=colours[growth.stage])
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=2)
        for scale in (panel.xaxis, panel.yaxis):
            scale.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        panel.set_xlabel(f"{axis}, times the smallest")
        panel.set_ylabel(f"{quantity}, times the first")
        panel.legend(fontsize=8)
    for panel in axes.flat[len(panels) :]:
        panel.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
    plt.close(figure)


def run(config: BenchGrowthConfig) -> list[Growth]:
    """Measure, print the table, and write JSON and plot."""
    # Before a process starts: each has one thread, so that they do not share cores by chance.
    os.environ["OMP_NUM_THREADS"] = "1"
    about = machine()
    print(json.dumps(about))
    print(f"{'stage':20}{'quantity':12}{'axis':11}{'power':>7}  {CONFIDENCE:.0%} interval")
    growths = []
    for stage in config.stages:
        for growth in measure_stage(stage):
            growths.append(growth)
            print(growth.row(), flush=True)
    config.out_dir.mkdir(parents=True, exist_ok=True)
    report = {"machine": about, "growth": [asdict(growth) for growth in growths]}
    write_json(config.out_dir / "growth.json", report)
    plot(growths, config.out_dir / "growth.png")
    return growths


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchGrowthConfig, run)


if __name__ == "__main__":
    main()
