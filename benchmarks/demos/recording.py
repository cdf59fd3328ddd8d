"""What stands beside a recorded dataset: how its frames were made, and what only the recorder knew.

`meta/recording.json`:

config       the flags that decide the data
rendering    how images were made; a policy trained on the data is rolled out the same way
software     versions of the simulator
writer       version of LeRobot that wrote the dataset
suite        name of the benchmark suite
checks       what the suite measured on the data, where it measures something
layouts      how layout seeds are drawn, and the stream used
tasks        per task: instruction, episodes kept, attempts discarded, frames, mean length, and the
             share of the attempts that the expert solved
episodes     per episode: index, task, attempt, initial state (a layout's seed, or in LIBERO
             with `layouts.reset` stored the number of a stored state), frames

The first three are the recipe: equal recipes give equal datasets.

`meta/signals/<name>.f32.npy`, [N, dim] over the dataset's global frame index:

executed_action   the action that was executed (noise included), which a replay needs; the dataset's
                  `action` is what a policy learns
contact           1 where the robot touches something, after the action
success           1 where the task is solved, after the action
object_height     height of the object that the task is about, in m, after the action
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from world_modality.source.lerobot_format import RECORDING_PATH
from world_modality.system.atomic import write_json
from world_modality.system.errors import InvalidInputError, MissingFileError

Recipe = Mapping[str, Mapping[str, Any]]
"""JSON: `config` (flag to value), `rendering` and `software` (setting to value)."""
RECIPE_SECTIONS = ("config", "rendering", "software")

EXECUTED_ACTION = "executed_action"
CONTACT = "contact"
SUCCESS = "success"
OBJECT_HEIGHT = "object_height"

Signals = Mapping[str, np.ndarray]
"""By name, float32 [N, dim] of one episode."""


@dataclass(frozen=True)
class RecordedEpisode:
    """Where an episode of the dataset comes from."""

    episode_index: int
    task: str
    attempt: int
    initial_state: int
    num_frames: int


@dataclass(frozen=True)
class RecordedTask:
    """What recording one task came to."""

    instruction: str
    num_episodes: int
    num_discarded: int
    num_frames: int

    def record(self) -> dict[str, Any]:
        """Return it as JSON, with the mean length and the expert's success rate."""
        num_attempts = self.num_episodes + self.num_discarded
        return {
            **asdict(self),
            "mean_length": round(self.num_frames / self.num_episodes, 2),
            "success_rate": round(self.num_episodes / num_attempts, 4),
        }


def write_recording(
    root: Path,
    recipe: Recipe,
    sections: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, RecordedTask],
    episodes: Sequence[RecordedEpisode],
) -> None:
    """Write the record of the dataset in `root`; `sections` do not decide the data."""
    content = {
        **recipe,
        **sections,
        "tasks": {name: task.record() for name, task in tasks.items()},
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_json(root / RECORDING_PATH, content)


def read_recipe(path: Path) -> Recipe:
    """Read the recipe of a file that holds one, among other things.

    Raises:
        InvalidInputError: it holds none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _no_recipe(path, f"is no JSON ({str(error)[:100]})") from error
    for section in RECIPE_SECTIONS:
        if not isinstance(content, dict) or not isinstance(content.get(section), dict):
            raise _no_recipe(path, f"has no object {section!r}")
    return {section: content[section] for section in RECIPE_SECTIONS}


def _no_recipe(path: Path, fault: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path} {fault}, so that it does not say how the recording was made: it is damaged, or "
        "another program's; give another --dataset_root, or --overwrite to start again"
    )


def require_same_recipe(recorded: Recipe, wanted: Recipe, folder: Path) -> None:
    """Check that a recording was made by the recipe that is wanted now.

    Raises:
        InvalidInputError: it was not; the message names every flag and setting that differs.
    """
    before, now = _settings(recorded), _settings(wanted)
    differences = [
        f"{name} is {json.dumps(now.get(name))} now and was {json.dumps(before.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise InvalidInputError(
            f"{folder} was recorded with other settings: {'; '.join(differences)}. "
            "Give those again, another --dataset_root, or --overwrite to delete it and start again"
        )


def _settings(recipe: Recipe) -> dict[str, Any]:
    return {
        f"--{name}" if section == "config" else f"{section}.{name}": value
        for section, values in recipe.items()
        for name, value in values.items()
    }


def summary_table(tasks: Mapping[str, RecordedTask]) -> str:
    """Lay out what was recorded as a table."""
    counts = [(t.num_episodes, t.num_discarded, t.num_frames) for t in tasks.values()]
    rows = {**tasks, "total": RecordedTask("", *map(sum, zip(*counts, strict=True)))}
    width = max(map(len, rows))
    return "\n".join(
        [
            f"{'task':{width}}  episodes  frames  discarded  mean length  expert solves",
            *(
                f"{name:{width}}  {task.num_episodes:8d}  {task.num_frames:6d}  "
                f"{task.num_discarded:9d}  {task.num_frames / task.num_episodes:11.1f}  "
                f"{task.num_episodes:6d}/{task.num_episodes + task.num_discarded}"
                for name, task in rows.items()
            ),
        ]
    )


def write_signals(root: Path, episodes: Sequence[Signals]) -> None:
    """Write the signals of a dataset's episodes, given in the dataset's order."""
    folder = _signals_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    for name in episodes[0]:
        np.save(folder / f"{name}.f32.npy", np.concatenate([signals[name] for signals in episodes]))


def read_signal(root: Path, name: str, num_frames: int) -> Float32[np.ndarray, "N dim"]:
    """Read one signal of the dataset in `root`, such as `executed_action`.

    Raises:
        MissingFileError: the dataset has no such signal.
        InvalidInputError: the array is damaged or of another length.
    """
    path = _signals_folder(root) / f"{name}.f32.npy"
    if not path.exists():
        found = sorted(p.name.removesuffix(".f32.npy") for p in path.parent.glob("*.f32.npy"))
        raise MissingFileError(
            f"{path} is not there (signals found: {', '.join(found) or 'none'}); record the "
            "dataset with this version's `collect_demos`, which writes it"
        )
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InvalidInputError(f"{path} is damaged ({error}); record the dataset again") from error
    if values.dtype != np.float32 or values.ndim != 2 or len(values) != num_frames:
        raise InvalidInputError(
            f"{path} has {values.dtype} {values.shape}, the dataset {num_frames} frames; record "
            "the dataset again"
        )
    return values


def _signals_folder(root: Path) -> Path:
    return root / "meta" / "signals"
