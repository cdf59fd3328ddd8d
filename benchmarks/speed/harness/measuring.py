"""How everything is measured and shown: in turns, as figures beside those of their peers.

Machines are noisy, and only ratios within a run tell. So what is compared takes turns, and a figure
is the median over the rounds, beside the least and the greatest.
"""

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from world_modality.system.atomic import write_json
from world_modality.system.cli import config_dict


@dataclass(frozen=True)
class BenchConfig:
    """The flag that all benchmarks have."""

    json_path: Path | None = None
    """JSON file that receives the figures, too."""


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest over the rounds."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        median, least, greatest = map(_shown, (self.median, self.least, self.greatest))
        return median if least == greatest else f"{median} ({least} to {greatest})"


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark's table.

    Attributes:
        name: what was measured.
        unit: of the value.
        value: what it reached.
        peer: what it is compared with in the same run; empty where it stands alone.
        ratio: its value to the peer's, round by round; None where it stands alone.
        wanted: what the ratio, or the value that stands alone, is to be.
    """

    name: str
    unit: str
    value: Spread
    peer: str = ""
    ratio: Spread | None = None
    wanted: str = ""

    @classmethod
    def alone(cls, name: str, unit: str, *values: float, wanted: str = "") -> "Figure":
        """Return a figure without a peer, from its values in every round."""
        return cls(name, unit, _spread(np.array(values)), wanted=wanted)

    def line(self) -> str:
        """Return the line of the table."""
        compared = f"{self.ratio} times {self.peer}" if self.ratio else ""
        wanted = f"wanted {self.wanted}" if self.wanted else ""
        parts = (f"{self.name:<52} {self.value} {self.unit}", compared, wanted)
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class Comparison:
    """What was measured in turns.

    Attributes:
        unit: of the values.
        rounds: the value of every round, by the name of what was measured.
    """

    unit: str
    rounds: Mapping[str, Sequence[float] | np.ndarray]

    @classmethod
    def rates(
        cls, unit: str, seconds: Mapping[str, np.ndarray], amount: float | Mapping[str, float]
    ) -> "Comparison":
        """Return amounts a second; the amount of a round is one for all, or one for each name."""
        amounts = amount if isinstance(amount, Mapping) else dict.fromkeys(seconds, amount)
        return cls(unit, {name: amounts[name] / own for name, own in seconds.items()})

    def figure(self, name: str, peer: str = "", wanted: str = "") -> Figure:
        """Return one of them, compared with another one if a peer is named."""
        own = np.asarray(self.rounds[name])
        ratio = _spread(own / np.asarray(self.rounds[peer])) if peer else None
        return Figure(name, self.unit, _spread(own), peer, ratio, wanted)

    def figures(self) -> list[Figure]:
        """Return all of them, each alone."""
        return [self.figure(name) for name in self.rounds]


def memory(peak_bytes: Mapping[str, int], wanted: str = "") -> list[Figure]:
    """Return peaks of memory; those after the first are compared with it."""
    peaks = {f"peak memory {name}": [size / 1e6] for name, size in peak_bytes.items()}
    first, *others = peaks
    compared = Comparison("MB", peaks)
    return [compared.figure(first), *(compared.figure(name, first, wanted) for name in others)]


class Seconds(NamedTuple):
    """Wall-clock time, and processor time of all threads of this process."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Seconds:
    """Return how long it takes, the work of a GPU included."""
    import torch

    began, cpu_began = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - began, time.process_time() - cpu_began)


def turn_seconds(turn: Callable[[], object]) -> float:
    """Return the seconds of a turn; one that returns a float has measured them itself."""
    own: list[object] = []
    wall = timed(lambda: own.append(turn())).wall
    return own[0] if isinstance(own[0], float) else wall


def take_turns(turns: Mapping[str, Callable[[], object]], num_rounds: int) -> dict[str, np.ndarray]:
    """Return each turn's `turn_seconds` in every round; one more round, at first, warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(1 + num_rounds):
        for name, turn in turns.items():
            seconds[name].append(turn_seconds(turn))
    return {name: np.array(times[1:]) for name, times in seconds.items()}


def repeated(work: Callable[[], object], times: int) -> Callable[[], None]:
    """Return a turn that does the work several times."""

    def turn() -> None:
        for _ in range(times):
            work()

    return turn


def report(config: BenchConfig, figures: Iterable[Figure]) -> list[Figure]:
    """Print the machine and every figure as soon as it is there; write JSON if asked."""
    about = machine()
    print(json.dumps(about))
    shown = []
    for figure in figures:
        print(figure.line(), flush=True)
        shown.append(figure)
    if config.json_path is not None:
        rows = [asdict(figure) for figure in shown]
        content = {"machine": about, "config": config_dict(config), "figures": rows}
        write_json(config.json_path, content)
    return shown


def machine() -> dict[str, Any]:
    """Return what figures depend on."""
    import torch

    return {
        "cpu": platform.processor() or platform.machine(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
    }


def fresh_process(function: Callable[..., object], *arguments: object) -> list[str]:
    """Return the command that calls a module's function in an interpreter of its own.

    Arguments and result go through JSON; see `in_fresh_process`.
    """
    # A script that was started with -m is a module of another name.
    module = sys.modules[function.__module__].__spec__
    assert module is not None, f"{function.__module__} was not started with python -m"
    address = f"{module.name}:{function.__name__}"
    return [sys.executable, "-m", __spec__.name, address, json.dumps(arguments, default=str)]


def in_fresh_process(function: Callable[..., object], *arguments: object) -> tuple[Any, int]:
    """Return what a function returns there, and the peak of that process's memory in bytes.

    Raises:
        RuntimeError: it failed; holds the end of what it said.
    """
    command = fresh_process(function, *arguments)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{function.__name__} failed: {done.stderr[-2000:]}")
    result, peak_bytes = json.loads(done.stdout.splitlines()[-1])
    return result, peak_bytes


def status_bytes(key: str) -> int:
    """Return a size from what the kernel says of this process.

    Args:
        key: VmRSS is the resident memory now, VmHWM its peak. Not `ru_maxrss`, which Linux hands
            on from the process that started this one.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields[key].split()[0]) * 1024


def reset_peak() -> None:
    """Let the peak begin again at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _spread(values: np.ndarray) -> Spread:
    return Spread(float(np.median(values)), float(values.min()), float(values.max()))


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main() -> None:
    """Be the fresh process."""
    module, _, name = sys.argv[1].partition(":")
    result = getattr(importlib.import_module(module), name)(*json.loads(sys.argv[2]))
    print(json.dumps([result, status_bytes("VmHWM")]))


if __name__ == "__main__":
    main()
