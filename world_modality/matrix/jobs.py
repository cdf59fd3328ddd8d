"""The commands of an experiment: what is made once, and what each cell of the matrix runs."""

import itertools
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_modality.arms import ARMS
from world_modality.matrix.experiment_file import CellGroup, Explanations, Matrix, NamedContrast
from world_modality.policy.config import TrainConfig
from world_modality.system.cli import flag_arguments
from world_modality.system.errors import InvalidInputError

EXPLANATIONS = "explanations/"
"""How the names of jobs begin whose model explains itself."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        arguments: of the Python interpreter.
        produces: a file that is there when the command is done.
    """

    arguments: tuple[str, ...]
    produces: Path

    @classmethod
    def of(cls, program: str, flags: Mapping[str, Any], produces: Path) -> "Step":
        """Return the command of a training script or of a stage, which is named as a module."""
        start = (program,) if program.endswith(".py") else ("-m", program)
        return cls((*start, *flag_arguments(flags)), produces)

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
    """Return what has to be done before any cell: the dataset, each cache, the labels."""
    jobs = {
        "dataset": [
            Step.of(
                one.stage,
                {**_dataset(matrix), **one.flags},
                (matrix.dataset_root or matrix.out_dir) / "meta" / "info.json",
            )
            for one in matrix.prepare
        ],
        **{f"cache {name}": list(_cache_steps(matrix, name)) for name in matrix.caches},
        "labels": [] if matrix.explanations is None else [_labels(matrix, matrix.explanations)],
    }
    return [
        Job(name, matrix.out_dir / "jobs" / name.replace(" ", "_"), tuple(steps))
        for name, steps in jobs.items()
        if steps
    ]


