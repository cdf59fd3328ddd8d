r"""Record MetaWorld's scripted experts as a LeRobot dataset.

    python -m benchmarks.metaworld.collect_demos --dataset_name local/metaworld_demo \
        --tasks push-v3 pick-place-v3 --episodes_per_task 25

An interrupted recording goes on where it stopped when the same command is given again. The
dataset is a function of the flags alone, whatever the number of workers.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.demos.collection import DatasetForm, DemoCollection
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import image_feature, vector_feature
from benchmarks.demos.recorder import ACTION_KEY
from benchmarks.metaworld import simulator
from benchmarks.metaworld.simulator import MetaworldRendering, MetaworldSuite
from benchmarks.metaworld.tasks import select_tasks
from benchmarks.rendering import gl_backend
from world_modality.system.cli import run_cli


@dataclass(frozen=True)
class CollectDemosConfig(DemoConfig):
    """Record MetaWorld's scripted experts as a LeRobot dataset."""

    dataset_name: str = "local/metaworld_demo"
    """LeRobot repository id of the dataset to record."""
    tasks: tuple[str, ...] = (
        "push-v3",
        "pick-place-v3",
        "drawer-open-v3",
        "button-press-topdown-v3",
        "door-open-v3",
        "reach-v3",
    )
    """MetaWorld task names, or "all" for the 50 of them."""


def run(config: CollectDemosConfig) -> Path:
    """Record, assemble and publish the dataset; return its folder.

    Raises:
        UserError: a flag is out of range, a task is unknown, its expert fails too often, a library
            is missing, or the folder holds something else.
    """
    limit = simulator.MAX_EPISODE_STEPS
    config.require_ranges(limit)
    instructions = select_tasks(config.tasks)
    resolved = replace(config, tasks=tuple(instructions), max_steps=config.max_steps or limit)
    rendering = MetaworldRendering(image_size=config.image_size, gl_backend=gl_backend())
    features = {
        simulator.IMAGE_KEY: image_feature(config.image_size, config.image_size, config.use_videos),
        simulator.STATE_KEY: vector_feature(simulator.STATE_NAMES),
        simulator.ENVIRONMENT_STATE_KEY: vector_feature(simulator.ENVIRONMENT_STATE_NAMES),
        ACTION_KEY: vector_feature(simulator.ACTION_NAMES),
    }
    form = DatasetForm(features, robot_type="sawyer", fps=simulator.FPS)
    return DemoCollection(resolved, MetaworldSuite(rendering), instructions, form).run()


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CollectDemosConfig, run)


if __name__ == "__main__":
    main()
