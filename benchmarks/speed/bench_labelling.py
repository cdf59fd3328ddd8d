"""How fast a server's answers become labels: throughput by concurrency, and the client's own cost.

    python -m benchmarks.speed.bench_labelling

The server is a process of its own whose latency dominates, as a large model's does; it answers
every request after the same time however many there are. The client's cost is all its processor
time. Pictures that are stored as files are sent as they are; what they cost otherwise (a camera
stored as video, or too large), to decode and to encode as JPEG, is measured apart.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.harness.drawn_dataset import draw_dataset
from coc_vla.authors.vlm import image_url
from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.coc_generation import run as generate
from coc_vla.labels.episode_tasks import plan_tasks
from coc_vla.labels.record import LabelFile, read_labels
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.atomic import write_json
from world_modality.system.cli import run_cli

# Only keyframes are decoded, so that short episodes measure the same and are drawn sooner.
EPISODE_LENGTH = 10
_SERVER = """
import asyncio, json, sys

STEPS = [
    ("Move the open gripper over the square", "it has to be above the square to reach it"),
    ("Lower the gripper to the square", "the fingers have to be on both sides of the square"),
    ("Close the gripper around the square", "a firm hold lets the square follow the hand"),
    ("Move the square to its goal", "the instruction asks for this change"),
]
TEXT = "\\n".join(f"{n}. What: {a}. Why: {b}." for n, (a, b) in enumerate(STEPS, 1))
CHOICE = {"message": {"content": TEXT}, "finish_reason": "stop"}
ANSWER = json.dumps({"choices": [CHOICE], "usage": {"completion_tokens": 90}}).encode()
MODELS = json.dumps({"data": [{"id": "latency"}]}).encode()

async def serve(reader, writer):
    while head := await reader.readuntil(b"\\r\\n\\r\\n"):
        fields = head.decode().lower().split("\\r\\n")
        length = [int(f.split(":")[1]) for f in fields if f.startswith("content-length:")]
        if length:
            await reader.readexactly(length[0])
            await asyncio.sleep(float(sys.argv[1]))
        body = ANSWER if length else MODELS
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
        await writer.drain()

