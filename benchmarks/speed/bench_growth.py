"""How each stage's time and memory grow with frames, model width and processes.

    python -m benchmarks.speed.bench_growth

Exponents are slopes of a least-squares line in log-log coordinates, with a 95 % t interval; they
hold for the range that was measured, which is printed. Each size runs in a process of its own with
one thread.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from benchmarks.speed.bench_precompute import machine
from world_modality.system.atomic import replacing, write_json
from world_modality.system.cli import run_cli

if TYPE_CHECKING:
    from benchmarks.speed.harness.growth_stages import Case, Measured

CONFIDENCE = 0.95
_PANELS_A_ROW = 3


@dataclass(frozen=True)
class Sizes:
    """The sizes of one stage: one axis varies while the other stays at `base`."""

    frames: tuple[int, ...]
    widths: tuple[int, ...]
    base: tuple[int, int]


SIZES = {
    "embedding_pass": Sizes((200, 400, 800, 1_600), (192, 384, 768), (200, 192)),
    "vq_fit": Sizes((4_096, 8_192, 16_384, 32_768, 65_536), (64, 128, 256, 512), (8_192, 64)),
    "vq_assignment": Sizes((8_192, 16_384, 32_768, 65_536), (64, 128, 256, 512), (16_384, 64)),
    "training_step": Sizes((2_048, 8_192, 32_768, 131_072), (64, 128, 256, 512), (4_096, 64)),
    "offline_evaluation": Sizes((1_024, 2_048, 4_096, 8_192), (64, 128, 256), (1_024, 64)),
}
PROCESSES = (1, 2, 4)


@dataclass(frozen=True)
class BenchGrowthConfig:
    """Fit how the stages' time and memory grow."""

    stages: tuple[str, ...] = tuple(SIZES)
    """Which stages."""
    out_dir: Path = Path("growth")
    """Gets growth.json and growth.png."""


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
    def fit(cls, labels: tuple[str, str, str], x: list[float], y: list[float]) -> "Growth":
        """Fit the line through at least three sizes; labels are stage, quantity and axis."""
        line = stats.linregress(np.log(x), np.log(y))
        margin = stats.t.ppf((1 + CONFIDENCE) / 2, len(x) - 2) * line.stderr
        slope = float(line.slope)
        return cls(*labels, x, y, slope, slope - margin, slope + margin)

    def row(self) -> str:
        """Return a line of the table."""
        return (
            f"{self.stage:20}{self.quantity:12}{self.axis:11}{self.exponent:7.2f}  "
            f"[{self.low:5.2f}, {self.high:5.2f}]  {self.x[0]:g} to {self.x[-1]:g}: "
            f"{self.y[0]:.3g} to {self.y[-1]:.3g}"
        )


def measure_together(case: "Case", num_processes: int = 1) -> list["Measured"]:
    """Run a case in fresh processes side by side."""
    from benchmarks.speed.harness import growth_stages

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([growth_stages.__name__, *growth_stages.LAZILY_IMPORTED])
    with ProcessPoolExecutor(num_processes, context) as pool:
        return list(pool.map(growth_stages.measure, [case] * num_processes))


def measure_stage(stage: str, sizes: Sizes) -> list[Growth]:
    """Measure one stage along the three axes."""
    from benchmarks.speed.harness.growth_stages import REPEATS, Case

    base_frames, base_width = sizes.base
    axes = {
        "frames": {n: Case(stage, n, base_width) for n in sizes.frames},
        "width": {w: Case(stage, base_frames, w) for w in sizes.widths},
    }
    found = []
    for axis, cases in axes.items():
        measured = [measure_together(case)[0] for case in cases.values()]
        x = [float(size) for size in cases]
        for quantity in ("seconds", "peak_bytes"):
            y = [float(getattr(m, quantity)) for m in measured]
            found.append(Growth.fit((stage, quantity, axis), x, y))
    rates = []
    for number in PROCESSES:
        together = measure_together(Case(stage, base_frames, base_width), number)
        span = max(m.ended_s for m in together) - min(m.began_s for m in together)
        rates.append(number * REPEATS / span)
    x = [float(number) for number in PROCESSES]
    return [*found, Growth.fit((stage, "runs_per_s", "processes"), x, rates)]


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
    about = machine("cpu")
    print(about)
    print(f"{'stage':20}{'quantity':12}{'axis':11}{'power':>7}  {CONFIDENCE:.0%} interval")
    growths = []
    for stage in config.stages:
        for growth in measure_stage(stage, SIZES[stage]):
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
