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

from dataclasses import dataclass
from pathlib import Path

from benchmarks.demos.assembly import DatasetForm
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import Feature, image_feature, lerobot_version
from benchmarks.demos.job import DemoJob
from benchmarks.demos.layouts import SCHEME
from benchmarks.demos.player import ACTION_KEY
from benchmarks.demos.recipe import Recipe
from benchmarks.demos.rendering_record import gl_backend
from benchmarks.libero import simulator
from benchmarks.libero.demo_recorder import DemoSettings, Layouts, LiberoDemoRecorder
from benchmarks.libero.rendering import Rendering
from benchmarks.libero.suites import (
    LiberoTask,
    load_initial_states,
    max_episode_steps,
    resolve_suite,
    select_tasks,
)
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError

_ROBOT_TYPE = "panda"
_PUBLIC_FPS = 10


@dataclass(frozen=True)
class CollectDemosConfig(DemoConfig):
    """Record a scripted expert in LIBERO as a LeRobot dataset.

    It plays tasks that put one object in or on something: all of libero_object and libero_spatial.
    """

    dataset_name: str = "local/libero_object_demo"
    """LeRobot repo id of the dataset."""
    benchmark: str = "libero_object"
    """LIBERO suite, with or without `libero_`."""
    tasks: tuple[str, ...] = ()
    """Names of tasks, or their numbers from 0. Default: every task of the suite."""
    layouts: Layouts = "sampled"
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
    if config.layouts == "stored":
        _require_stored_states(tasks, config.episodes_per_task)
    lerobot_version()
    rendering = Rendering(image_size=config.image_size, gl_backend=gl_backend())
    settings = DemoSettings(
        action_noise=config.action_noise,
        action_label=config.action_label,
        max_steps=config.max_steps or limit,
        success_hold=config.success_hold,
        suite=suite,
        layouts=config.layouts,
        seed=config.seed,
        rendering=rendering,
    )
    recipe: Recipe = {
        "config": config.recipe_flags(
            benchmark=suite, tasks=[task.name for task in tasks], max_steps=settings.max_steps
        ),
        "rendering": rendering.record(),
        "software": simulator.simulator_versions(),
    }
    return DemoJob(
        config=config,
        recipe=recipe,
        form=_dataset_form(config, settings),
        recorder=LiberoDemoRecorder(settings, {task.name: task.instruction for task in tasks}),
        tasks=[task.name for task in tasks],
        makes_every_attempt=config.layouts == "stored",
    ).run()


def _require_stored_states(tasks: tuple[LiberoTask, ...], num_wanted: int) -> None:
    for task in tasks:
        num_states = len(load_initial_states(task))
        if num_wanted > num_states:
            raise InvalidInputError(
                f"--episodes_per_task {num_wanted}: {task.name} has {num_states} stored states"
            )


def _dataset_form(config: CollectDemosConfig, settings: DemoSettings) -> DatasetForm:
    return DatasetForm(
        suite=settings.suite,
        features=_features(config.image_size, config.use_videos),
        robot_type=_ROBOT_TYPE,
        fps=_PUBLIC_FPS,
        layouts={"reset": config.layouts, **(SCHEME if config.layouts == "sampled" else {})},
        initial_state=settings.initial_state,
    )


def _features(image_size: int, use_videos: bool) -> dict[str, Feature]:
    image = {
        **image_feature(image_size, image_size, use_videos),
        "names": ["height", "width", "channel"],
    }
    return {
        simulator.IMAGE_KEY: image,
        simulator.WRIST_IMAGE_KEY: image,
        simulator.STATE_KEY: _vector(simulator.STATE_DIM, "state"),
        ACTION_KEY: _vector(simulator.ACTION_DIM, "actions"),
    }


def _vector(dim: int, name: str) -> Feature:
    return {"dtype": "float32", "shape": (dim,), "names": [name]}


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CollectDemosConfig, run)


if __name__ == "__main__":
    main()
