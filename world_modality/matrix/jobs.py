"""The commands of an experiment: what is made once, and what each cell of the matrix runs."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from world_modality.arms import ARMS
from world_modality.matrix.experiment_file import CellGroup, Flags, Matrix, Rollouts
from world_modality.policy.config import TrainConfig
from world_modality.system.cli import flag_arguments
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        arguments: of the Python interpreter.
        produces: a file that is there when the command is done.
    """

    arguments: tuple[str, ...]
    produces: Path

    @property
    def shell(self) -> str:
        """The command as a user would type it."""
        return "python " + shlex.join(self.arguments)


@dataclass(frozen=True)
class Job:
    """Commands that run one after another.

    Attributes:
        name: unique within the experiment.
        folder: receives the log and what has been done.
        steps: in order.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]


def preparation_jobs(matrix: Matrix) -> list[Job]:
    """Return what has to be done before any cell: the dataset, then each cache."""
    steps = [
        _stage(
            one.stage,
            {"dataset_name": matrix.dataset_name, "dataset_root": matrix.dataset_root, **one.flags},
            Path(matrix.dataset_root or matrix.out_dir) / "meta" / "info.json",
        )
        for one in matrix.prepare
    ]
    jobs = [Job("dataset", matrix.out_dir / "jobs" / "dataset", tuple(steps))] if steps else []
    for name, flags in matrix.caches.items():
        folder = matrix.out_dir / "jobs" / f"cache_{name}"
        jobs.append(Job(f"cache {name}", folder, tuple(_cache_steps(matrix, name, flags))))
    return jobs


def _cache_steps(matrix: Matrix, name: str, flags: Flags) -> Iterator[Step]:
    cache = {"dataset_name": matrix.dataset_name, "cache_dir": _cache_dir(matrix, name)}
    dataset = {**cache, "dataset_root": matrix.dataset_root}
    files = _cache_dir(matrix, name) / matrix.dataset_name
    tokens = files / "train_world_tokens.int.npy"
    yield _stage("world_modality.precompute_world_tokens", {**dataset, **flags}, tokens)
    analysis = matrix.out_dir / "analyses" / name
    yield _stage(
        "world_modality.analyze_world_tokens",
        {**cache, "out_dir": analysis},
        analysis / "analysis.json",
    )
    grid = matrix.out_dir / "tokens" / name
    yield _stage(
        "world_modality.inspect_token_images",
        {**dataset, "out_dir": grid},
        grid / "contact_sheet.jpg",
    )
    if matrix.text is not None:
        yield _stage(
            "world_modality.precompute_instruction_embeddings",
            {**dataset, **matrix.text},
            files / "train_instruction_embeddings.fp16.npy",
        )


def cell_jobs(matrix: Matrix) -> list[Job]:
    """Return one job a cell: training, offline reports, rollouts.

    Raises:
        InvalidInputError: two cells are the same.
    """
    jobs = [
        _cell(matrix, group, name, seed)
        for group in matrix.cells
        for name in group.arms
        for seed in group.seeds or matrix.seeds
    ]
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError(f"the matrix names these cells twice: {', '.join(twice)}")
    return jobs


def _cell(matrix: Matrix, group: CellGroup, name: str, seed: int) -> Job:
    arm, cache = ARMS[name], group.cache or next(iter(matrix.caches))
    varied = "".join(f"-{flag}_{value}" for flag, value in sorted(group.train.items()))
    job_name = f"{cache}{varied}/{name.lower()}_seed{seed}"
    folder = matrix.out_dir / "cells" / job_name
    flags = {**matrix.train, **group.train}
    num_epochs = flags.get("num_epochs", TrainConfig.num_epochs)
    stem = f"model_{arm.model_type}_epoch{num_epochs - 1}"
    checkpoint = folder / "train" / f"{stem}.pt"
    where = {"dataset_name": matrix.dataset_name, "cache_dir": _cache_dir(matrix, cache)}
    train = {
        **({"model_type": arm.model_type} if len(arm.choices) > 1 else {}),
        **({} if arm.control == "none" else {"token_control": arm.control}),
        **where,
        "log_dir": checkpoint.parent,
        "seed": seed,
        **flags,
        "resume": True,
    }
    steps = [Step((arm.script, *flag_arguments(train)), checkpoint)]
    for module, report in (
        ("world_modality.eval_offline", "eval_offline"),
        ("world_modality.intervention_corrupt_world", "corrupt_world"),
    ):
        written = checkpoint.parent / f"{report}_{stem}" / f"{report}.json"
        steps.append(_stage(module, {"checkpoint": checkpoint, **where}, written))
    if matrix.rollouts is not None and arm.closed_loop:
        corruptions: tuple[str, ...] = ()
        if arm.reads_world and arm.control == "none":
            own = group.corruptions
            corruptions = matrix.rollouts.corruptions if own is None else own
        is_first = seed == matrix.seeds[0]
        steps += _rollouts(matrix, matrix.rollouts, checkpoint, corruptions, is_first)
    return Job(job_name, folder, tuple(steps))


def _rollouts(
    matrix: Matrix,
    rollouts: Rollouts,
    checkpoint: Path,
    corruptions: tuple[str, ...],
    is_first: bool,
) -> Iterator[Step]:
    films = {"save_videos": True, "videos_per_task": rollouts.films} if rollouts.films else {}
    for corruption in ("none", *corruptions):
        name = "rollouts" if corruption == "none" else f"rollouts_{corruption.replace(':', '_')}"
        folder = checkpoint.parents[1] / name
        flags = {
            "checkpoint": checkpoint,
            "out_dir": folder,
            "dataset_root": matrix.dataset_root,
            **({} if corruption == "none" else {"corrupt_world": corruption}),
            **(films if is_first else {}),
            **rollouts.flags,
            "resume": True,
        }
        yield _stage(rollouts.stage, flags, folder / "summary.json")


def _cache_dir(matrix: Matrix, name: str) -> Path:
    return matrix.out_dir / "caches" / name


def _stage(module: str, flags: Flags, produces: Path) -> Step:
    return Step(("-m", module, *flag_arguments(flags)), produces)
