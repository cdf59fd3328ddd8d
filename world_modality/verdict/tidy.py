"""What it takes to do the analysis again: tidy tables, versions, hashes of all that was read.

data/success.csv          contrast, seed, task, layout, arm, success, steps
data/action_error.csv     contrast, seed, task, episode, arm, squared_error_sum, num_steps
data/design.json          what was planned, where something was
data/versions.json        of Python, of the libraries, and of each run
data/SHA256SUMS           of these tables; `sha256sum -c SHA256SUMS` beside them checks them
data/inputs.sha256        of every file that the page was made from
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from world_modality.cache.contract import sha256_of_file
from world_modality.verdict.document import Cell, csv_text
from world_modality.verdict.evidence import Evidence
from world_modality.verdict.findings import Findings
from world_modality.verdict.finished_run import FinishedRun
from world_modality.verdict.measures import ACTION_ERROR

SUCCESS_COLUMNS = ("contrast", "seed", "task", "layout", "arm", "success", "steps")
ERROR_COLUMNS = ("contrast", "seed", "task", "episode", "arm", "squared_error_sum", "num_steps")
Pair = tuple[str, str, str, FinishedRun, FinishedRun]
"""A measure, the names of two arms, and their runs of one seed."""


def tidy_files(findings: Findings, design_path: Path | None) -> dict[str, str]:
    """Return the files by their names.

    A planned contrast has the seeds that its last look had, and one that only asks again what
    another one asks is not there; without a plan all contrasts of the main group are.
    """
    evidence, pairs = findings.evidence, list(_pairs(findings))
    tables = {
        "success.csv": csv_text(SUCCESS_COLUMNS, _success_rows(evidence, pairs)),
        "action_error.csv": csv_text(ERROR_COLUMNS, _error_rows(evidence, pairs)),
    }
    if design_path is not None:
        tables["design.json"] = design_path.read_text(encoding="utf-8")
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in tables.items()}
    return {
        **tables,
        "versions.json": json.dumps(_versions(evidence), indent=1, sort_keys=True) + "\n",
        "SHA256SUMS": _sum_lines(sums),
        "inputs.sha256": _sum_lines(
            {str(path): sha256_of_file(path) for path in _inputs(findings)}
        ),
    }


def _sum_lines(sums: dict[str, str]) -> str:
    # As sha256sum writes them: two spaces, for a file that is read as it is.
    return "".join(f"{value}  {name}\n" for name, value in sums.items())


def _pairs(findings: Findings) -> Iterator[Pair]:
    for result in findings.planned:
        contrast = result.contrast
        if result.twin is None:
            for one, other in result.runs[: result.course.num_seeds]:
                yield contrast.measure, contrast.first, contrast.second, one, other
    if findings.planned:
        return
    for measure, name in (("success", "success"), ("action_error", "action_error")):
        for result in getattr(findings, name):
            arms = result.contrast.first, result.contrast.second
            for seed in result.seeds:
                first, second = (findings.main.runs[arm][seed] for arm in arms)
                yield measure, *arms, first, second


def _success_rows(evidence: Evidence, pairs: list[Pair]) -> Iterator[tuple[Cell, ...]]:
    for measure, first, second, *runs in pairs:
        for arm, run in zip((first, second), runs, strict=True):
            rollouts = evidence.rollouts_of(run) if measure == "success" else None
            for key, outcome in rollouts.outcomes.items() if rollouts else ():
                task, _, _, layout, *_ = key
                success = None if outcome is None else int(outcome)
                steps = rollouts.num_steps[key] if rollouts else None
                yield f"{first} − {second}", run.seed, task, layout, arm, success, steps


def _error_rows(evidence: Evidence, pairs: list[Pair]) -> Iterator[tuple[Cell, ...]]:
    for measure, first, second, *runs in pairs:
        if measure != "action_error":
            continue
        task_of = ACTION_ERROR.task_of(runs)
        for arm, run in zip((first, second), runs, strict=True):
            scores = ACTION_ERROR.scores(evidence, run) or {}
            for episode, (error_sum, num_steps) in scores.items():
                task = task_of(episode)
                yield (
                    *(f"{first} − {second}", run.seed, None if task is None else str(task)),
                    *(str(episode), arm, error_sum, num_steps),
                )


def _versions(evidence: Evidence) -> dict[str, object]:
    runs = [run for group in evidence.groups for _, _, run in group.all_runs()]
    return {
        "analysis": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "scipy")},
        },
        "runs": {str(run.folder): run.evaluation["run"].get("versions", {}) for run in runs},
        "rollouts": evidence.conditions and evidence.conditions.get("simulator"),
    }


def _inputs(findings: Findings) -> list[Path]:
    evidence = findings.evidence
    found: dict[Path, None] = {}
    for group in evidence.groups:
        for _, _, run in group.all_runs():
            names = ["config.json", "metrics.jsonl", run.checkpoint_name]
            stem = Path(run.checkpoint_name).stem
            names += [
                f"{report}_{stem}/{report}.json" for report in ("eval_offline", "corrupt_world")
            ]
            found |= dict.fromkeys(run.folder / name for name in names)
            rollouts = evidence.rollouts.get(run.folder, {}).values()
            found |= dict.fromkeys(one.file for one in rollouts)
    return [path for path in found if path.exists()]