async def serve_quietly(reader, writer):
    try:
        await serve(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve_quietly, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


@dataclass(frozen=True)
class BenchLabellingConfig:
    """Measure labelling through a server whose latency dominates."""

    work_dir: Path | None = None
    """Holds the drawn dataset; by default a temporary folder."""
    num_episodes: int = 160
    """Episodes labelled at the higher concurrency; an eighth of them at 1."""
    image_size: int = 256
    """Side of the drawn frames."""
    latency_s: float = 0.2
    """The server's time for an answer."""
    concurrency: int = 16
    """Requests at once, compared with one."""
    output_json: Path | None = None
    """Also write the figures here."""


@contextmanager
def latency_server(latency_s: float) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    command = [sys.executable, "-c", _SERVER, str(latency_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


def cpu_s() -> float:
    """Return the processor time (s) of this process and all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_run(config: CocGenerationConfig) -> dict[str, float]:
    """Label once; return time and processor time an episode, start-up included."""
    began, cpu_began = time.monotonic(), cpu_s()
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        redirect_stderr(nowhere),
    ):
        summary = generate(config)
    count = summary.num_labels
    assert summary.num_errors == 0
    return {
        "episodes": count,
        "episodes_per_s": count / summary.seconds,
        "wall_ms": 1000 * (time.monotonic() - began) / count,
        "cpu_ms": 1000 * (cpu_s() - cpu_began) / count,
    }


def measure_images(config: CocGenerationConfig, as_recorded: bool) -> dict[str, float]:
    """Return the processor time (ms) an episode of reading frames and of writing them as text."""
    source = open_dataset(config.dataset_name, dataset_root=config.dataset_root)
    plan = plan_tasks(source, config, needs_images=True, as_recorded=as_recorded)
    began = cpu_s()
    tasks = list(plan.tasks())
    read = cpu_s()
    num_bytes = sum(len(image_url(image)) for task in tasks for image in task.images)
    encoded = cpu_s()
    return {
        "reading_ms": 1000 * (read - began) / len(tasks),
        "encoding_ms": 1000 * (encoded - read) / len(tasks),
        "request_kib": num_bytes / len(tasks) / 1024,
    }


def measure_append(config: CocGenerationConfig, folder: Path) -> dict[str, float]:
    """Return what writing and flushing one label costs: wall time waits for the disk."""
    labels = read_labels(config.output_jsonl)[:50]
    began, cpu_began = time.monotonic(), cpu_s()
    with LabelFile(folder / "append.jsonl") as file:
        for label in labels:
            file.append([label])
    count = len(labels)
    return {
        "append_wall_ms": 1000 * (time.monotonic() - began) / count,
        "append_cpu_ms": 1000 * (cpu_s() - cpu_began) / count,
    }


def run(config: BenchLabellingConfig) -> dict[str, Any]:
    """Measure, print, and return the figures."""
    with tempfile.TemporaryDirectory(dir=config.work_dir) as name:
        folder = Path(name)
        root = folder / "drawn"
        num_frames = config.num_episodes * EPISODE_LENGTH
        draw_dataset(root, num_frames, config.image_size, episode_length=EPISODE_LENGTH)
        with latency_server(config.latency_s) as url:

            def labelling(concurrency: int, num_episodes: int) -> CocGenerationConfig:
                return CocGenerationConfig(
                    dataset_name="bench/drawn",
                    dataset_root=root,
                    output_jsonl=folder / f"{concurrency}_{num_episodes}.jsonl",
                    backend="openai",
                    base_url=url,
                    concurrency=concurrency,
                    max_episodes=num_episodes,
                )

            measure_run(labelling(2, 4))  # imports and first connections
            one = measure_run(labelling(1, max(config.num_episodes // 8, 1)))
            many_config = labelling(config.concurrency, config.num_episodes)
            many = measure_run(many_config)
            files, pixels = (measure_images(many_config, flag) for flag in (True, False))
            append = measure_append(many_config, folder)
    result = {
        "at_one": one,
        "at_many": {"concurrency": config.concurrency, **many},
        "speed_up": many["episodes_per_s"] / one["episodes_per_s"],
        "client_cpu_ms": many["cpu_ms"],
        "image_files": files,
        "image_pixels": pixels,
        "append": append,
        "latency_s": config.latency_s,
        "image_size": config.image_size,
        "load": os.getloadavg(),
        "num_cpus": os.cpu_count(),
    }
    print_result(result)
    if config.output_json is not None:
        write_json(config.output_json, result)
    return result


def print_result(result: dict[str, Any]) -> None:
    """Print each figure with what is counted in it."""
    one, many = result["at_one"], result["at_many"]
    side, append = result["image_size"], result["append"]
    print(f"server: {result['latency_s']} s an answer; 3 keyframes of {side} × {side} an episode")
    print(f"  1 request at once    {one['episodes_per_s']:.2f} episodes/s")
    print(f"  {many['concurrency']} requests at once  {many['episodes_per_s']:.2f} episodes/s")
    print(f"  speed-up             {result['speed_up']:.2f}")
    print(f"client, all its processor time: {many['cpu_ms']:.2f} ms an episode, of which")
    for name, words in (("image_files", "as stored"), ("image_pixels", "decoded, then JPEG")):
        images = result[name]
        total = images["reading_ms"] + images["encoding_ms"]
        instead = "" if name == "image_files" else " (for video or large images, in their place)"
        print(
            f"  pictures, {words:<19}{total:.2f} ms: reading {images['reading_ms']:.2f}, encoding "
            f"{images['encoding_ms']:.2f}, {images['request_kib']:.0f} KiB{instead}"
        )
    print(
        f"one label flushed alone: {append['append_wall_ms']:.2f} ms, of which processor time "
        f"{append['append_cpu_ms']:.2f} ms; labels finished at the same time share a flush"
    )
    print(f"load {result['load'][0]:.1f} on {result['num_cpus']} processors while measuring")


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchLabellingConfig, run)


if __name__ == "__main__":
    main()