def cell_jobs(matrix: Matrix) -> list[Job]:
    """Return one job a cell: training, offline reports, rollouts; then those that explain.

    Where the matrix names contrasts, these are followed by the seeds of their arms, round by round,
    as if no contrast were ever closed.

    Raises:
        InvalidInputError: two cells are the same.
    """
    jobs = [
        cell(matrix, group, name, seed)
        for group, name in other_cells(matrix)
        for seed in group.seeds or matrix.other_seeds
    ]
    num_others = len(jobs)
    jobs += [
        cell(matrix, group, name, seed)
        for seeds in rounds_of_seeds(matrix)
        for seed in seeds
        for group, name in compared_cells(matrix, matrix.contrasts or [])
    ]
    names = [job.name for job in jobs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInputError(f"the matrix names these cells twice: {', '.join(twice)}")
    return [*jobs[:num_others], *explanation_jobs(matrix), *jobs[num_others:]]


def longest_first(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs in the order to start them: those that explain, which train two models.

    Started last, such a job would run alone for minutes while the other cores idle.
    """
    return sorted(jobs, key=lambda job: not job.name.startswith(EXPLANATIONS))


def explanation_jobs(matrix: Matrix) -> list[Job]:
    """Return one job a seed of the model that explains itself, and its control."""
    if matrix.explanations is None:
        return []
    jobs = []
    for seed in matrix.explanations.seeds or matrix.other_seeds:
        folder = matrix.out_dir / "explanations" / f"seed{seed}"
        steps = _explanation_steps(matrix, matrix.explanations, folder, seed)
        jobs.append(Job(f"{EXPLANATIONS}seed{seed}", folder, tuple(steps)))
    return jobs


def other_cells(matrix: Matrix) -> list[tuple[CellGroup, str]]:
    """Return the arms that no contrast of the matrix names, each with its group."""
    compared = compared_cells(matrix, matrix.contrasts or [])
    every = [(group, name) for group in matrix.cells for name in group.arms]
    return [one for one in every if not _is_among(one, compared)]


def compared_cells(
    matrix: Matrix, contrasts: Iterable[NamedContrast]
) -> list[tuple[CellGroup, str]]:
    """Return the arms of these contrasts, each once, with its group."""
    found: list[tuple[CellGroup, str]] = []
    for contrast in contrasts:
        for group, name in matrix.cells_of(contrast):
            if not _is_among((group, name), found):
                found.append((group, name))
    return found


def _is_among(one: tuple[CellGroup, str], cells: Iterable[tuple[CellGroup, str]]) -> bool:
    # Two groups may have the same content: they are compared by which one they are.
    return any(group is one[0] and name == one[1] for group, name in cells)


def rounds_of_seeds(matrix: Matrix) -> list[range]:
    """Return the seeds of each round; none where the matrix names no contrast."""
    ends = (0,) if matrix.plan is None else (0, *matrix.plan.rounds)
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def report_step(matrix: Matrix, *, is_looked_at: bool = True) -> Step:
    """Return the command that reports on all cells.

    Args:
        matrix: the experiment.
        is_looked_at: whether a look has been taken, if the matrix names contrasts.
    """
    out_dir = matrix.out_dir / "report"
    names = ["cells", "analyses", "tokens", *(["explanations"] if matrix.explanations else [])]
    folders = [str(matrix.out_dir / name) for name in names]
    is_designed = matrix.contrasts is not None and is_looked_at
    design = () if not is_designed else ("--design", str(matrix.out_dir / "design.json"))
    arguments = ("-m", "world_modality.report", *folders, "--out_dir", str(out_dir), *design)
    return Step(arguments, out_dir / "report.html")


def _dataset(matrix: Matrix) -> dict[str, Any]:
    return {"dataset_name": matrix.dataset_name, "dataset_root": matrix.dataset_root}


def _cache(matrix: Matrix, name: str | None) -> dict[str, Any]:
    return {"dataset_name": matrix.dataset_name, "cache_dir": matrix.cache_dir(name)}


def _cache_steps(matrix: Matrix, name: str) -> Iterator[Step]:
    cache = _cache(matrix, name)
    dataset = {**cache, "dataset_root": matrix.dataset_root}
    files = matrix.cache_dir(name) / matrix.dataset_name
    analysis, grid = (matrix.out_dir / kind / name for kind in ("analyses", "tokens"))
    yield Step.of(
        "world_modality.precompute_world_tokens",
        {**dataset, **matrix.caches[name]},
        files / "train_world_tokens.int.npy",
    )
    yield Step.of(
        "world_modality.analyze_world_tokens",
        {**cache, "out_dir": analysis},
        analysis / "analysis.json",
    )
    yield Step.of(
        "world_modality.inspect_token_images",
        {**dataset, "out_dir": grid},
        grid / "contact_sheet.jpg",
    )
    if matrix.text is not None:
        yield Step.of(
            "world_modality.precompute_instruction_embeddings",
            {**dataset, **matrix.text},
            files / "train_instruction_embeddings.fp16.npy",
        )


def _checkpoint(log_dir: Path, model_type: str, flags: Mapping[str, Any]) -> Path:
    num_epochs = flags.get("num_epochs", TrainConfig.num_epochs)
    return log_dir / f"model_{model_type}_epoch{num_epochs - 1}.pt"


def cell_name(matrix: Matrix, group: CellGroup, name: str, seed: int | str) -> str:
    """Return the name of an arm's cell, which is its folder's below `cells`."""
    texts = {
        flag: "_".join(map(str, value)) if isinstance(value, list) else value
        for flag, value in group.train.items()
    }
    varied = "".join(f"-{flag}_{value}" for flag, value in sorted(texts.items()))
    return f"{matrix.cache_dir(group.cache).name}{varied}/{name.lower()}_seed{seed}"


def cell(
    matrix: Matrix, group: CellGroup, name: str, seed: int, *, is_rolled_out: bool = True
) -> Job:
    """Return the training of an arm with a seed, and what follows it.

    Args:
        matrix: the experiment.
        group: the arm's cells.
        name: of the arm.
        seed: of the training.
        is_rolled_out: whether that is part of it, and not of a job for several arms.
    """
    arm, where = ARMS[name], _cache(matrix, group.cache)
    job_name = cell_name(matrix, group, name, seed)
    folder = matrix.out_dir / "cells" / job_name
    flags = {**matrix.train, **group.train}
    checkpoint = cell_checkpoint(matrix, group, name, seed)
    train = {
        **({"model_type": arm.model_type} if len(arm.choices) > 1 else {}),
        **({} if arm.control == "none" else {"token_control": arm.control}),
        **where,
        "log_dir": checkpoint.parent,
        "seed": seed,
        **flags,
        "resume": True,
    }
    steps = [Step.of(arm.script, train, checkpoint)]
    for module, report in (
        ("world_modality.eval_offline", "eval_offline"),
        ("world_modality.intervention_corrupt_world", "corrupt_world"),
    ):
        written = checkpoint.parent / f"{report}_{checkpoint.stem}" / f"{report}.json"
        steps.append(Step.of(module, {"checkpoint": checkpoint, **where}, written))
    if is_rolled_out:
        is_filmed = is_filmed_seed(matrix, seed)
        for corruption in rollout_corruptions(matrix, group, name):
            steps.append(rollout_step(matrix, [checkpoint], folder, corruption, is_filmed))
    return Job(job_name, folder, tuple(steps))


def cell_checkpoint(matrix: Matrix, group: CellGroup, name: str, seed: int) -> Path:
    """Return the last checkpoint of an arm's training with a seed."""
    folder = matrix.out_dir / "cells" / cell_name(matrix, group, name, seed)
    flags = {**matrix.train, **group.train}
    return _checkpoint(folder / "train", ARMS[name].model_type, flags)


def is_filmed_seed(matrix: Matrix, seed: int) -> bool:
    """Say whether the rollouts of this seed are filmed, where any are."""
    return seed == (matrix.seeds or [0])[0]


def rollout_corruptions(matrix: Matrix, group: CellGroup, name: str) -> list[str]:
    """Return what is done to the token of an arm in its rollouts, `none` first.

    Nothing where the arm is not rolled out.
    """
    arm = ARMS[name]
    if matrix.rollouts is None or not arm.closed_loop:
        return []
    if not arm.reads_world or arm.control != "none":
        return ["none"]
    own = group.corruptions
    return ["none", *(matrix.rollouts.corruptions if own is None else own)]


def rollout_step(
    matrix: Matrix, checkpoints: list[Path], folder: Path, corruption: str, is_filmed: bool
) -> Step:
    """Return the command that rolls checkpoints out with one corruption of their token.

    Args:
        matrix: the experiment, which says how they are rolled out.
        checkpoints: one or more.
        folder: receives a folder of this corruption.
        corruption: in closed loop, or `none`.
        is_filmed: whether films are kept, where the matrix asks for any.
    """
    rollouts = matrix.rollouts
    assert rollouts is not None
    films = {"save_videos": True, "videos_per_task": rollouts.films} if rollouts.films else {}
    name = "rollouts" if corruption == "none" else f"rollouts_{corruption.replace(':', '_')}"
    flags = {
        "checkpoint": checkpoints,
        "out_dir": folder / name,
        "dataset_root": matrix.dataset_root,
        **({} if corruption == "none" else {"corrupt_world": corruption}),
        **(films if is_filmed else {}),
        **rollouts.flags,
        "resume": True,
    }
    return Step.of(rollouts.stage, flags, folder / name / "summary.json")


def _labels(matrix: Matrix, explanations: Explanations) -> Step:
    path = matrix.out_dir / "explanations" / "labels.jsonl"
    flags = {**_dataset(matrix), **explanations.labels, "output_jsonl": path, "resume": True}
    return Step.of("coc_vla.coc_generation", flags, path)


def _explanation_steps(
    matrix: Matrix, explanations: Explanations, folder: Path, seed: int
) -> Iterator[Step]:
    """Train the model and its control, which reads the instruction only, and compare them."""
    where = _cache(matrix, explanations.cache)
    labels = {"labels_jsonl": matrix.out_dir / "explanations" / "labels.jsonl"}
    checkpoints = []
    for name, context in (("two_heads", "trunk"), ("instruction_only", "lang")):
        flags = explanations.train
        checkpoint = _checkpoint(folder / name, flags.get("model_type", "C"), flags)
        train = {
            **{**where, "log_dir": checkpoint.parent, **labels, "text_context": context},
            **{"seed": seed, **flags, "resume": True},
        }
        yield Step.of("coc_vla.train", train, checkpoint)
        checkpoints.append(checkpoint)
    evaluate = {
        **{"checkpoint": checkpoints[0], "control": checkpoints[1], **where, **labels},
        **{"dataset_root": matrix.dataset_root, "out_dir": folder / "report", "seed": seed},
        **explanations.evaluate,
    }
    yield Step.of("coc_vla.eval_coc", evaluate, folder / "report" / "eval_coc.json")
