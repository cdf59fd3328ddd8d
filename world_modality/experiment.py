"""A matrix of arms, seeds and settings, run through the stages' own commands, and its report.

    <out_dir>/caches/NAME/                         a cache a set of tokenizer flags
    <out_dir>/cells/CACHE[-FLAG]/ARM_seedN/        log.txt, done.json, train/, rollouts*/
    <out_dir>/explanations/seedN/                  two_heads/, instruction_only/, report/
    <out_dir>/report/                              the report over all of it

Give the same command again after an interruption, a failure or a change of the matrix: what is done
is not run again.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from world_modality.matrix.experiment_file import read_matrix
from world_modality.matrix.jobs import Job, cell_jobs, preparation_jobs, report_step
from world_modality.matrix.runner import Failure, Runner, is_done
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError, UserError, require_at_least
from world_modality.system.stop_signals import termination_as_interrupt


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
        MissingFileError, InvalidInputError, MissingKeyError: the matrix is not there or not right.
        UserError: something failed; its last lines have been printed.
    """
    started = time.monotonic()
    matrix = read_matrix(config.matrix)
    preparation, cells = preparation_jobs(matrix), cell_jobs(matrix)
    report = Job("report", matrix.out_dir / "jobs" / "report", (report_step(matrix),))
    if config.dry_run:
        _print_commands(preparation, cells, report)
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
        failures = runner.run(cells)
        if len(failures) < len(cells):
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
