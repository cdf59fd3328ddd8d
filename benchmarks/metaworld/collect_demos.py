r"""Record MetaWorld's scripted experts as a LeRobot dataset.

    python -m benchmarks.metaworld.collect_demos --dataset_name local/metaworld_demo \
        --tasks push-v3 pick-place-v3 --episodes_per_task 25

An interrupted recording goes on where it stopped when the same command is given again. The
dataset is a function of the flags alone, whatever the number of workers.
"""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.demos.assembly import DatasetForm
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import Feature, image_feature, lerobot_version, vector_feature
from benchmarks.demos.job import DemoJob
from benchmarks.demos.layouts import SCHEME
from benchmarks.demos.player import ACTION_KEY
from benchmarks.demos.recipe import Recipe
from benchmarks.demos.rendering_record import gl_backend
from benchmarks.metaworld import simulator
from benchmarks.metaworld.demo_recorder import DemoSettings, MetaworldDemoRecorder
from benchmarks.metaworld.instructions import select_tasks
from world_modality.system.cli import run_cli

_ROBOT_TYPE = "sawyer"


@dataclass(frozen=True)
class CollectDemosConfig(DemoConfig):
    """Record MetaWorld's scripted experts as a LeRobot dataset."""

    dataset_name: str = "local/metaworld_demo"
    """LeRobot repo id of the dataset."""
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
    config.require_ranges(simulator.MAX_EPISODE_STEPS)
    instructions = select_tasks(config.tasks)
    lerobot_version()
    rendering = simulator.Rendering(image_size=config.image_size, gl_backend=gl_backend())
    settings = DemoSettings(
        action_noise=config.action_noise,
        action_label=config.action_label,
        max_steps=config.max_steps or simulator.MAX_EPISODE_STEPS,
        success_hold=config.success_hold,
        seed=config.seed,
        rendering=rendering,
    )
    recipe: Recipe = {
        "config": config.recipe_flags(tasks=list(instructions), max_steps=settings.max_steps),
        "rendering": rendering.record(),
        "software": simulator.simulator_versions(),
    }
    form = DatasetForm(
        suite=simulator.SUITE_NAME,
        features=_features(config.image_size, config.use_videos),
        robot_type=_ROBOT_TYPE,
        fps=simulator.FPS,
        layouts=SCHEME,
        initial_state=settings.initial_state,
    )
    recorder = MetaworldDemoRecorder(settings, instructions)
    return DemoJob(config, recipe, form, recorder, list(instructions)).run()


def _features(image_size: int, use_videos: bool) -> dict[str, Feature]:
    return {
        simulator.IMAGE_KEY: image_feature(image_size, image_size, use_videos),
        simulator.STATE_KEY: vector_feature(simulator.STATE_NAMES),
        simulator.ENVIRONMENT_STATE_KEY: vector_feature(simulator.ENVIRONMENT_STATE_NAMES),
        ACTION_KEY: vector_feature(simulator.ACTION_NAMES),
    }


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CollectDemosConfig, run)


if __name__ == "__main__":
    main()
