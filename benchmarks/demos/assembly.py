"""Turns staged attempts into a LeRobot dataset with its record; knows no benchmark suite."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from benchmarks.demos.attempts import TaskAttempts
from benchmarks.demos.dataset import DemoDatasetWriter, Feature, lerobot_version
from benchmarks.demos.destination import DemoDestination
from benchmarks.demos.recipe import CONFIG_SECTION, Recipe
from benchmarks.demos.recording import RecordedEpisode, RecordedTask, write_recording
from benchmarks.demos.signals import Signals, write_signals


@dataclass(frozen=True)
class DatasetForm:
    """What a suite's datasets look like, and where their episodes begin.

    Attributes:
        suite: the suite's name.
        features: LeRobot feature name to its description.
        robot_type: LeRobot's metadata field.
        fps: LeRobot's frames per second.
        layouts: what the record says about how layouts come about.
        initial_state: what the simulator is reset to in a task's attempt of a number.
    """

    suite: str
    features: Mapping[str, Feature]
    robot_type: str
    fps: int
    layouts: Mapping[str, Any]
    initial_state: Callable[[str, int], int]


def assemble_dataset(
    destination: DemoDestination, recipe: Recipe, form: DatasetForm, tasks: Sequence[TaskAttempts]
) -> dict[str, RecordedTask]:
    """Write the dataset from its staged episodes under a temporary name, then give it its own.

    Args:
        destination: holds the staged episodes.
        recipe: what they were recorded with.
        form: what the suite makes of them.
        tasks: which attempts to keep; tasks and attempts come in this order.

    Returns:
        What was recorded of each task.
    """
    config = recipe[CONFIG_SECTION]
    destination.remove_partial()
    episodes: list[RecordedEpisode] = []
    signals: list[Signals] = []
    recorded: dict[str, RecordedTask] = {}
    kept = [(task, attempt) for task in tasks for attempt in task.kept]
    with DemoDatasetWriter(
        repo_id=config["dataset_name"],
        root=destination.partial,
        fps=form.fps,
        features=dict(form.features),
        robot_type=form.robot_type,
        use_videos=config["use_videos"],
    ) as writer:
        for task, attempt in tqdm(kept, desc="assembling", unit="episode"):
            episode = destination.staging.load(task.task, attempt)
            writer.add_episode(episode)
            signals.append(episode.signals)
            state = form.initial_state(task.task, attempt)
            episodes.append(
                RecordedEpisode(len(episodes), task.task, attempt, state, episode.num_frames)
            )
            sofar = recorded.setdefault(
                task.task, RecordedTask(episode.instruction, 0, task.num_discarded, 0)
            )
            recorded[task.task] = replace(
                sofar,
                num_episodes=sofar.num_episodes + 1,
                num_frames=sofar.num_frames + episode.num_frames,
            )
    sections: dict[str, Mapping[str, Any]] = {
        "suite": {"name": form.suite},
        "writer": {"lerobot": lerobot_version()},
        "layouts": form.layouts,
    }
    write_signals(destination.partial, signals)
    write_recording(destination.partial, recipe, sections, recorded, episodes)
    destination.publish()
    return recorded
