"""How fast a server's answers become labels: throughput by concurrency, and the client's own cost.

    python -m benchmarks.speed.bench_labelling

The server is a process of its own whose latency dominates, as a large model's does; it answers
every request after the same time however many there are. The client's cost is all its processor
time. Pictures that are stored as files are sent as they are; what they cost otherwise (a camera
stored as video, or too large), to decode and to encode as JPEG, is measured apart.
"""

import asyncio
import io
import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.harness.drawn import draw_dataset
from benchmarks.speed.harness.measuring import (
    BenchConfig,
    Comparison,
    Figure,
    fresh_process,
    report,
    timed,
)
from coc_vla.authors.vlm import image_url
from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.coc_generation import run as generate
from coc_vla.labels.episode_tasks import plan_tasks
from coc_vla.labels.record import LabelFile, read_labels
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.cli import run_cli

# Only keyframes are decoded, so that short episodes measure the same and are drawn sooner.
EPISODE_LENGTH = 10
APPENDED_LABELS = 50
STEPS = (
    ("Move the open gripper over the square", "it has to be above the square to reach it"),
    ("Lower the gripper to the square", "the fingers have to be on both sides of the square"),
    ("Close the gripper around the square", "a firm hold lets the square follow the hand"),
    ("Move the square to its goal", "the instruction asks for this change"),
)
TEXT = "\n".join(f"{n}. What: {what}. Why: {why}." for n, (what, why) in enumerate(STEPS, 1))
CHOICE = {"message": {"content": TEXT}, "finish_reason": "stop"}
ANSWER = json.dumps({"choices": [CHOICE], "usage": {"completion_tokens": 90}}).encode()
MODELS = json.dumps({"data": [{"id": "latency"}]}).encode()


@dataclass(frozen=True)
class BenchLabellingConfig(BenchConfig):
    """Measure labelling through a server whose latency dominates."""

    work_dir: Path | None = None
    """Folder for the drawn dataset; by default a temporary one."""
    num_episodes: int = 160
    """Episodes to label with many requests at once; an eighth of them is labelled one by one."""
    image_size: int = 256
    """Height and width of the drawn frames in pixels."""
    latency_s: float = 0.2
    """Seconds that the server takes for an answer."""
    concurrency: int = 16
    """Requests sent at once, which is compared with one at a time."""


def be_server(latency_s: float) -> None:
    """Print a port of this machine, and answer there until the process is ended."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                fields = head.decode().lower().split("\r\n")
                length = [int(f.split(":")[1]) for f in fields if f.startswith("content-length:")]
                if length:
                    await reader.readexactly(length[0])
                    await asyncio.sleep(latency_s)
                body = ANSWER if length else MODELS
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def start() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(start())


@contextmanager
def latency_server(latency_s: float) -> Iterator[str]:
    """Yield the address of a server in a process of its own."""
    command = fresh_process(be_server, latency_s)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.terminate()


def label(config: CocGenerationConfig) -> tuple[float, float]:
    """Label once; return episodes a second, and processor time (ms) an episode with start-up."""
    summaries = []
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        seconds = timed(lambda: summaries.append(generate(config)))
    (summary,) = summaries
    assert summary.num_errors == 0
    return summary.num_labels / summary.seconds, 1000 * seconds.cpu / summary.num_labels


def measure_images(config: CocGenerationConfig, *, as_recorded: bool) -> Iterator[Figure]:
    """Measure the processor time of reading frames and of writing them as text."""
    source = open_dataset(config.dataset_name, dataset_root=config.dataset_root)
    plan = plan_tasks(source, config, needs_images=True, as_recorded=as_recorded)
    tasks: list[Any] = []
    urls: list[str] = []
    reading = timed(lambda: tasks.extend(plan.tasks()))
    encoding = timed(lambda: urls.extend(image_url(i) for task in tasks for i in task.images))
    what = "pictures as stored" if as_recorded else "pictures decoded, then JPEG (video, large)"
    for step, seconds in (("reading", reading), ("encoding", encoding)):
        milliseconds = 1000 * seconds.cpu / len(tasks)
        yield Figure.alone(f"{what}: {step}", "CPU-ms an episode", milliseconds)
    size = sum(map(len, urls)) / len(tasks) / 1024
    yield Figure.alone(f"{what}: request", "KiB an episode", size)


def measure_append(config: CocGenerationConfig, folder: Path) -> Iterator[Figure]:
    """Measure what writing and flushing one label costs: wall time waits for the disk."""
    labels = read_labels(config.output_jsonl)[:APPENDED_LABELS]

    def append() -> None:
        with LabelFile(folder / "append.jsonl") as file:
            for own in labels:
                file.append([own])

    seconds = timed(append)
    name = "one label flushed alone (finished together, they share a flush)"
    for unit, value in (("ms", seconds.wall), ("CPU-ms", seconds.cpu)):
        yield Figure.alone(name, unit, 1000 * value / len(labels))


def measure(config: BenchLabellingConfig, folder: Path) -> Iterator[Figure]:
    """Label with one request at once and with many, and measure the client's parts."""
    root = folder / "drawn"
    num_frames = config.num_episodes * EPISODE_LENGTH
    draw_dataset(root, num_frames, config.image_size, episode_length=EPISODE_LENGTH)
    with latency_server(config.latency_s) as url:

        def command(concurrency: int, num_episodes: int) -> CocGenerationConfig:
            return CocGenerationConfig(
                dataset_name="bench/drawn",
                dataset_root=root,
                output_jsonl=folder / f"{concurrency}_{num_episodes}.jsonl",
                backend="openai",
                base_url=url,
                concurrency=concurrency,
                max_episodes=num_episodes,
            )

        label(command(2, 4))  # imports and first connections
        at_one, _ = label(command(1, max(config.num_episodes // 8, 1)))
        many = command(config.concurrency, config.num_episodes)
        at_many, client_ms = label(many)
    names = "1 request at once", f"{config.concurrency} requests at once"
    speed = Comparison("episodes/s", {names[0]: [at_one], names[1]: [at_many]})
    yield speed.figure(names[0])
    yield speed.figure(names[1], names[0], "at least 3")
    client = "client, all its processor time"
    yield Figure.alone(client, "CPU-ms an episode", client_ms, wanted="at most 5")
    for as_recorded in (True, False):
        yield from measure_images(many, as_recorded=as_recorded)
    yield from measure_append(many, folder)


def run(config: BenchLabellingConfig) -> list[Figure]:
    """Measure, print the table, and write JSON if asked."""
    with tempfile.TemporaryDirectory(dir=config.work_dir) as folder:
        return report(config, measure(config, Path(folder)))


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchLabellingConfig, run)


if __name__ == "__main__":
    main()
