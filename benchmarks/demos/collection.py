"""A recording from the flags to the published dataset; knows no benchmark suite."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from benchmarks.demos.attempts import TaskAttempts, record_attempts
from benchmarks.demos.config import DemoConfig
from benchmarks.demos.dataset import Feature, lerobot_version, new_dataset
from benchmarks.demos.destination import DemoDestination
from benchmarks.demos.episode import DemoEpisode
from benchmarks.demos.recorder import DemoRecorder, Reset, layouts_record
from benchmarks.demos.recording import (
    Recipe,
    RecordedEpisode,
    RecordedTask,
    Signals,
    summary_table,
    write_recording,
    write_signals,
)
from benchmarks.suite import Suite
from world_modality.source.lerobot_format import local_dataset_folder


@dataclass(frozen=True)
class DatasetForm:
    """What a suite's datasets look like.

    Attributes:
        features: LeRobot feature name to its description.
        robot_type: LeRobot's metadata field.
        fps: LeRobot's frames per second.
    """

    features: Mapping[str, Feature]
    robot_type: str
    fps: int


@runtime_checkable
class RecordingCheck(Protocol):
    """What a suite measures on a recording while it is assembled; it does not decide the data."""

    def add(self, episode: DemoEpisode, initial_state: int) -> None:
        """Take an episode, and what it started in."""

    def record(self) -> dict[str, Any]:
        """Return what was found, for the section `checks` of the dataset's record."""

    def text(self) -> str:
        """Say it for the terminal."""


@dataclass(frozen=True)
class DemoCollection:
    """What is recorded, and what becomes of it.

    Attributes:
        config: the flags, `tasks` and `max_steps` as the suite reads them.
        suite: the suite in the rendering of the flags; its simulators are `DemoSimulator`s.
        instructions: task name to text, in the dataset's order.
        form: what the dataset looks like.
        reset: what demonstrations start in. From stored states, the first `episodes_per_task` are
            attempted once each, and those that are solved are kept; otherwise attempts go on until
            so many are solved.
        check: measures something on the recording, if anything is to be measured.
    """

    config: DemoConfig
    suite: Suite
    instructions: Mapping[str, str]
    form: DatasetForm
    reset: Reset = "seeded"
    check: RecordingCheck | None = None

    @cached_property
    def recorder(self) -> DemoRecorder:
        """Plays the attempts."""
        return DemoRecorder(self.suite, self.config, self.instructions, self.reset)

    @cached_property
    def recipe(self) -> Recipe:
        """What decides the data."""
        made = self.suite.record()
        return {
            "config": self.config.recipe_flags(),
            "rendering": made["rendering"],
            "software": made["versions"],
        }

    def run(self) -> Path:
        """Record, assemble and publish the dataset; return its folder.

        An interrupted recording continues where it stopped, and a finished one is left alone.

        Raises:
            UserError: an expert fails too often, a library is missing, or the folder holds
                something else.
            AttemptCrashError: an attempt crashed, which is not one that failed.
        """
        started = time.monotonic()
        lerobot_version()
        root = self.config.dataset_root or local_dataset_folder(self.config.dataset_name)
        destination = DemoDestination(root)
        staging = destination.staging
        if not staging.folder.exists() and self._is_done(destination):
            return destination.root
        with staging.lock():
            if self._is_done(destination):  # by another process, or by one killed after publishing
                staging.remove()
                return destination.root
            if self.config.overwrite:
                destination.remove_dataset()
                staging.clear()
            staging.begin(self.recipe)
            tasks = [self._attempts(task, staging.outcomes(task)) for task in self.instructions]
            record_attempts(self.recorder.record, staging, tasks, self.config.num_workers)
            print(f"recorded in {time.monotonic() - started:.0f} s; assembling")
            recorded = self._assemble(destination, tasks)
            staging.remove()
        print(summary_table(recorded))
        if self.check is not None:
            print(self.check.text())
        print(f"{destination.root} written in {time.monotonic() - started:.0f} s")
        return destination.root

    def _is_done(self, destination: DemoDestination) -> bool:
        if self.config.overwrite or not destination.holds_dataset_of(self.recipe):
            return False
        print(f"{destination.root} is already recorded with these settings; nothing to do")
        return True

    def _attempts(self, task: str, outcomes: dict[int, bool]) -> TaskAttempts:
        num_wanted = self.config.episodes_per_task
        once_each = self.reset == "stored"
        num_attempts = num_wanted * (1 if once_each else self.config.max_attempts_per_episode)
        return TaskAttempts(task, num_wanted, num_attempts, outcomes, makes_every_attempt=once_each)

    def _assemble(
        self, destination: DemoDestination, tasks: Sequence[TaskAttempts]
    ) -> dict[str, RecordedTask]:
        """Write the dataset from its staged episodes under a temporary name, then give it its own.

        Tasks come in their order, and the episodes of a task in that of its attempts.
        """
        destination.remove_partial()
        episodes: list[RecordedEpisode] = []
        signals: list[Signals] = []
        recorded: dict[str, RecordedTask] = {}
        kept = [(task, attempt) for task in tasks for attempt in task.kept]
        name, form = self.config.dataset_name, self.form
        with new_dataset(
            name, destination.partial, form.fps, form.features, form.robot_type
        ) as append:
            for task, attempt in tqdm(kept, desc="assembling", unit="episode"):
                episode = destination.staging.load(task.task, attempt)
                append(episode)
                signals.append(episode.signals)
                initial_state = self.recorder.initial_state(task.task, attempt)
                if self.check is not None:
                    self.check.add(episode, initial_state)
                index, length = len(episodes), episode.num_frames
                episodes.append(RecordedEpisode(index, task.task, attempt, initial_state, length))
                before = recorded.get(task.task)
                recorded[task.task] = RecordedTask(
                    instruction=episode.instruction,
                    num_episodes=len(task.kept),
                    num_discarded=task.num_discarded,
                    num_frames=length + (before.num_frames if before else 0),
                )
        sections = {
            "suite": {"name": self.suite.name},
            "writer": {"lerobot": lerobot_version()},
            "layouts": layouts_record(self.reset),
        }
        if self.check is not None:
            sections["checks"] = self.check.record()
        write_signals(destination.partial, signals)
        write_recording(destination.partial, self.recipe, sections, recorded, episodes)
        destination.publish()
        return recorded
