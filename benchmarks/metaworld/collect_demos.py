r"""Record MetaWorld's scripted experts as a LeRobot dataset.

    python -m benchmarks.metaworld.collect_demos --dataset_name local/metaworld_demo \
        --tasks push-v3 pick-place-v3 --episodes_per_task 25 --camera corner2 topview

An interrupted recording goes on where it stopped when the same command is given again. The
dataset is a function of the flags alone, whatever the number of workers.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from benchmarks.demos.collection import DatasetForm, DemoCollection, RecordingCheck
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import image_feature, vector_feature
from benchmarks.demos.recorder import ACTION_KEY
from benchmarks.metaworld import simulator
from benchmarks.metaworld.cameras import MetaworldRendering, chosen_cameras
from benchmarks.metaworld.cue import Cue
from benchmarks.metaworld.scene_flags import (
    SCENE_FLAGS,
    SceneFlags,
    require_steps_for_scene,
    require_tasks_of_scene,
)
from benchmarks.metaworld.simulator import MetaworldSuite
from benchmarks.metaworld.tasks import select_tasks
from benchmarks.rendering import gl_backend
from world_modality.system.cli import run_cli


@dataclass(frozen=True)
class CollectDemosConfig(SceneFlags, DemoConfig):
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
    camera: tuple[str, ...] = ("corner2",)
    """Cameras to record, of which each costs as much time as the others: the first as
    observation.image, further ones as observation.images.<name>. MetaWorld has corner2 (from the
    robot's right; LeRobot's public data has it), topview (from above, where the arm may hide the
    hand), gripperPOV (down from the hand), corner (from the left), corner3 (from higher up),
    corner4 (where corner2 is moved to, by default) and behindGripper (from behind the hand)."""
    camera_position: tuple[str, ...] = ()
    """Where cameras are moved to: name=x,y,z in m; of gripperPOV and behindGripper relative to the
    hand. Default: corner2 to 0.75,0.075,0.7, as in LeRobot's public data, and no other."""
    rendering: Literal["fast", "lerobot"] = "fast"
    """How images are made: fast is without shadows, reflections and multisampling; lerobot is with
    all three, as in LeRobot's public data and evaluator."""
    image_size: int | None = None
    """Height and width of the images in pixels. Default: 128, and with --rendering lerobot the 480
    of LeRobot's public data."""

    NOT_IN_RECIPE: ClassVar[tuple[str, ...]] = (
        *DemoConfig.NOT_IN_RECIPE,
        # The recipe's `rendering` says what they gave.
        *("camera", "camera_position", "rendering", *SCENE_FLAGS),
    )

    @property
    def images(self) -> MetaworldRendering:
        """How images are made.

        Raises:
            UserError: the flags of cameras and of the scene do not say it.
        """
        cameras = chosen_cameras(self.camera, self.camera_position)
        kind = MetaworldRendering.lerobot if self.rendering == "lerobot" else MetaworldRendering
        rendering = kind()
        return replace(
            rendering,
            camera=cameras[0].name,
            camera_position=cameras[0].position,
            flip_axes=cameras[0].flip_axes,
            image_size=self.image_size or rendering.image_size,
            gl_backend=gl_backend(),
            further_cameras=tuple(cameras[1:]),
            scene=self.scene(),
        )


def run(config: CollectDemosConfig) -> Path:
    """Record, assemble and publish the dataset; return its folder.

    Raises:
        UserError: a flag is out of range, a task or camera is unknown, an expert fails too often, a
            library is missing, or the folder holds something else.
    """
    limit = simulator.MAX_EPISODE_STEPS
    config.require_ranges(limit)
    instructions = select_tasks(config.tasks)
    rendering = config.images
    require_tasks_of_scene(rendering.scene, instructions)
    require_steps_for_scene(rendering.scene, config.max_steps or limit)
    size = rendering.image_size
    resolved = replace(
        config,
        tasks=tuple(instructions),
        max_steps=config.max_steps or limit,
        image_size=size,
    )
    features = {
        **{key: image_feature(size, size, config.use_videos) for key in rendering.cameras},
        simulator.STATE_KEY: vector_feature(simulator.STATE_NAMES),
        simulator.ENVIRONMENT_STATE_KEY: vector_feature(simulator.ENVIRONMENT_STATE_NAMES),
        ACTION_KEY: vector_feature(simulator.ACTION_NAMES),
    }
    form = DatasetForm(features, robot_type="sawyer", fps=simulator.FPS)
    suite, check = MetaworldSuite(rendering), _cue_check(rendering)
    return DemoCollection(resolved, suite, instructions, form, check=check).run()


def _cue_check(rendering: MetaworldRendering) -> RecordingCheck | None:
    cues = [change for change in rendering.scene if isinstance(change, Cue)]
    if not cues:
        return None
    from benchmarks.metaworld.cue_check import CueCheck  # loads torch, which --help goes without

    return CueCheck(*cues)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(CollectDemosConfig, run)


if __name__ == "__main__":
    main()
