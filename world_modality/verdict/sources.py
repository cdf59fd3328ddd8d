"""What lies in the folders that a report is asked for."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from world_modality.system.errors import InvalidInputError
from world_modality.verdict.finished_run import (
    FinishedRun,
    is_training_config,
    read_finished_run,
    read_json,
)
from world_modality.verdict.rollout_file import PolicyRollouts, read_rollouts

_EXPLANATION_KEYS = ("run", "labels", "conditions", "examples")
ContentT = TypeVar("ContentT")


@dataclass(frozen=True)
class LeftOut:
    """Something that no comparison uses, and why."""

    path: str
    reason: str


@dataclass
class Sources:
    """All that was found, in the order of the paths.

    Attributes:
        runs: finished and evaluated training runs.
        rollouts: by file and checkpoint.
        analyses: folder and content of each `analysis.json`.
        explanations: content of each `eval_coc.json`.
        grids: contact sheets of tokens.
        films: MP4s of rollouts.
        left_out: what could not be used.
    """

    runs: list[FinishedRun] = field(default_factory=list)
    rollouts: list[PolicyRollouts] = field(default_factory=list)
    analyses: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    explanations: list[dict[str, Any]] = field(default_factory=list)
    grids: list[Path] = field(default_factory=list)
    films: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Look through a folder, the folders below it included."""
        if not path.is_dir():
            self.left_out.append(LeftOut(str(path), "no such folder"))
            return
        before = self._count()
        for name, folders, files in os.walk(path):
            folders.sort()
            folder = Path(name)
            if "meta" in folders and (folder / "meta" / "info.json").exists():
                folders.clear()  # a recorded dataset
                continue
            if not folders and not files:
                self.left_out.append(LeftOut(name, "empty folder"))
            self._add_folder(folder, set(files))
        if self._count() == before:
            reason = "holds no run, rollouts, token analysis or films"
            self.left_out.append(LeftOut(str(path), reason))

    def _count(self) -> int:
        return sum(len(found) for found in vars(self).values())

    def _add_folder(self, folder: Path, files: set[str]) -> None:
        if _is_run(folder, files):
            self.runs += self._read(folder, lambda: [read_finished_run(folder)])
        path = folder / "results.jsonl"
        if path.name in files:
            self.rollouts += self._read(path, lambda: read_rollouts(path))
        if "analysis.json" in files:
            self.analyses += self._read(
                folder, lambda: [(folder, read_json(folder / "analysis.json"))]
            )
        if "eval_coc.json" in files:
            self.explanations += self._read(
                folder, lambda: [read_json(folder / "eval_coc.json", _EXPLANATION_KEYS)]
            )
        if "contact_sheet.jpg" in files:
            self.grids.append(folder / "contact_sheet.jpg")
        self.films += sorted(folder / name for name in files if name.endswith(".mp4"))

    def _read(self, path: Path, reader: Callable[[], list[ContentT]]) -> list[ContentT]:
        try:
            return reader()
        except InvalidInputError as error:
            self.left_out.append(LeftOut(str(path), str(error)))
            return []


def _is_run(folder: Path, files: set[str]) -> bool:
    """Say whether a training was begun here, also one that left nothing but its flags."""
    if "metrics.jsonl" in files or any(
        name.startswith("model_") and name.endswith(".pt") for name in files
    ):
        return True
    if "config.json" not in files:
        return False
    try:
        return is_training_config(read_json(folder / "config.json"))
    except InvalidInputError:
        return len(files) == 1  # damaged, and nothing says what it was
