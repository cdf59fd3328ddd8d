"""The figures of `bench_training` in words."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

Part = Literal["start", "memory", "throughput", "loading", "flops"]
PARTS: tuple[Part, ...] = ("start", "memory", "throughput", "loading", "flops")


def lines(part: Part, found: dict[str, Any]) -> Iterator[str]:
    """Yield what a part found: the figure, its floor or peer, the ratio, and what is wanted."""
    return _LINES[part](found)


def _start(found: dict[str, Any]) -> Iterator[str]:
    size = f"{found['num_frames']:.0f} x {found['embedding_dim']:.0f}"
    yield (
        f"start: import {found['import_s']:.1f} s, then {found['first_step_s']:.1f} s to the "
        f"first step's end on {size}, wanted at most 5"
    )
    yield (
        f"memory: peak {found['peak_bytes'] / 1e9:.2f} GB = arrays "
        f"{found['array_bytes'] / 1e9:.2f} + {found['peak_over_arrays_bytes'] / 1e9:.2f} GB, "
        "wanted at most arrays + 1.5"
    )


def _memory(found: dict[str, Any]) -> Iterator[str]:
    for place, measured in found.items():
        (few, many), (small, large) = measured["num_frames"], measured["peak_bytes"]
        wanted = ", wanted flat" if place == "disk" else ""
        yield (
            f"memory, embeddings on the {place}: {small / 1e6:.0f} MB at {few} frames, "
            f"{large / 1e6:.0f} MB at {many}: {large / small:.2f} times, "
            f"{(large - small) / (many - few):.0f} bytes for each frame more{wanted}"
        )


def _throughput(found: dict[str, Any]) -> Iterator[str]:
    yield f"training: {found['trainer']['samples_per_s']:.0f} samples/s"
    for name, measured in found.items():
        if name == "trainer":
            continue
        wanted = ", wanted at least 0.97" if name == "bare loop" else ""
        yield (
            f"  to {name}, {measured['samples_per_s']:.0f}: {measured['ratio']:.3f} "
            f"({measured['ratio_min']:.3f} to {measured['ratio_max']:.3f}){wanted}"
        )


def _loading(found: dict[str, Any]) -> Iterator[str]:
    for name, measured in found.items():
        line = f"{name}: {measured['samples_per_s']:.0f} samples/s"
        if "LeRobot" in name:
            wanted = 100 if name.startswith("batches") else 3
            line += f"; ours {measured['ratio']:.1f} times as many, wanted at least {wanted}"
        yield line


def _flops(found: dict[str, Any]) -> Iterator[str]:
    for width, measured in found.items():
        yield (
            f"FLOP/s, d_model {width}: {measured['gflop']:.1f} GFLOP a step; "
            f"{measured['product_gflop_per_s']:.0f} GFLOP/s in a large matrix product"
        )
        for name, step in measured["steps"].items():
            yield (
                f"  {name}: {step['gflop_per_s']:.0f} GFLOP/s, {step['samples_per_s']:.0f} "
                f"samples/s; ratio {step['ratio']:.2f} ({step['ratio_min']:.2f} to "
                f"{step['ratio_max']:.2f}), wanted at least 0.5 on a CPU"
            )


_LINES: Mapping[Part, Callable[[dict[str, Any]], Iterator[str]]] = {
    "start": _start,
    "memory": _memory,
    "throughput": _throughput,
    "loading": _loading,
    "flops": _flops,
}
