"""A recording from the first attempt to the published dataset; knows no benchmark suite."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.demos.assembly import DatasetForm, assemble_dataset
from benchmarks.demos.attempts import DemoRecorder, TaskAttempts, record_attempts
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import default_dataset_root
from benchmarks.demos.destination import DemoDestination
from benchmarks.demos.recipe import Recipe
from benchmarks.demos.recording import summary
from benchmarks.demos.staging import DemoStaging


@dataclass(frozen=True)
class DemoJob:
    """What is recorded, by whom, and where it goes.

    Attributes:
        config: the flags.
        recipe: what decides the data.
        form: what the dataset looks like.
        recorder: plays the attempts.
        tasks: names of the tasks, in the dataset's order.
        makes_every_attempt: make the first `episodes_per_task` attempts and keep those that are
            solved, instead of going on until so many are solved.
    """

    config: DemoConfig
    recipe: Recipe
    form: DatasetForm
    recorder: DemoRecorder
    tasks: Sequence[str]
    makes_every_attempt: bool = False

    def run(self) -> Path:
        """Record, assemble and publish the dataset; return its folder.

        An interrupted recording goes on where it stopped, and a finished one is left alone.

        Raises:
            UserError: an expert fails too often, a library is missing, or the folder holds
                something else.
            AttemptCrashError: an attempt crashed, which is not one that failed.
        """
        started = time.monotonic()
        config = self.config
        root = config.dataset_root or default_dataset_root(config.dataset_name)
        destination = DemoDestination(root)
        if not destination.staging.folder.exists() and self._is_done(destination):
            return destination.root
        with destination.staging.lock():
            if self._is_done(destination):  # by another process, or by one killed after publishing
                destination.staging.remove()
                return destination.root
            if config.overwrite:
                destination.remove_dataset()
                destination.staging.clear()
            destination.staging.begin(self.recipe)
            tasks = self._record(destination.staging)
            print(f"recorded in {time.monotonic() - started:.0f} s; assembling")
            recorded = assemble_dataset(destination, self.recipe, self.form, tasks)
            destination.staging.remove()
        print(summary(recorded))
        print(f"{destination.root} written in {time.monotonic() - started:.0f} s")
        return destination.root

    def _is_done(self, destination: DemoDestination) -> bool:
        if self.config.overwrite or not destination.holds_dataset_of(self.recipe):
            return False
        print(f"{destination.root} is already recorded with these settings; nothing to do")
        return True

    def _record(self, staging: DemoStaging) -> list[TaskAttempts]:
        tasks = [self._attempts(task, staging.outcomes(task)) for task in self.tasks]
        num_wanted = sum(task.num_wanted for task in tasks)
        num_staged = sum(task.num_done for task in tasks)
        if num_staged:
            print(f"going on with {num_staged} episodes recorded before")
        with tqdm(total=num_wanted, desc="recording", unit="episode", initial=num_staged) as bar:
            num_shown = num_staged

            def show_progress() -> None:
                nonlocal num_shown
                num_done = sum(task.num_done for task in tasks)
                bar.update(num_done - num_shown)
                num_shown = num_done

            record_attempts(self.recorder, staging, tasks, self.config.num_workers, show_progress)
        return tasks

    def _attempts(self, task: str, outcomes: dict[int, bool]) -> TaskAttempts:
        num_wanted = self.config.episodes_per_task
        num_per_episode = 1 if self.makes_every_attempt else self.config.max_attempts_per_episode
        return TaskAttempts(
            task=task,
            num_wanted=num_wanted,
            max_attempts=num_wanted * num_per_episode,
            outcomes=outcomes,
            makes_every_attempt=self.makes_every_attempt,
        )
