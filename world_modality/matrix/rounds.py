"""An experiment that names contrasts: its design, what may change of it, its rounds of seeds."""

from collections.abc import Collection
from typing import Any

from world_modality.matrix.experiment_file import CellGroup, Matrix
from world_modality.matrix.jobs import Job, cell, cell_name, compared_cells, rounds_of_seeds
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


def round_jobs(matrix: Matrix, number: int, names: Collection[str]) -> list[Job]:
    """Return the cells of a round, seed by seed.

    Args:
        matrix: the experiment.
        number: of the round, counted from 0.
        names: of the contrasts that are still open.
    """
    planned = zip(design_of(matrix).contrasts, matrix.contrasts or [], strict=True)
    still_open = [one for plan, one in planned if plan.name in names]
    return [
        cell(matrix, group, arm, seed)
        for seed in rounds_of_seeds(matrix)[number]
        for group, arm in compared_cells(matrix, still_open)
    ]
