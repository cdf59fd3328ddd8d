r"""Success rates of checkpoints in LIBERO, from the benchmark's stored initial states.

python -m benchmarks.libero.eval_libero_success --checkpoint logs_c/model_C_epoch9.pt \
    --benchmark libero_object --n_trials 20
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.libero.environment import LiberoRendering
from benchmarks.libero.simulator import LiberoSuite, evaluation_episodes
from benchmarks.libero.suites import max_episode_steps, resolve_suite, select_tasks
from benchmarks.rollouts.config import RolloutConfig
from world_modality.system.cli import run_cli


@dataclass(frozen=True, kw_only=True)
class EvalLiberoConfig(RolloutConfig):
    """Roll checkpoints out in one of LIBERO's suites and report their success rates."""

    benchmark: str
    """libero_spatial, libero_object, libero_goal, libero_10, libero_90, or one of LIBERO-PRO's
    perturbed suites whose files are there, such as libero_object_swap; libero_ may be left out."""
    tasks: tuple[str, ...] = ()
    """Tasks of the suite, by name or by number from 0. Default: all."""


def run(config: EvalLiberoConfig) -> dict[str, Any]:
    """Roll every checkpoint out in the same episodes; return the summary.

    Raises:
        UserError: a checkpoint does not fit, the suite or a task is unknown or not complete, the
            simulator cannot render, or the results folder holds something else.
    """
    # Environment processes import this module: what loads torch stays out of its head.
    from benchmarks.rollouts.evaluation import evaluate

    name = resolve_suite(config.benchmark)
    max_steps = config.max_steps or max_episode_steps(name)
    tasks = select_tasks(name, config.tasks)
    episodes = evaluation_episodes(tasks, config.n_trials, config.seed, max_steps)
    return evaluate(suite_for(config.checkpoint[0], name), episodes, config)


def suite_for(checkpoint: Path, name: str) -> LiberoSuite:
    """Return a suite in the rendering that a checkpoint was trained on.

    The recording that it was trained on need not be of the suite: LIBERO-PRO's suites are for
    policies that were trained on LIBERO's.

    Raises:
        UserError: the checkpoint is missing or damaged, or was trained on another simulator's data.
    """
    from benchmarks.rollouts.suite_fit import dataset_of, recorded_rendering

    rendering = recorded_rendering(checkpoint, dataset_of(checkpoint), LiberoRendering, "libero")
    return LiberoSuite(name, rendering)


def main() -> None:
    """Run the stage from the command line."""
    run_cli(EvalLiberoConfig, run)


if __name__ == "__main__":
    main()
