r"""Record a scripted expert in LIBERO as a LeRobot dataset.

    python -m benchmarks.libero.collect_demos --benchmark libero_object \
        --dataset_name local/libero_object_demo --episodes_per_task 40

The dataset has the keys, shapes, names and flips of `HuggingFaceVLA/libero`, so that what reads the
one reads the other. Two peculiarities come from there: the eight values of the state have the one
name `state` and the seven of the action the one name `actions`; and `fps` says 10, although a frame
is one step of LIBERO's controller, which makes 20 a second. LeRobot selects frames by seconds; that
gives the same frames of both datasets only if both say the same.

An interrupted recording goes on where it stopped when the same command is given again. The dataset
is a function of the flags alone, whatever the number of workers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.demos.collection import DatasetForm, DemoCollection
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import Feature, image_feature
from benchmarks.demos.recorder import ACTION_KEY
from benchmarks.libero import simulator
from benchmarks.libero.environment import LiberoRendering
from benchmarks.libero.simulator import LiberoSuite
from benchmarks.libero.suites import (
    max_episode_steps,
    num_initial_states,
    resolve_suite,
    select_tasks,
)
from benchmarks.rendering import gl_backend
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError

_PUBLIC_FPS = 10


@dataclass(frozen=True)
class CollectDemosConfig(DemoConfig):
    """Record a scripted expert in LIBERO as a LeRobot dataset.

    It plays tasks that put one object in or on something, open a drawer or turn a stove on: all of
    libero_object and libero_spatial, and of libero_goal all but open_the_top_drawer_and_put_the_
    bowl_inside and push_the_plate_to_the_front_of_the_stove.
    """

    dataset_name: str = "local/libero_object_demo"
    """LeRobot repository id of the dataset to record."""
    benchmark: str = "libero_object"
    """LIBERO suite, such as libero_object; libero_ may be left out."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, or their numbers from 0. Default: every task of the suite."""
    layouts: Literal["sampled", "stored"] = "sampled"
    """What episodes begin in: placements drawn by the task's own sampler, which leaves the
    benchmark's stored states to evaluation; or the stored states themselves, of which the first
    episodes_per_task are attempted once each, to measure the expert and to replay it there."""
    image_size: int = 256
    """Height and width of the images in pixels."""


def run(config: CollectDemosConfig) -> Path:
    """Record, assemble and publish the dataset; return its folder.

    Raises:
        UserError: a flag is out of range, the suite or a task is unknown, its expert fails too
            often, a library is missing, or the folder holds something else.
    """
    suite = resolve_suite(config.benchmark)
    limit = max_episode_steps(suite)
    config.require_ranges(limit)
    tasks = select_tasks(suite, config.tasks)
    for task in tasks if config.layouts == "stored" else ():
        num_states = num_initial_states(task)
        if config.episodes_per_task > num_states:
            raise InvalidInputError(
                f"--episodes_per_task {config.episodes_per_task}: {task.name} has {num_states} "
                "stored states"
            )
    instructions = {task.name: task.instruction for task in tasks}
    resolved = replace(
        config,
        benchmark=suite,
        tasks=tuple(instructions),
        max_steps=config.max_steps or limit,
    )
    rendering = LiberoRendering(image_size=config.image_size, gl_backend=gl_backend())
    image = {
        **image_feature(config.image_size, config.image_size, config.use_videos),
        "names": ["height", "width", "channel"],
    }
    features = {
        simulator.IMAGE_KEY: image,
        simulator.WRIST_IMAGE_KEY: image,
        simulator.STATE_KEY: _vector(simulator.STATE_DIM, "state"),
        ACTION_KEY: _vector(simulator.ACTION_DIM, "actions"),
    }
    form = DatasetForm(features, robot_type="panda", fps=_PUBLIC_FPS)
    return DemoCollection(
        resolved, LiberoSuite(suite, rendering), instructions, form, reset=config.layouts
    ).run()


def _vector(dim: int, name: str) -> Feature:
    return {"dtype": "float32", "shape": (dim,), "names": [name]}


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CollectDemosConfig, run)


if __name__ == "__main__":
    main()
