"""How fast training is, part by part: against its floors, its peers and itself in other ways.

    python -m benchmarks.speed.bench_training
    python -m benchmarks.speed.bench_training --parts checkpoints --d_model 256 --n_layers 4
    accelerate launch --multi_gpu --num_processes 2 \
      -m benchmarks.speed.bench_training --parts processes --device cpu --num_threads 1

- start: the first step of a fresh process, and its memory.
- memory: its growth with the frames.
- throughput: the trainer against bare loops on one resident batch.
- loading: batches, and training fed by them, against LeRobot's DataLoader.
- flops: a step against a large matrix product of the same dtype, at two widths.
- seeds: seeds side by side against the same seeds in a row.
- checkpoints: what one costs the training that writes it.
- processes: the launched processes together against one of them.

The cache is drawn and of LIBERO's size (273,465 frames of 768 dims); the dataset that LeRobot reads
is recorded. Each part takes a minute or two.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed.harness.drawn import draw_cache
from benchmarks.speed.harness.lerobot_peer import LeRobotBatches, record, require_same_windows
from benchmarks.speed.harness.measuring import (
    BenchConfig,
    Comparison,
    Figure,
    in_fresh_process,
    memory,
    repeated,
    report,
    take_turns,
    timed,
)
from benchmarks.speed.harness.trainers import (
    bare_step,
    drawn_train_config,
    endless_steps,
    feed,
    open_trainer,
    without_dropout,
)
from world_modality.cache.contract import Cache
from world_modality.policy.checkpoint import Checkpoint, checkpoint_arrays
from world_modality.policy.config import TrainConfig
from world_modality.system.cli import run_cli
from world_modality.system.device import resolve_device
from world_modality.system.errors import InvalidInputError
from world_modality.system.process_group import ProcessGroup
from world_modality.training.saver import CheckpointSaver
from world_modality.training.side_by_side import SeedContext
from world_modality.training.trainer import StepRecord, Trainer

Part = Literal[
    "start", "memory", "throughput", "loading", "flops", "seeds", "checkpoints", "processes"
]
FRAMES_FOR_STEPS = 20_000
PRODUCT_SIZE = 2048
NUM_WORKERS = (0, 2)
GATHERED_BATCHES = 200
LOADED_BATCHES = 2
TRAINED_STEPS = 8
SILENCED: dict[str, tuple[type[torch.nn.Module], ...]] = {
    "": (),
    ", no attention dropout": (torch.nn.MultiheadAttention,),
    ", no dropout": (torch.nn.MultiheadAttention, torch.nn.Dropout),
}
SAVES_PER_ROUND = 4
STEPS_PER_SAVE = 10
MINUTE_S = 60.0


@dataclass(frozen=True)
class BenchTrainingConfig(BenchConfig):
    """Measure training against its floors and its peers, in one run."""

    parts: tuple[Part, ...] = ("start", "memory", "throughput", "loading", "flops")
    """What to measure; see the top of the module."""
    work_dir: Path | None = None
    """Folder for the drawn caches (470 MB), which the next run uses again; by default a temporary
    one."""
    num_frames: int = 273_465
    """Frames of the drawn cache; memory is also measured at a tenth of them."""
    embedding_dim: int = 768
    """Embedding dimension of the drawn cache."""
    d_model: int = 128
    """Width of the trunk; small models show the trainer's own cost best."""
    n_layers: int = 3
    """Depth of the trunk."""
    wide_d_model: int = 512
    """Width of a second trunk, of as many layers, whose FLOP/s are measured, too."""
    batch_size: int = 256
    """Windows of a step, over all processes together."""
    num_rounds: int = 8
    """The compared ways take turns this many times."""
    steps_per_round: int = 12
    """Optimiser steps of a turn."""
    recorded_frames: int = 1_200
    """Frames of the dataset that LeRobot reads."""
    recorded_dim: int = 192
    """Embedding dimension of that dataset's cache; by default that of the demo."""
    image_size: int = 128
    """Height and width of that dataset's images in pixels."""
    loading_rounds: int = 2
    """Our batches and LeRobot's take turns this many times."""
    num_seeds: int = 3
    """Seeds that are trained side by side."""
    num_threads: int | None = None
    """CPU threads of each process; by default as many as torch takes."""
    device: str = "auto"
    """Where to train: auto (CUDA or ROCm where there is one), cpu, cuda, cuda:1, …; each of several
    processes takes a GPU of its own."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Precision of the steps, and of the matrix product that they are compared with."""

    def train_config(self, **flags: object) -> TrainConfig:
        """Return the trainer's flags; `flags` are those that a part sets itself."""
        shared = ("device", "precision", "d_model", "n_layers", "batch_size")
        return drawn_train_config(**{name: getattr(self, name) for name in shared} | flags)


