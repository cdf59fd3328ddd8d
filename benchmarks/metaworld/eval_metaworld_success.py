r"""Success rates of checkpoints in MetaWorld, in layouts that no demonstration has.

python -m benchmarks.metaworld.eval_metaworld_success --checkpoint logs_c/model_C_epoch9.pt \
    --tasks push-v3 drawer-open-v3 --n_trials 50
"""

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.metaworld import simulator
from benchmarks.metaworld.cameras import MetaworldRendering
from benchmarks.metaworld.scene_flags import (
    SceneFlags,
    require_scene_of_recording,
    require_tasks_of_scene,
)
from benchmarks.metaworld.simulator import MetaworldSuite, evaluation_episodes
from benchmarks.metaworld.tasks import difficulty_groups, select_tasks
from benchmarks.rollouts.config import RolloutConfig
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class EvalMetaworldConfig(SceneFlags, RolloutConfig):
    """Roll checkpoints out in MetaWorld and report their success rates."""

    tasks: tuple[str, ...] = ()
    """MetaWorld task names, or "all" for the 50 of them. Default: those of the recording that the
    first checkpoint was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        limit = simulator.MAX_EPISODE_STEPS
        if self.max_steps is not None and self.max_steps > limit:
            raise InvalidInputError(
                f"--max_steps {self.max_steps}: MetaWorld ends an episode after {limit} steps"
            )


def run(config: EvalMetaworldConfig) -> dict[str, Any]:
    """Roll every checkpoint out in the same episodes; return the summary.

    Raises:
        UserError: a checkpoint or the scene does not fit, a task is unknown, the simulator cannot
            render, or the results folder holds something else.
    """
    # Environment processes import this module: what loads torch stays out of its head.
    from benchmarks.rollouts.evaluation import evaluate
    from benchmarks.rollouts.suite_fit import dataset_of, recorded_rendering

    first = config.checkpoint[0]
    dataset = dataset_of(first)
    rendering = recorded_rendering(first, dataset, MetaworldRendering, simulator.SUITE_NAME)
    scene = config.scene(rendering.scene)
    if dataset.get("recording") is not None:
        require_scene_of_recording(rendering.scene, scene, first)
    rendering = replace(rendering, scene=scene)
    tasks = config.tasks or tuple((dataset.get("recording") or {}).get("tasks", ()))
    if not tasks:
        raise InvalidInputError(
            "the checkpoint does not say which MetaWorld tasks it was trained on; name them with "
            "--tasks, or give --tasks all"
        )
    instructions = select_tasks(tasks)
    require_tasks_of_scene(scene, instructions)
    max_steps = config.max_steps or simulator.MAX_EPISODE_STEPS
    episodes = evaluation_episodes(instructions, config.n_trials, config.seed, max_steps, scene)
    groups = {
        name: [task for task in members if task in instructions]
        for name, members in difficulty_groups().items()
    }
    groups = {name: own for name, own in groups.items() if own}
    notes = [note for change in scene if (note := change.note()) is not None]
    return evaluate(MetaworldSuite(rendering), episodes, config, groups, notes)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(EvalMetaworldConfig, run)


if __name__ == "__main__":
    main()
