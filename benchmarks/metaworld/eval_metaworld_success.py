r"""Success rates of checkpoints in MetaWorld, in layouts that no demonstration has.

python -m benchmarks.metaworld.eval_metaworld_success --checkpoint logs_c/model_C_epoch9.pt \
    --tasks push-v3 drawer-open-v3 --n_trials 50
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.metaworld import simulator
from benchmarks.metaworld.instructions import difficulty_groups, select_tasks
from benchmarks.metaworld.simulator import Rendering
from benchmarks.metaworld.suite import MetaworldSuite, evaluation_episodes
from benchmarks.rollouts.config import RolloutConfig
from world_modality.system.cli import run_cli
from world_modality.system.errors import InvalidInputError


@dataclass(frozen=True)
class EvalMetaworldConfig(RolloutConfig):
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
        UserError: a checkpoint does not fit, a task is unknown, the simulator cannot render, or the
            results folder holds something else.
    """
    from benchmarks.rollouts.evaluation import evaluate
    from benchmarks.rollouts.recorded_suite import recording_of

    recording = recording_of(config.checkpoint[0], simulator.SUITE_NAME)
    tasks = _selected(config, recording)
    episodes = evaluation_episodes(
        tasks, config.n_trials, config.seed, config.max_steps or simulator.MAX_EPISODE_STEPS
    )
    suite = MetaworldSuite(_rendering(recording))
    groups = {
        name: [task for task in members if task in tasks]
        for name, members in difficulty_groups().items()
    }
    return evaluate(suite, episodes, config, {name: own for name, own in groups.items() if own})


def _selected(config: EvalMetaworldConfig, recording: Mapping[str, Any] | None) -> dict[str, str]:
    if config.tasks:
        return select_tasks(config.tasks)
    if recording is None:
        raise InvalidInputError(
            "the checkpoint does not say which MetaWorld tasks it was trained on; name them with "
            "--tasks, or give --tasks all"
        )
    return select_tasks(list(recording["tasks"]))


def _rendering(recording: Mapping[str, Any] | None) -> Rendering:
    if recording is not None:
        return Rendering.from_record(recording["rendering"])
    print("note: the checkpoint records no rendering; LeRobot's standard one is used")
    return Rendering.lerobot()


def main() -> None:
    """Run the stage from the command line."""
    run_cli(EvalMetaworldConfig, run)


if __name__ == "__main__":
    main()