@dataclass(frozen=True)
class Setting:
    """What every part is measured with.

    Attributes:
        config: all flags.
        folder: holds the drawn caches.
        group: the launched processes, mostly one.
    """

    config: BenchTrainingConfig
    folder: Path
    group: ProcessGroup

    def cache(self, num_frames: int, dim: int | None = None) -> Cache:
        """Return a drawn cache, which is written where it is missing."""
        dim = dim or self.config.embedding_dim
        return draw_cache(self.folder / f"{num_frames}_x_{dim}", num_frames, dim)

    def cache_for_steps(self) -> Cache:
        """Return a cache that is as small as steps allow, which do not grow with the frames."""
        return self.cache(min(self.config.num_frames, FRAMES_FOR_STEPS))

    def first_step(self, cache: Cache, place: str) -> tuple[list[float], int]:
        """Make the first step in a fresh process; return its times and its peak memory."""
        arguments = (cache.cache_dir, self.config.device, place, time.time())
        return in_fresh_process(measure_first_step, *arguments)


def measure_first_step(cache_dir: str, device: str, place: str, started: float) -> list[float]:
    """Train in this process until the end of the first optimiser step.

    Returns:
        Seconds from `started` (wall-clock time) to the end of the imports, and from there.
    """
    # torch imports its compiler, 900 modules, when the first optimiser is made; it is import time.
    import torch._dynamo

    from world_modality.training import single

    imported = time.time()
    original = Trainer.step

    class FirstStepMadeError(Exception):
        pass

    def first_step(self: Trainer, frames: torch.Tensor) -> StepRecord:
        original(self, frames).losses.total.item()
        raise FirstStepMadeError(time.time())

    Trainer.step = first_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as log_dir:
        config = drawn_train_config(
            cache_dir=Path(cache_dir), log_dir=Path(log_dir), device=device, embeddings_on=place
        )
        try:
            single.run(config)
        except FirstStepMadeError as end:
            ended: float = end.args[0]
    return [imported - started, ended - imported]


def measure_start(setting: Setting) -> Iterator[Figure]:
    """Time the first step of a fresh process, and compare its memory with that of the arrays."""
    config = setting.config
    cache = setting.cache(config.num_frames)
    (import_s, first_step_s), peak_bytes = setting.first_step(cache, "auto")
    yield Figure.alone("start: imports", "s", import_s)
    yield Figure.alone("start: from there to the first step", "s", first_step_s, wanted="at most 5")
    yield Figure.alone("start: peak memory", "MB", peak_bytes / 1e6)
    over = peak_bytes - sum(path.stat().st_size for path in cache.folder.glob("*.npy"))
    yield Figure.alone("start: of it, not arrays", "MB", over / 1e6, wanted="at most 1,500")


