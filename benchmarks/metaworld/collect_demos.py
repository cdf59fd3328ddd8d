r"""Record MetaWorld's scripted experts as a LeRobot dataset.

    python -m benchmarks.metaworld.collect_demos --dataset_name local/metaworld_demo \
        --tasks push-v3 pick-place-v3 --episodes_per_task 25

An interrupted recording goes on where it stopped when the same command is given again. The
dataset is a function of the flags alone, whatever the number of workers.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.demo_attempts import TaskAttempts, record_attempts
from benchmarks.demo_dataset import default_dataset_root, lerobot_version
from benchmarks.demo_destination import DemoDestination
from benchmarks.demo_recipe import Recipe
from benchmarks.demo_recording import summary
from benchmarks.demo_staging import DemoStaging
from benchmarks.metaworld import simulator
from benchmarks.metaworld.demo_assembly import assemble_dataset
from benchmarks.metaworld.demo_recorder import ActionLabel, DemoSettings, MetaworldDemoRecorder
from benchmarks.metaworld.instructions import select_tasks
from world_modality.cli import config_dict, run_cli
from world_modality.errors import InvalidInputError


@dataclass(frozen=True)
class CollectDemosConfig:
    """Record MetaWorld's scripted experts as a LeRobot dataset."""

    dataset_name: str = "local/metaworld_demo"
    """LeRobot repo id of the dataset."""
    dataset_root: Path | None = None
    """Folder to write. Default: where LeRobot looks for it, HF_LEROBOT_HOME/<dataset_name>."""
    tasks: tuple[str, ...] = (
        "push-v3",
        "pick-place-v3",
        "drawer-open-v3",
        "button-press-topdown-v3",
        "door-open-v3",
        "reach-v3",
    )
    """MetaWorld task names, or "all" for the 50 of them."""
    episodes_per_task: int = 25
    """Solved episodes to keep of each task; attempts that do not solve it are discarded."""
    seed: int = 0
    """Decides layouts and noise. Evaluation layouts come from another stream, whatever the seed."""
    action_noise: float = 0.0
    """Standard deviation of Gaussian noise on the executed action, before clipping to [-1, 1]."""
    action_label: ActionLabel = "executed"
    """Which action is stored: the executed one, noise included, or the expert's own."""
    max_steps: int = simulator.MAX_EPISODE_STEPS
    """Steps after which an attempt has failed, at most 500."""
    success_hold: int = 10
    """Frames recorded after the first solved one: action chunks end in real actions, and a policy
    learns to go on into the region of success instead of stopping at its border."""
    image_size: int = 128
    """Height and width of the images in pixels."""
    use_videos: bool = False
    """Store images as video (lossy) instead of PNG."""
    max_attempts_per_episode: int = 5
    """Give up when a task needs more than this many attempts per wanted episode."""
    num_workers: int = len(os.sched_getaffinity(0))
    """Worker processes; each keeps one core busy."""
    overwrite: bool = False
    """Delete an existing dataset or unfinished recording of that name and start anew."""


_NOT_IN_RECIPE = ("dataset_root", "max_attempts_per_episode", "num_workers", "overwrite")


def run(config: CollectDemosConfig) -> Path:
    """Record, assemble and publish the dataset; return its folder.

    Raises:
        UserError: a flag is out of range, a task is unknown, its expert fails too often, a library
            is missing, or the folder holds something else.
    """
    started = time.monotonic()
    _check_ranges(config)
    instructions = select_tasks(config.tasks)
    lerobot_version()
    rendering = simulator.Rendering(image_size=config.image_size, gl_backend=simulator.gl_backend())
    recipe = _recipe(config, list(instructions), rendering)
    destination = DemoDestination(config.dataset_root or default_dataset_root(config.dataset_name))
    if not config.overwrite and destination.holds_dataset_of(recipe):
        destination.staging.remove()
        print(f"{destination.root} is already recorded with these settings; nothing to do")
        return destination.root
    destination.staging.lock()
    if config.overwrite:
        destination.remove_dataset()
        destination.staging.clear()
    destination.staging.begin(recipe)
    recorder = MetaworldDemoRecorder(_settings(config, rendering), instructions)
    tasks = _record(config, recorder, destination.staging)
    print(f"recorded in {time.monotonic() - started:.0f} s; assembling")
    recorded = assemble_dataset(destination, recipe, tasks)
    destination.staging.remove()
    print(summary(recorded))
    print(f"{destination.root} written in {time.monotonic() - started:.0f} s")
    return destination.root


def _check_ranges(config: CollectDemosConfig) -> None:
    bounds: dict[str, tuple[float, float]] = {
        "episodes_per_task": (1, np.inf),
        "seed": (0, np.inf),
        "action_noise": (0, np.inf),
        "max_steps": (1, simulator.MAX_EPISODE_STEPS),
        "success_hold": (0, simulator.MAX_EPISODE_STEPS),
        "image_size": (8, 4096),
        "max_attempts_per_episode": (1, np.inf),
        "num_workers": (1, np.inf),
    }
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InvalidInputError(f"--{name} must be within [{low}, {high}], got {value}")


def _settings(config: CollectDemosConfig, rendering: simulator.Rendering) -> DemoSettings:
    return DemoSettings(
        seed=config.seed,
        action_noise=config.action_noise,
        action_label=config.action_label,
        max_steps=config.max_steps,
        success_hold=config.success_hold,
        rendering=rendering,
    )


def _recipe(config: CollectDemosConfig, tasks: list[str], rendering: simulator.Rendering) -> Recipe:
    flags = {
        name: value for name, value in config_dict(config).items() if name not in _NOT_IN_RECIPE
    }
    return {
        "config": {**flags, "tasks": tasks},
        "rendering": rendering.record(),
        "software": simulator.simulator_versions(),
    }


def _record(
    config: CollectDemosConfig, recorder: MetaworldDemoRecorder, staging: DemoStaging
) -> list[TaskAttempts]:
    tasks = [
        TaskAttempts(
            task=task,
            num_wanted=config.episodes_per_task,
            max_attempts=config.episodes_per_task * config.max_attempts_per_episode,
            outcomes=staging.outcomes(task),
        )
        for task in recorder.instructions
    ]
    num_wanted = len(tasks) * config.episodes_per_task
    num_staged = sum(len(task.kept) for task in tasks)
    if num_staged:
        print(f"going on with {num_staged} episodes recorded before")
    with tqdm(total=num_wanted, desc="recording", unit="episode", initial=num_staged) as bar:

        def show_progress() -> None:
            bar.update(sum(len(task.kept) for task in tasks) - bar.n)

        record_attempts(recorder, staging, tasks, config.num_workers, show_progress)
    return tasks


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CollectDemosConfig, run)


if __name__ == "__main__":
    main()
