"""What a training step reaches: against bare loops on one resident batch, and against a product."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from benchmarks.speed.harness.synthetic_training import trainer_on
from benchmarks.speed.harness.turns import median_ratio, take_turns

if TYPE_CHECKING:
    from world_modality.cache.frame_tensors import FrameTensors
    from world_modality.policy.config import TrainConfig
    from world_modality.system.recorded_calls import Tensors
    from world_modality.training.trainer import Trainer

NUM_WORLD_TOKENS = 1024
PRODUCT_SIZE = 2048


def measure_throughput(
    trainer: "Trainer", mapped: "Trainer", num_rounds: int, steps_per_round: int
) -> dict[str, dict[str, float]]:
    """Return the samples a second of the trainer and of bare loops that take turns with it.

    One bare loop does the trainer's arithmetic, gradient clipping included; one does not clip.
    `mapped` is the same trainer with its embeddings on the disk. Ratios are the trainer's samples
    to the others'.
    """
    epoch, mapped_epoch = trainer.epoch(0), mapped.epoch(0)
    turns: dict[str, Callable[[], object]] = {
        "trainer": lambda: next(epoch),
        "trainer, embeddings on the disk": lambda: next(mapped_epoch),
        "bare loop": _bare_step(trainer, clip=True),
        "bare loop without clipping": _bare_step(trainer, clip=False),
    }
    repeated = {name: _repeat(step, steps_per_round) for name, step in turns.items()}
    seconds = take_turns(repeated, num_rounds)
    samples = steps_per_round * trainer.config.batch_size
    return {
        name: {"samples_per_s": samples / float(np.median(times))}
        | median_ratio(times, seconds["trainer"])
        for name, times in seconds.items()
    }


def _repeat(step: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            step()

    return repeated


def _bare_step(trainer: "Trainer", *, clip: bool) -> Callable[[], object]:
    """Return a step on one batch that is there already, by a model of the trainer's shape."""
    import torch

    from world_modality.cache.frame_tensors import Batch
    from world_modality.policy.network import WorldPolicy
    from world_modality.system.recorded_calls import RecordedCalls
    from world_modality.training.trainer import adamw, autocast

    config, device = trainer.config, trainer.tensors.device
    model = WorldPolicy(trainer.policy.config).to(device).train()
    optimizer = adamw([{"params": list(model.parameters())}], config)
    batch = trainer.tensors.gather(torch.arange(config.batch_size), trainer.window_shape)

    def step(tensors: "Tensors") -> torch.Tensor:
        own = Batch(**tensors)
        with autocast(config.precision, device):
            output = model(own.embeddings, own.states, own.world_tokens)
        optimizer.zero_grad(set_to_none=True)
        total = model.losses(output, own, config.world_loss_weight).total
        total.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        return total.detach()

    # A loop that launched kernel by kernel would be no floor on a GPU.
    return partial(RecordedCalls(step, device) if device.type == "cuda" else step, batch.tensors())


def measure_flops(
    tensors: "FrameTensors", config: "TrainConfig", num_rounds: int
) -> dict[str, Any]:
    """Return the FLOP/s of a training step against a large matrix product of the same dtype.

    Turns without attention dropout and without any dropout tell what drawing the numbers costs:
    all are counted with the full step's FLOPs.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    frames = np.arange(tensors.episodes.num_frames)
    plain = trainer_on(tensors, frames, NUM_WORLD_TOKENS, config)
    steps = {
        "step": plain,
        "no attention dropout": _without_dropout(tensors, config, attention_only=True),
        "no dropout": _without_dropout(tensors, config, attention_only=False),
    }
    chosen = torch.arange(config.batch_size, device=tensors.device)
    with FlopCounterMode(display=False) as counter:
        plain.step(chosen)
    step_flops = counter.get_total_flops()
    wide = torch.bfloat16 if config.precision == "bf16" else torch.float32
    left, right = torch.randn(2, PRODUCT_SIZE, PRODUCT_SIZE, device=tensors.device, dtype=wide)
    turns: dict[str, Callable[[], object]] = {
        name: partial(trainer.step, chosen) for name, trainer in steps.items()
    }
    turns["product"] = lambda: left @ right
    seconds = take_turns(turns, num_rounds)
    product_rate = 2 * PRODUCT_SIZE**3 / seconds["product"]
    return {
        "gflop": step_flops / 1e9,
        "product_gflop_per_s": float(np.median(product_rate)) / 1e9,
        "steps": {
            name: {
                "samples_per_s": config.batch_size / float(np.median(seconds[name])),
                "gflop_per_s": step_flops / float(np.median(seconds[name])) / 1e9,
            }
            | median_ratio(step_flops / seconds[name], product_rate)
            for name in steps
        },
    }


def _without_dropout(
    tensors: "FrameTensors", config: "TrainConfig", *, attention_only: bool
) -> "Trainer":
    import torch

    frames = np.arange(tensors.episodes.num_frames)
    trainer = trainer_on(tensors, frames, NUM_WORLD_TOKENS, config)
    for module in trainer.policy.modules():
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
        elif isinstance(module, torch.nn.Dropout) and not attention_only:
            module.p = 0.0
    return trainer


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