def measure_memory(setting: Setting) -> Iterator[Figure]:
    """Compare the peak memory at a tenth of the frames and at all, embeddings on either place.

    By the first step every row has been read, for checks and statistics.
    """
    config = setting.config
    sizes = (config.num_frames // 10, config.num_frames)
    for place, wanted in (("device", ""), ("disk", "flat")):
        peaks = {
            f"at {n} frames on the {place}": setting.first_step(setting.cache(n), place)[1]
            for n in sizes
        }
        yield from memory(peaks, wanted)


def measure_throughput(setting: Setting) -> Iterator[Figure]:
    """Compare the trainer with bare loops, which do its arithmetic with and without clipping."""
    config = setting.config
    cache = setting.cache(config.num_frames)
    trainer, mapped = (
        open_trainer(cache, config.train_config(embeddings_on=place))
        for place in ("device", "disk")
    )
    steps, mapped_steps = endless_steps(trainer), endless_steps(mapped)
    turns: dict[str, Callable[[], object]] = {
        "training": lambda: next(steps),
        "training, embeddings on the disk": lambda: next(mapped_steps),
        "bare loop": bare_step(trainer, clip=True),
        "bare loop without clipping": bare_step(trainer, clip=False),
    }
    own = {name: repeated(step, config.steps_per_round) for name, step in turns.items()}
    seconds = take_turns(own, config.num_rounds)
    rates = Comparison.rates("samples/s", seconds, config.steps_per_round * config.batch_size)
    yield from rates.figures()
    yield rates.figure("training", "bare loop", "at least 0.97")
    yield rates.figure("training", "bare loop without clipping")
    yield rates.figure("training, embeddings on the disk", "training")


def measure_loading(setting: Setting) -> Iterator[Figure]:
    """Compare batches alone, and training fed by them: gathered by index, and LeRobot's.

    LeRobot reads a dataset with a camera, as recordings have, and one that holds no more than the
    arrays of a cache, which is the least that its DataLoader can be asked for.
    """
    config = setting.config
    cache = setting.cache(config.recorded_frames, config.recorded_dim)
    ours, fed = (open_trainer(cache, config.train_config()) for _ in range(2))
    tensors = ours.tensors
    rates: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], object], num_batches: int) -> None:
        work()  # starts the workers
        seconds = timed(repeated(work, num_batches)).wall
        rates.setdefault(name, []).append(num_batches * config.batch_size / seconds)

    shape = (GATHERED_BATCHES, config.batch_size)
    chosen = cycle(torch.randint(config.recorded_frames, shape, device=tensors.device))
    with tempfile.TemporaryDirectory() as temporary:
        peers = {}
        for name, size in (("with camera", config.image_size), ("arrays only", 0)):
            root = Path(temporary) / name.replace(" ", "_")
            record(cache, root, size)
            peers[name] = LeRobotBatches(root, ours.window_shape, config.batch_size)
            require_same_windows(tensors, peers[name], ours.window_shape)
        for _ in range(config.loading_rounds):
            measure(
                "batches", lambda: tensors.gather(next(chosen), ours.window_shape), GATHERED_BATCHES
            )
            measure("training", lambda: ours.step(next(chosen)), TRAINED_STEPS)
            for name, peer in peers.items():
                for workers in NUM_WORKERS:
                    label = f"LeRobot's, {name}, {workers} workers"
                    batches = peer.shuffled(workers)
                    measure(f"batches: {label}", partial(next, batches), LOADED_BATCHES)
                    feed(fed, batches)
                    measure(f"training: {label}", lambda: fed.step(next(chosen)), LOADED_BATCHES)
    compared = Comparison("samples/s", rates)
    yield from compared.figures()
    for kind, wanted in (("batches", "at least 100"), ("training", "at least 3")):
        for name in rates:
            if name.startswith(f"{kind}: "):
                yield compared.figure(kind, name, wanted)


