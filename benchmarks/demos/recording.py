"""The record beside a recorded dataset, `meta/recording.json`: how its frames were made.

config       the flags that decide the data
rendering    how images were made; a policy trained on the data is rolled out the same way
software     versions of the simulator
writer       version of LeRobot that wrote the dataset
suite        name of the benchmark suite
layouts      how layout seeds are drawn, and the stream used
tasks        per task: instruction, episodes kept, attempts discarded, frames, mean length, and the
             share of the attempts that the expert solved
episodes     per episode: index, task, attempt, initial state (a layout's seed, or in LIBERO
             with `layouts.reset` stored the number of a stored state), frames
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.demos.recipe import RECIPE_SECTIONS, Recipe, read_sections
from world_modality.system.atomic import write_json
from world_modality.system.errors import MissingFileError


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

    @property
    def mean_length(self) -> float:
        """Frames per episode."""
        return self.num_frames / self.num_episodes

    @property
    def success_rate(self) -> float:
        """Share of the attempts that the expert solved."""
        return self.num_episodes / (self.num_episodes + self.num_discarded)


def recording_path(root: Path) -> Path:
    """Return the record's path in a dataset's folder."""
    return root / "meta" / "recording.json"


def write_recording(
    root: Path,
    recipe: Recipe,
    sections: Mapping[str, Mapping[str, Any]],
    tasks: Mapping[str, RecordedTask],
    episodes: Sequence[RecordedEpisode],
) -> None:
    """Write the record of a dataset.

    Args:
        root: the dataset's folder.
        recipe: its sections become sections of the record.
        sections: further sections, which do not decide the data.
        tasks: by task name.
        episodes: in the dataset's order.
    """
    content = {
        **recipe,
        **sections,
        "tasks": {
            name: {
                **asdict(task),
                "mean_length": round(task.mean_length, 2),
                "success_rate": round(task.success_rate, 4),
            }
            for name, task in tasks.items()
        },
        "episodes": [asdict(episode) for episode in episodes],
    }
    write_json(recording_path(root), content)


def read_recording(root: Path) -> dict[str, Any]:
    """Read the record of a dataset.

    Raises:
        MissingFileError: the dataset has none; it was not recorded by this project.
        InvalidInputError: it is damaged.
    """
    path = recording_path(root)
    if not path.exists():
        raise MissingFileError(
            f"{path} is not there: a `collect_demos` of this project writes it, so the dataset was "
            "not recorded by one"
        )
    return read_sections(path)


def read_recipe(root: Path) -> Recipe:
    """Read the part of the record that decides the data."""
    recording = read_recording(root)
    return {section: recording[section] for section in RECIPE_SECTIONS}


def summary(tasks: Mapping[str, RecordedTask]) -> str:
    """Lay out what was recorded as a table."""
    total = RecordedTask(
        instruction="",
        num_episodes=sum(task.num_episodes for task in tasks.values()),
        num_discarded=sum(task.num_discarded for task in tasks.values()),
        num_frames=sum(task.num_frames for task in tasks.values()),
    )
    width = max(map(len, [*tasks, "total"]))
    return "\n".join(
        [
            f"{'task':{width}}  episodes  frames  discarded  mean length  expert solves",
            *(
                f"{name:{width}}  {task.num_episodes:8d}  {task.num_frames:6d}  "
                f"{task.num_discarded:9d}  {task.mean_length:11.1f}  "
                f"{task.num_episodes:6d}/{task.num_episodes + task.num_discarded}"
                for name, task in {**tasks, "total": total}.items()
            ),
        ]
    )
