"""Turns staged MetaWorld attempts into a LeRobot dataset with its record."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from benchmarks.demo_attempts import TaskAttempts
from benchmarks.demo_dataset import (
    DemoDatasetWriter,
    Feature,
    image_feature,
    lerobot_version,
    vector_feature,
)
from benchmarks.demo_destination import DemoDestination
from benchmarks.demo_recipe import CONFIG_SECTION, Recipe
from benchmarks.demo_recording import RecordedEpisode, RecordedTask, write_recording
from benchmarks.demo_signals import Signals, write_signals
from benchmarks.metaworld import simulator
from benchmarks.metaworld.demo_recorder import ACTION_KEY
from benchmarks.metaworld.layouts import DEMONSTRATION_STREAM, SCHEME, layout_seed

_ROBOT_TYPE = "sawyer"


def assemble_dataset(
    destination: DemoDestination, recipe: Recipe, tasks: Sequence[TaskAttempts]
) -> dict[str, RecordedTask]:
    """Write the dataset from its staged episodes under a temporary name, then give it its own.

    Args:
        destination: holds the staged episodes.
        recipe: what they were recorded with.
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
        fps=simulator.FPS,
        features=_features(config["image_size"], config["use_videos"]),
        robot_type=_ROBOT_TYPE,
        use_videos=config["use_videos"],
    ) as writer:
        for task, attempt in tqdm(kept, desc="assembling", unit="episode"):
            episode = destination.staging.load(task.task, attempt)
            writer.add_episode(episode)
            signals.append(episode.signals)
            seed = layout_seed(config["seed"], DEMONSTRATION_STREAM, task.task, attempt)
            episodes.append(
                RecordedEpisode(len(episodes), task.task, attempt, seed, episode.num_frames)
            )
            sofar = recorded.setdefault(
                task.task, RecordedTask(episode.instruction, 0, task.num_discarded, 0)
            )
            recorded[task.task] = replace(
                sofar,
                num_episodes=sofar.num_episodes + 1,
                num_frames=sofar.num_frames + episode.num_frames,
            )
    sections: dict[str, dict[str, Any]] = {
        "suite": {"name": simulator.SUITE_NAME},
        "writer": {"lerobot": lerobot_version()},
        "layouts": SCHEME,
    }
    write_signals(destination.partial, signals)
    write_recording(destination.partial, recipe, sections, recorded, episodes)
    destination.publish()
    return recorded


def _features(image_size: int, use_videos: bool) -> dict[str, Feature]:
    return {
        simulator.IMAGE_KEY: image_feature(image_size, image_size, use_videos),
        simulator.STATE_KEY: vector_feature(simulator.STATE_NAMES),
        simulator.ENVIRONMENT_STATE_KEY: vector_feature(simulator.ENVIRONMENT_STATE_NAMES),
        ACTION_KEY: vector_feature(simulator.ACTION_NAMES),
    }
