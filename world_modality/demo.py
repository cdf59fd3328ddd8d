"""The whole experiment in one command, on demonstrations recorded from a simulator.

It is the matrix `benchmarks/metaworld/demo.yaml`, run and reported on by `experiment` as any other;
the flags here change a few of its values, and `<out_dir>/demo.yaml` holds what came of that.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from world_modality.system.atomic import replacing
from world_modality.system.cli import TOP, run_cli
from world_modality.system.errors import InvalidInputError

MATRIX_PATH = TOP / "benchmarks" / "metaworld" / "demo.yaml"
OLDER_LAYOUT = ("cache", "coc", "logs_*")
"""What lies in the folder of a demo by version 0.1."""


@dataclass(frozen=True)
class DemoConfig:
    """Record demonstrations, make world tokens, train four arms, and test the claim on them."""

    out_dir: Path = Path("demo")
    """Folder that receives the dataset, the caches, the cells and the report."""
    tasks: tuple[str, ...] = ()
    """MetaWorld tasks to record; by default the six of the recorder."""
    episodes_per_task: int = 50
    """Successful demonstrations of each task."""
    num_epochs: int = 5
    """Training epochs of each arm."""
    n_trials: int = 20
    """Closed-loop episodes of each task and arm."""
    num_coc_epochs: int = 4
    """Training epochs of the model that explains itself, and of its instruction-only control."""
    seed: int = 0
    """Seed of the recording, the split, the codebook, the training and the rollouts."""
    max_parallel: int = 2
    """Trainings and rollouts that run at once."""


def run(config: DemoConfig) -> None:
    """Write the demo's matrix and become the stage that runs it.

    Raises:
        InvalidInputError: the folder holds a demo of an older version.
    """
    older = sorted(path.name for name in OLDER_LAYOUT for path in config.out_dir.glob(name))
    if older:
        raise InvalidInputError(
            f"{config.out_dir} holds the demo of an older version ({', '.join(older)}), which this "
            f"one cannot go on with; remove it (rm -r {config.out_dir}) or name another --out_dir"
        )
    path = config.out_dir / "demo.yaml"
    with replacing(path) as partial:
        partial.write_text(
            yaml.safe_dump(matrix_content(config), sort_keys=False), encoding="utf-8"
        )
    command = ["-m", "world_modality.experiment", str(path)]
    command += ["--max_parallel", str(config.max_parallel)]
    print("$ python " + " ".join(command), flush=True)
    # Not a child: a signal reaches the stage itself, which ends what it has started.
    os.execv(sys.executable, [sys.executable, *command])


def matrix_content(config: DemoConfig) -> dict[str, Any]:
    """Return the demo's matrix with the values that the flags give it."""
    content: dict[str, Any] = yaml.safe_load(MATRIX_PATH.read_text(encoding="utf-8"))
    seed = {"seed": config.seed}
    content["out_dir"] = str(config.out_dir)
    content["dataset_root"] = str(config.out_dir / "dataset")
    content["seeds"] = [config.seed]
    recording = content["prepare"][0]["flags"]
    recording |= {"episodes_per_task": config.episodes_per_task, **seed}
    if config.tasks:
        recording["tasks"] = list(config.tasks)
    content["caches"]["main"] |= seed
    content["train"]["num_epochs"] = config.num_epochs
    content["rollouts"]["flags"] |= {"n_trials": config.n_trials, **seed}
    content["explanations"]["train"]["num_epochs"] = config.num_coc_epochs
    return content


def main() -> None:
    """Run the demo from the command line."""
    run_cli(DemoConfig, run)


if __name__ == "__main__":
    main()