def measure_flops(setting: Setting) -> Iterator[Figure]:
    """Compare the FLOP/s of a step with those of a large matrix product.

    Turns without attention dropout and without any dropout tell what drawing the numbers costs: all
    are counted with the full step's FLOPs.
    """
    config = setting.config
    device = resolve_device(config.device)
    cache = setting.cache_for_steps()
    wide = torch.bfloat16 if config.precision == "bf16" else torch.float32
    left, right = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, device=device, dtype=wide)
    chosen = torch.arange(config.batch_size, device=device)
    for width in (config.d_model, config.wide_d_model):
        step, product = f"step, d_model {width}", f"matrix product beside d_model {width}"
        train_config = config.train_config(d_model=width)
        trainers = {
            f"{step}{words}": without_dropout(open_trainer(cache, train_config), *kinds)
            for words, kinds in SILENCED.items()
        }
        turns: dict[str, Callable[[], object]] = {
            name: partial(trainer.step, chosen) for name, trainer in trainers.items()
        }
        with FlopCounterMode(display=False) as counter:
            turns[step]()
        flops = dict.fromkeys(turns, float(counter.get_total_flops()))
        yield Figure.alone(f"{step}: size", "GFLOP", flops[step] / 1e9)
        turns[product], flops[product] = lambda: left @ right, 2.0 * PRODUCT_SIZE**3
        seconds = take_turns(turns, config.num_rounds)
        rates = Comparison.rates("GFLOP/s", seconds, {n: f / 1e9 for n, f in flops.items()})
        yield rates.figure(product)
        for name in trainers:
            yield rates.figure(name, product, "at least 0.5 on a CPU")


def measure_seeds(setting: Setting) -> Iterator[Figure]:
    """Compare seeds side by side with the same seeds in a row.

    Both take turns in one process, so that neither start-up nor the loading of data counts.
    """
    config = setting.config
    cache = setting.cache_for_steps()
    alone, together = (
        [
            endless_steps(open_trainer(cache, config.train_config(seed=seed)))
            for seed in range(config.num_seeds)
        ]
        for _ in range(2)
    )
    contexts = [SeedContext(resolve_device(config.device)) for _ in together]

    def in_a_row() -> None:
        for own in alone:
            for _ in range(config.steps_per_round):
                next(own)

    def side_by_side() -> None:
        for _ in range(config.steps_per_round):
            for context, own in zip(contexts, together, strict=True):
                with context.entered():
                    next(own)

    names = [f"a step of {config.num_seeds} seeds {how}" for how in ("side by side", "in a row")]
    turns = dict(zip(names, (side_by_side, in_a_row), strict=True))
    seconds = take_turns(turns, config.num_rounds)
    per_step = Comparison("ms", {n: 1e3 * s / config.steps_per_round for n, s in seconds.items()})
    yield per_step.figure(names[0])
    yield per_step.figure(names[1], names[0], "at least 2 on a GPU")


def measure_checkpoints(setting: Setting) -> Iterator[Figure]:
    """Tell what a checkpoint costs the training that writes it.

    Rounds with and without checkpoints take turns. They are written far more often than once a
    minute, so that their cost stands out of the noise. The floor is the copy in memory, which the
    training has to wait for.
    """
    config = setting.config
    cache = setting.cache_for_steps()
    trainer = open_trainer(cache, config.train_config())
    steps = endless_steps(trainer)
    start = Checkpoint(
        policy_config=trainer.policy.config,
        train_config=trainer.config,
        epoch=1,
        global_step=0,
        model={},
        training_state={},
        manifest=cache.manifest,
        cache_fingerprint=cache.fingerprint(),
        cache_arrays=checkpoint_arrays(cache),
    )

    waited: list[float] = []

    def play(log_dir: Path, *, saving: bool) -> None:
        with CheckpointSaver(log_dir, "C", None) as saver:
            for _ in range(SAVES_PER_ROUND):
                if saving:
                    model, state = trainer.policy.state_dict(), trainer.state()
                    now = dataclasses.replace(start, model=model, training_state=state)
                    waited.append(timed(partial(saver.save, log_dir / name, now)).wall)
                for _ in range(STEPS_PER_SAVE):
                    next(steps)

    name = "model_C_epoch0.pt"
    with tempfile.TemporaryDirectory() as temporary:
        turns: dict[str, Callable[[], object]] = {
            kind: partial(play, Path(temporary), saving=kind == "saving")
            for kind in ("alone", "saving")
        }
        seconds = take_turns(turns, config.num_rounds)
        num_bytes = Path(temporary, name).stat().st_size
    lost = (seconds["saving"] - seconds["alone"]) / SAVES_PER_ROUND
    waits = waited[SAVES_PER_ROUND:]  # without those of the round that warms up
    yield Figure.alone("a checkpoint", "MB", num_bytes / 1e6)
    yield Figure.alone("a checkpoint: the training loses", "s", *lost)
    yield Figure.alone("a checkpoint: of it, waiting for the copy", "s", *waits)
    share = "share of the training's time, at one a minute"
    wanted = "below 2 together with the sync"
    yield Figure.alone(share, "%", *(100 * lost / MINUTE_S), wanted=wanted)


