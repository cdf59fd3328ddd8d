"""An experiment that names contrasts: its design, what may change of it, its rounds of seeds."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_modality.matrix.experiment_file import CellGroup, Matrix
from world_modality.matrix.jobs import (
    Job,
    cell,
    cell_checkpoint,
    cell_name,
    compared_cells,
    is_filmed_seed,
    other_cells,
    rollout_corruptions,
    rollout_step,
    rounds_of_seeds,
)
from world_modality.matrix.runner import is_done
from world_modality.statistics.design import Design, PlannedContrast, read_design, usual_role
from world_modality.system.errors import InvalidInputError

_NO_OUTCOME = ("env_num",)
"""Flags of rollouts that change no episode."""
MAY_CHANGE = (
    "films, corruptions, explanations, env_num, --max_parallel and cells that no contrast names "
    "may change"
)


def design_of(matrix: Matrix) -> Design:
    """Return what the file plans.

    Raises:
        ValueError: the matrix names no contrasts.
    """
    if matrix.plan is None or matrix.contrasts is None:
        raise ValueError("the matrix names no contrasts")
    planned = []
    for one in matrix.contrasts:
        cells = [
            f"cells/{cell_name(matrix, group, arm, '{seed}')}"
            for group, arm in matrix.cells_of(one)
        ]
        first_arm = matrix.cells_of(one)[0][1]
        planned.append(
            PlannedContrast(
                *(*one.labels, matrix.measure_of(one), matrix.margin_of(one), cells[0], cells[1]),
                role=one.role or usual_role(first_arm),
            )
        )
    return Design(matrix.plan, tuple(planned), _trained_with(matrix), _variants(matrix))


def _variants(matrix: Matrix) -> dict[str, str]:
    """Return what each label that contrasts name stands for, where it is not an arm's name."""
    return {
        label: ", ".join([arm, *(f"{flag} {value}" for flag, value in group.train.items())])
        for one in matrix.contrasts or []
        for label, (group, arm) in zip(one.labels, matrix.cells_of(one), strict=True)
        if label != arm
    }


def _trained_with(matrix: Matrix) -> dict[str, Any]:
    """Return all that the outcome of a compared cell depends on, by its name in the file."""
    compared = compared_cells(matrix, matrix.contrasts or [])
    caches = {matrix.cache_dir(group.cache).name for group, _ in compared}
    rollouts = matrix.rollouts
    return {
        "dataset_name": matrix.dataset_name,
        "prepare": [{"stage": one.stage, "flags": one.flags} for one in matrix.prepare],
        **{f"caches.{name}": matrix.caches[name] for name in sorted(caches)},
        "text": matrix.text,
        "train": matrix.train,
        **{
            f"the cell of {_label(group, arm)}": _cell_content(matrix, group)
            for group, arm in compared
        },
        "rollouts.stage": None if rollouts is None else rollouts.stage,
        "rollouts.flags": None
        if rollouts is None
        else {name: value for name, value in rollouts.flags.items() if name not in _NO_OUTCOME},
    }


def _label(group: CellGroup, arm: str) -> str:
    return next(label for label, own in group.labels.items() if own == arm)


def _cell_content(matrix: Matrix, group: CellGroup) -> dict[str, Any]:
    return {"cache": matrix.cache_dir(group.cache).name, "train": group.train}


def require_same_design(matrix: Matrix) -> None:
    """Refuse an experiment whose first look was taken with another design.

    Raises:
        InvalidInputError: it was; the message says what has changed, and what may.
    """
    path = matrix.out_dir / "design.json"
    if not path.exists():
        return
    if matrix.contrasts is None:
        raise InvalidInputError(
            f"the experiment names no contrasts any more, but was looked at for those that {path} "
            "keeps: put them back, or give the experiment another out_dir"
        )
    changes = read_design(path).changes(design_of(matrix))
    if changes:
        raise InvalidInputError(
            f"the experiment has changed since its first look, which {path} keeps: "
            f"{'; '.join(changes)}. What was seen must not decide what is asked: put it back, or "
            f"give the experiment another out_dir. ({MAY_CHANGE}.)"
        )


def keep_design(matrix: Matrix) -> None:
    """Write the design beside the cells, from the first look on."""
    path = matrix.out_dir / "design.json"
    if not path.exists():
        design_of(matrix).write(path)


@dataclass(frozen=True)
class CellsOfSeed:
    """Cells of one seed: trained one by one, rolled out together.

    Attributes:
        matrix: the experiment.
        seed: of the trainings.
        cells: the arms of the contrasts that are still open, or of no contrast.
        name: what the rollouts of these arms are called.
    """

    matrix: Matrix
    seed: int
    cells: tuple[tuple[CellGroup, str], ...]
    name: str

    @property
    def trainings(self) -> list[Job]:
        """One a cell, with its offline reports."""
        return [
            cell(self.matrix, group, arm, self.seed, is_rolled_out=False)
            for group, arm in self.cells
        ]

    @property
    def whole_cells(self) -> list[Job]:
        """The cells with rollouts of their own, as a job array runs them."""
        return [cell(self.matrix, group, arm, self.seed) for group, arm in self.cells]

    def rollouts(self) -> Job | None:
        """Return the rollouts of all cells that are trained, and not rolled out on their own.

        None where there are no such cells.

        A command takes the checkpoints of all arms, so that the encoder, the text model and the
        simulators are there once, and the recording is replayed once. A seed has a job of its own:
        the policies of a process compute on one core, and as many jobs run at once as there may be.
        """
        left = [
            one
            for one, training, whole in zip(
                self.cells, self.trainings, self.whole_cells, strict=True
            )
            if is_done(training) and not is_done(whole)
        ]
        checkpoints: dict[str, list[Path]] = {}
        for group, arm in left:
            path = cell_checkpoint(self.matrix, group, arm, self.seed)
            for corruption in rollout_corruptions(self.matrix, group, arm):
                checkpoints.setdefault(corruption, []).append(path)
        if not checkpoints:
            return None
        folder = self.matrix.out_dir / "cells" / f"{self.name}_seed{self.seed}"
        is_filmed = is_filmed_seed(self.matrix, self.seed)
        steps = [
            rollout_step(self.matrix, own, folder, corruption, is_filmed)
            for corruption, own in checkpoints.items()
        ]
        name = f"rollouts of {self.name.replace('_', ' ')}, seed {self.seed}"
        return Job(name, folder, tuple(steps))


def seeds_of_round(matrix: Matrix, number: int, names: Collection[str]) -> list[CellsOfSeed]:
    """Return the seeds of a round.

    Args:
        matrix: the experiment.
        number: of the round, counted from 0.
        names: of the contrasts that are still open.
    """
    planned = zip(design_of(matrix).contrasts, matrix.contrasts or [], strict=True)
    still_open = [one for plan, one in planned if plan.name in names]
    cells = tuple(compared_cells(matrix, still_open))
    return [
        CellsOfSeed(matrix, seed, cells, "compared_arms")
        for seed in rounds_of_seeds(matrix)[number]
    ]


def seeds_of_others(matrix: Matrix) -> list[CellsOfSeed]:
    """Return the cells that no contrast names, by seed."""
    by_seed: dict[int, list[tuple[CellGroup, str]]] = {}
    for group, arm in other_cells(matrix):
        for seed in group.seeds or matrix.other_seeds:
            by_seed.setdefault(seed, []).append((group, arm))
    return [
        CellsOfSeed(matrix, seed, tuple(cells), "other_arms") for seed, cells in by_seed.items()
    ]
