r"""Write the instructions of LIBERO's tasks in the form of LeRobot v2's `meta/tasks.jsonl`.

python -m benchmarks.libero.export_libero_tasks_jsonl --benchmark libero_object \
    --out libero_object_tasks.jsonl

Lines are {"task_index": 0, "task": "pick up …", "suite": "libero_object", "name": "pick_up_…"}.
`world_modality.precompute_instruction_embeddings --tasks_jsonl` reads them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.libero.suites import LiberoTask, resolve_suite, suite_tasks
from world_modality.system.atomic import replacing
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class ExportLiberoTasksConfig:
    """Write the instructions of LIBERO's tasks, numbered as LIBERO lists them.

    The numbers have to be those of the dataset that is to be read with the file. Datasets that were
    merged or converted are often numbered in the order of their episodes instead, LeRobot's public
    LIBERO data among them: compare with the dataset's own meta/tasks.parquet or meta/tasks.jsonl,
    which is better wherever there is one.
    """

    benchmark: tuple[str, ...]
    """Suites such as libero_object (libero_ may be left out). With several, the numbers of each
    continue those of the one before it."""
    out: Path
    """File to write, with one JSON line a task."""


def run(config: ExportLiberoTasksConfig) -> list[LiberoTask]:
    """Write the file and return the tasks in its order.

    Raises:
        MissingKeyError: a suite is unknown (lists those there are, nearest first).
        InvalidInputError: a suite is named twice, or its files are not complete.
    """
    suites = [resolve_suite(benchmark) for benchmark in config.benchmark]
    if len(set(suites)) < len(suites) or not suites:
        raise InvalidInputError(
            f"--benchmark wants distinct suites, got {' '.join(config.benchmark) or 'none'}"
        )
    tasks = [(suite, task) for suite in suites for task in suite_tasks(suite)]
    with replacing(config.out) as partial, partial.open("w", encoding="utf-8") as file:
        for index, (suite, task) in enumerate(tasks):
            line = {
                "task_index": index,
                "task": task.instruction,
                "suite": suite,
                "name": task.name,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{config.out}: {len(tasks)} tasks of {', '.join(suites)}")
    return [task for _, task in tasks]


def main() -> None:
    """Run the stage from the command line."""
    run_cli(ExportLiberoTasksConfig, run)


if __name__ == "__main__":
    main()
