"""The task texts of LeRobot's public MetaWorld data (50 tasks, 49 distinct texts), and groups.

LeRobot ships the table as a data file; reading it from there keeps recorded instructions equal to
the public ones, and needs no simulator.
"""

import importlib.resources
import importlib.util
import json
from collections.abc import Sequence
from typing import Any

from world_modality.system.errors import InvalidInputError, MissingFileError, missing_key

ALL_TASKS = "all"


def instructions() -> dict[str, str]:
    """Return the text of every task by its simulator name.

    Raises:
        MissingFileError: LeRobot, or its table, is not installed.
    """
    texts: dict[str, str] = _table()["TASK_DESCRIPTIONS"]
    return texts


def difficulty_groups() -> dict[str, list[str]]:
    """Return the tasks of each difficulty: easy 28, medium 11, hard 6, very_hard 5.

    The grouping of Seo et al. (2022, Masked World Models for Visual Control, appendix), as LeRobot
    keeps it.

    Raises:
        MissingFileError: LeRobot, or its table, is not installed.
    """
    groups: dict[str, list[str]] = _table()["DIFFICULTY_TO_TASKS"]
    return groups


def select_tasks(names: Sequence[str]) -> dict[str, str]:
    """Return the texts of the named tasks, in the order asked for; `all` stands for every task.

    Raises:
        InvalidInputError: no task is named, or one is named twice.
        MissingKeyError: a name is unknown; the message lists the known ones, nearest first.
    """
    texts = instructions()
    if list(names) == [ALL_TASKS]:
        return texts
    if not names or len(set(names)) != len(names):
        raise InvalidInputError(
            f"--tasks needs distinct task names or {ALL_TASKS!r}, got {' '.join(names) or 'none'}"
        )
    for name in names:
        if name not in texts:
            raise missing_key("task", name, texts, "MetaWorld")
    return {name: texts[name] for name in names}


def _table() -> dict[str, Any]:
    if importlib.util.find_spec("lerobot") is None:
        raise MissingFileError(
            "the task texts come with lerobot, which is not installed; pip install lerobot"
        )
    table = importlib.resources.files("lerobot") / "envs" / "metaworld_config.json"
    if not table.is_file():
        raise MissingFileError(
            f"lerobot has no {table}; this project is tested with lerobot 0.4.4 and 0.6.1"
        )
    content: dict[str, Any] = json.loads(table.read_text(encoding="utf-8"))
    return content