def measure_processes(setting: Setting) -> Iterator[Figure]:
    """Compare all launched processes with the first of them, on the same global batch.

    While the first process trains alone, the others sleep in a receive, so that it has the machine
    to itself; every process keeps its number of threads.
    """
    config = setting.config
    group = setting.group
    if group.is_alone:
        raise InvalidInputError(
            "there is one process; start several: accelerate launch --multi_gpu "
            "--num_processes 2 -m benchmarks.speed.bench_training --parts processes"
        )
    cache = group.from_first(setting.cache_for_steps)
    alone, shared = (
        open_trainer(cache, config.train_config(), of) for of in (ProcessGroup(group.device), group)
    )
    parameters = [torch.zeros_like(p) for p in shared.policy.parameters()]
    steps = endless_steps(alone), endless_steps(shared)

    def step_alone() -> None:
        if group.is_first:
            next(steps[0])

    def step_together() -> None:
        next(steps[1])
        group.any(False)

    def send_messages() -> None:
        group.sum(torch.zeros(2, device=group.device))
        group.sum_in_place(parameters)
        group.any(False)

    def when_all_are_there(work: Callable[[], None]) -> float:
        group.any(False)
        return timed(repeated(work, config.steps_per_round)).wall

    together = f"{group.num_processes} processes together"
    works = {"one of the processes": step_alone, together: step_together}
    works["messages"] = send_messages
    turns = {name: partial(when_all_are_there, work) for name, work in works.items()}
    seconds = take_turns(turns, config.num_rounds)
    messages = 1e3 * seconds.pop("messages") / config.steps_per_round
    rates = Comparison.rates("samples/s", seconds, config.steps_per_round * config.batch_size)
    yield rates.figure("one of the processes")
    yield rates.figure(together, "one of the processes", f"{group.num_processes} at most")
    sent = f"messages of a step, {sum(p.nbytes for p in parameters) / 1e6:.1f} MB"
    step = 1e3 * seconds[together] / config.steps_per_round
    yield Comparison("ms", {sent: messages, "a step together": step}).figure(
        sent, "a step together"
    )


MEASURES: dict[Part, Callable[[Setting], Iterator[Figure]]] = {
    "start": measure_start,
    "memory": measure_memory,
    "throughput": measure_throughput,
    "loading": measure_loading,
    "flops": measure_flops,
    "seeds": measure_seeds,
    "checkpoints": measure_checkpoints,
    "processes": measure_processes,
}


def run(config: BenchTrainingConfig) -> list[Figure]:
    """Measure the parts, print the table, and write JSON if asked."""
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    with ProcessGroup.joined(config.device) as group, tempfile.TemporaryDirectory() as temporary:
        setting = Setting(config, config.work_dir or Path(temporary), group)
        figures = (figure for part in config.parts for figure in MEASURES[part](setting))
        return report(config if group.is_first else replace(config, json_path=None), figures)


def main() -> None:
    """Run the benchmark from the command line."""
    run_cli(BenchTrainingConfig, run)


if __name__ == "__main__":
    main()
