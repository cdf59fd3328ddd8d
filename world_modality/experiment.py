"""A matrix of arms, seeds and settings, run through the stages' own commands, and its report.

    <out_dir>/caches/NAME/                         a cache a set of tokenizer flags
    <out_dir>/cells/CACHE[-FLAG]/ARM_seedN/        log.txt, done.json, train/, rollouts*/
    <out_dir>/cells/{compared,other}_arms_seedN/   rollouts*/ of all arms, with contrasts
    <out_dir>/explanations/seedN/                  two_heads/, instruction_only/, report/
    <out_dir>/design.json                          what the contrasts ask, from the first look on
    <out_dir>/report/                              the report over all of it

A matrix that names contrasts trains their arms a round of seeds at a time, looks, and stops as soon
as each is answered. Give the same command again after an interruption, a failure or a change of the
matrix: what is done is not run again. A look is a function of the files of its seeds, so that
nothing else has to be remembered.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from world_modality.matrix.experiment_file import Matrix, read_matrix
from world_modality.matrix.jobs import (
    Job,
    cell_jobs,
    explanation_jobs,
    longest_first,
    preparation_jobs,
    report_step,
)
from world_modality.matrix.rounds import (
    CellsOfSeed,
    design_of,
    keep_design,
    require_same_design,
    seeds_of_others,
    seeds_of_round,
)
from world_modality.matrix.runner import Failure, Runner, is_done
from world_modality.statistics.design import Design
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, UserError, require_at_least
from world_modality.system.stop_signals import termination_as_interrupt
from world_modality.verdict.evidence import collect_evidence
from world_modality.verdict.planned import planned_results
from world_modality.verdict.wording import look_text


@dataclass(frozen=True)
class ExperimentConfig:
    """Run a matrix of arms, seeds and settings, and report on it."""

    matrix: Annotated[Path, tyro.conf.Positional]
    """YAML file of the experiment; world_modality/matrix/experiment_file.py describes it."""
    max_parallel: int = 1
    """Cells that run at once on this machine."""
    dry_run: bool = False
    """Print the commands, cell by cell, and run nothing."""
    prepare_only: bool = False
    """Make the dataset and the caches, and stop."""
    cell: int | None = None
    """Run this cell alone, counted from 0 in the order that --dry_run prints; for job arrays."""

    def __post_init__(self) -> None:
        require_at_least("max_parallel", self.max_parallel, 1)
        if self.cell is not None and self.prepare_only:
            raise InvalidInputError("--cell and --prepare_only contradict each other")


def run(config: ExperimentConfig) -> list[Failure]:
    """Run what is not done, write the report and print its summary; return what failed.

    Raises:
        MissingFileError, InvalidInputError, MissingKeyError: the matrix is not there or not right,
            or what its contrasts ask has changed since they were looked at.
        UserError: something failed; its last lines have been printed.
    """
    started = time.monotonic()
    matrix = read_matrix(config.matrix)
    require_same_design(matrix)
    preparation, cells = preparation_jobs(matrix), cell_jobs(matrix)
    if config.dry_run:
        _print_commands(preparation, cells, _report_job(matrix))
        if matrix.contrasts is not None:
            print(
                "# Run whole, the arms of a seed are rolled out in one command, and only contrasts "
                "that are still open are trained for."
            )
        return []
    with termination_as_interrupt():
        runner = Runner(config.max_parallel)
        if config.cell is not None:
            return _run_cell(config, runner, preparation, cells)
        # One after another, on all cores: the caches are made from the dataset.
        for job in preparation:
            if Runner(1).run([job]):
                raise UserError(f"{job.name} failed, which every cell needs; see above")
        if config.prepare_only:
            return []
        if matrix.contrasts is None:
            failures = runner.run(longest_first(cells))
        else:
            cells, failures = _run_rounds(matrix, runner)
        if len(failures) < len(cells):
            has_design = (matrix.out_dir / "design.json").exists()
            report = _report_job(matrix, is_looked_at=has_design)
            # What it reports on may be new, whether or not its command is.
            (report.folder / "done.json").unlink(missing_ok=True)
            failed = runner.run([report])
            failures += failed
            if not failed:
                print(f"\n{(matrix.out_dir / 'report' / 'summary.md').read_text(encoding='utf-8')}")
                print(f"report: {report.steps[0].produces}")
    print(f"took {(time.monotonic() - started) / 60:.1f} minutes")
    _conclude(failures, cells)
    return failures


def _report_job(matrix: Matrix, *, is_looked_at: bool = True) -> Job:
    step = report_step(matrix, is_looked_at=is_looked_at)
    return Job("report", matrix.out_dir / "jobs" / "report", (step,))


def _run_rounds(matrix: Matrix, runner: Runner) -> tuple[list[Job], list[Failure]]:
    """Train rounds of seeds until every contrast is closed or the seeds are used up.

    Returns:
        the cells that were wanted, and what failed among them. A round that failed in part is not
        looked at: which seeds come to their end must not choose what is seen.
    """
    design = design_of(matrix)
    still_open = list(design.margins)
    explanations, others = explanation_jobs(matrix), seeds_of_others(matrix)
    failures = runner.run(explanations) + _run_cells(runner, others)
    cells = [*explanations, *(job for one in others for job in one.trainings)]
    for number, num_seeds in enumerate(design.plan.rounds):
        seeds = seeds_of_round(matrix, number, still_open)
        trainings = [job for one in seeds for job in one.trainings]
        print(f"round {number + 1}: {len(trainings)} cells, up to {num_seeds} seeds", flush=True)
        failed = _run_cells(runner, seeds)
        cells += trainings
        failures += failed
        if failed:
            break
        if num_seeds in design.plan.looks:
            still_open = _look(matrix, design, design.plan.looks.index(num_seeds) + 1)
        if not still_open:
            break
    return cells, failures


def _run_cells(runner: Runner, seeds: list[CellsOfSeed]) -> list[Failure]:
    """Train every cell, then roll out those that came to their end, the arms of a seed together."""
    failures = runner.run([job for one in seeds for job in one.trainings])
    return failures + runner.run([job for one in seeds if (job := one.rollouts()) is not None])


def _look(matrix: Matrix, design: Design, number: int) -> list[str]:
    """Look at all contrasts, say what is known, and return those that are still open.

    One whose arms are another's to the last bit is answered with it: its own arms are not trained
    any further.
    """
    keep_design(matrix)
    evidence = collect_evidence([matrix.out_dir / "cells"])
    results = planned_results(design, matrix.out_dir, evidence, number)
    for result in results:
        print(f"  {look_text(result)}", flush=True)
    asked = [result for result in results if result.twin is None]
    still_open = [result for result in asked if result.course.claim == "open"]
    lacking = [one.contrast.name for one in still_open if len(one.course.looks) < number]
    if lacking:
        raise InvalidInputError(
            f"look {number} cannot be taken: runs of {', '.join(lacking)} are not comparable; run "
            f"python -m world_modality.report {matrix.out_dir / 'cells'} and read “Left out, and "
            "why”"
        )
    return [one.contrast.name for one in still_open]


def _run_cell(
    config: ExperimentConfig, runner: Runner, preparation: list[Job], cells: list[Job]
) -> list[Failure]:
    if config.cell is None or not 0 <= config.cell < len(cells):
        raise InvalidInputError(
            f"--cell {config.cell}: the matrix has the cells 0 to {len(cells) - 1}; --dry_run "
            "lists them"
        )
    missing = [job.name for job in preparation if not is_done(job)]
    if missing:
        raise InvalidInputError(
            f"not prepared: {', '.join(missing)}; run python -m world_modality.experiment "
            f"{config.matrix} --prepare_only first, so that no two cells make the same cache"
        )
    failures = runner.run([cells[config.cell]])
    _conclude(failures, [cells[config.cell]])
    return failures


def _conclude(failures: list[Failure], cells: list[Job]) -> None:
    num_done = sum(is_done(job) for job in cells)
    print(f"{num_done} of {len(cells)} cells are done")
    if failures:
        names = ", ".join(failure.job for failure in failures)
        raise UserError(f"failed: {names}; their last lines are above; run the same again to retry")


def _print_commands(preparation: list[Job], cells: list[Job], report: Job) -> None:
    titles = [job.name for job in preparation]
    titles += [f"cell {number}: {job.name}" for number, job in enumerate(cells)]
    for title, job in zip([*titles, "report"], [*preparation, *cells, report], strict=True):
        print(f"# {title}")
        print("\n".join(step.shell for step in job.steps))


def main() -> None:
    """Run the experiment from the command line."""
    run_cli(ExperimentConfig, run)


if __name__ == "__main__":
    main()
