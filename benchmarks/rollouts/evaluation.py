"""Rolls checkpoints out in the same episodes of a suite, and reports.

    <out_dir>/config.json       the flags
    <out_dir>/results.jsonl     one line per finished episode (see `RolloutResult`)
    <out_dir>/summary.json      success rates, comparisons, throughput
    <out_dir>/summary.md        the same as tables
    <out_dir>/summary.png       success of each task
    <out_dir>/videos/           with --save_videos

An interrupted evaluation leaves the results of the finished episodes, and goes on with --resume.
"""

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.rollouts.acting.instructions import with_wrong_instructions
from benchmarks.rollouts.comparison import compare
from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import Outcome, Progress, roll_out
from benchmarks.rollouts.report import Report
from benchmarks.rollouts.results import (
    EpisodeKey,
    ResultsFile,
    RolloutOrigin,
    RolloutResult,
    checkpoint_labels,
    default_out_dir,
    refuse_other_settings,
)
from benchmarks.rollouts.slot import EnvironmentSlot, environment_slots
from benchmarks.rollouts.suite import EpisodeSpec, Suite
from benchmarks.rollouts.summary import summarise
from benchmarks.rollouts.videos import VideoFolder, remove_videos
from world_modality.system.cli import write_config
from world_modality.system.errors import InvalidInputError, UserError

if TYPE_CHECKING:
    from benchmarks.rollouts.acting.checkpoint_policy import CheckpointPolicy

Groups = Mapping[str, Sequence[str]]


def evaluate(
    suite: Suite,
    episodes: Sequence[EpisodeSpec],
    config: RolloutConfig,
    groups: Groups | None = None,
) -> dict[str, Any]:
    """Roll every checkpoint out in the same episodes; print, write and return the summary.

    Args:
        suite: where to roll them out.
        episodes: at least one, distinct by task and number.
        config: the flags.
        groups: the suite's groups of tasks, over which it averages as well, if it has any.

    Raises:
        UserError: a checkpoint does not fit or fails the parity check, out_dir holds other results,
            the simulator cannot run, or every episode ended in an error.
        KeyboardInterrupt: interrupted; the results so far are on the disk.
    """
    if config.wrong_instruction:
        episodes = with_wrong_instructions(episodes)
    run = _Evaluation(suite, episodes, config)
    with ResultsFile(run.out_dir / "results.jsonl") as file:
        earlier = run.earlier_results(file)
        run.check_parity(earlier)
        run.clear_if_unwanted(file)
        write_config(config, run.out_dir / "config.json")
        throughput = run.roll_out(file, earlier)
        report = run.report(file.read(), groups, throughput)
    report.write(run.out_dir)
    print(report.markdown())
    print(f"{run.out_dir} written")
    if all(checkpoint.overall.num_episodes == 0 for checkpoint in report.checkpoints):
        raise UserError(
            f"every episode ended in an error; {run.out_dir / 'results.jsonl'} has their "
            "tracebacks, and --resume runs them again"
        )
    return report.record()


class _Evaluation:
    """The checkpoints, loaded, and what they are rolled out in."""

    def __init__(
        self, suite: Suite, episodes: Sequence[EpisodeSpec], config: RolloutConfig
    ) -> None:
        from benchmarks.rollouts.acting.checkpoint_policy import CheckpointPolicy

        self.suite, self.episodes, self.config = suite, episodes, config
        self.labels = checkpoint_labels(config.checkpoint)
        self.out_dir = config.out_dir or default_out_dir(suite, config.checkpoint[0])
        self.policies = [CheckpointPolicy.open(path, suite, config) for path in config.checkpoint]
        self.origins = [self._origin(policy) for policy in self.policies]
        for sha256, number in Counter(o.checkpoint_sha256 for o in self.origins).items():
            if number > 1:
                same = [o.checkpoint for o in self.origins if o.checkpoint_sha256 == sha256]
                raise InvalidInputError(f"{' and '.join(same)} are the same checkpoint")

    def earlier_results(self, file: ResultsFile) -> dict[EpisodeKey, RolloutResult]:
        """Return the results that stay, errors left out."""
        if file.is_empty or self.config.overwrite:
            return {}
        if not self.config.resume:
            raise InvalidInputError(
                f"{file.path} holds results; --resume goes on with them, --overwrite deletes them, "
                "and another --out_dir leaves them alone"
            )
        earlier = file.read()
        refuse_other_settings(earlier, self.origins, self.episodes, file.path)
        return {result.key: result for result in earlier if result.success is not None}

    def check_parity(self, earlier: Mapping[EpisodeKey, RolloutResult]) -> None:
        """Compare this simulator with the recording of each checkpoint that has episodes to run."""
        if not self.config.check_parity:
            return
        from benchmarks.rollouts.parity.check import check_parity

        for path, origin in zip(self.config.checkpoint, self.origins, strict=True):
            if self._remaining(origin, earlier):
                check_parity(path, self.suite, self.config)

    def clear_if_unwanted(self, file: ResultsFile) -> None:
        """Delete earlier results and videos under --overwrite."""
        if self.config.overwrite and not file.is_empty:
            file.clear()
            remove_videos(self.out_dir / "videos")

    def roll_out(
        self, file: ResultsFile, earlier: Mapping[EpisodeKey, RolloutResult]
    ) -> dict[str, Any]:
        """Run what is left, one checkpoint after the other; return the throughput."""
        remaining = [self._remaining(origin, earlier) for origin in self.origins]
        num_steps, started = 0, time.monotonic()
        num_slots = min(self.config.env_num, max(len(one) for one in remaining))
        with environment_slots(self.suite, num_slots) as slots:
            for index, episodes in enumerate(remaining):
                if episodes:
                    num_steps += self._roll_out_one(index, episodes, slots, file)
        seconds = time.monotonic() - started
        return {
            "num_steps": num_steps,
            "seconds": round(seconds, 3),
            "steps_per_second": num_steps / seconds if num_steps else None,
            "env_num": self.config.env_num,
        }

    def report(
        self,
        results: Sequence[RolloutResult],
        groups: Groups | None,
        throughput: dict[str, Any],
    ) -> Report:
        """Summarise the selected episodes of every checkpoint."""
        wanted = {(episode.task, episode.episode) for episode in self.episodes}
        by_checkpoint = [
            [
                result
                for result in results
                if result.checkpoint_sha256 == origin.checkpoint_sha256
                and (result.task, result.episode) in wanted
            ]
            for origin in self.origins
        ]
        tasks = list(dict.fromkeys(episode.task for episode in self.episodes))
        labelled = list(zip(self.labels, by_checkpoint, strict=True))
        return Report(
            suite=self.suite.name,
            notes=self._notes(),
            checkpoints=tuple(
                summarise(label, origin, own, tasks, groups)
                for (label, own), origin in zip(labelled, self.origins, strict=True)
            ),
            comparisons=tuple(
                compare(*one, *other) for one, other in itertools.combinations(labelled, 2)
            ),
            throughput=throughput,
        )

    def _roll_out_one(
        self,
        index: int,
        episodes: Sequence[EpisodeSpec],
        slots: Sequence[EnvironmentSlot],
        file: ResultsFile,
    ) -> int:
        policy, label = self.policies[index], self.labels[index]
        videos = None
        if self.config.save_videos:
            folder = self.out_dir / "videos" / label
            limit = self.config.videos_per_task
            videos = VideoFolder(folder, policy.inputs.image_key, self.suite.fps, limit)
        batch_size = int(self.origins[index].policy["policy_batch_size"])
        num_done = len(self.episodes) - len(episodes)
        with Progress(label, num_done, len(self.episodes)) as progress:

            def keep(outcome: Outcome) -> None:
                file.append(RolloutResult.of(self.origins[index], outcome))
                progress.show(outcome)

            try:
                roll_out(policy, episodes, slots, keep, videos, batch_size)
            except KeyboardInterrupt:
                progress.say(f"{file.path} has the finished episodes; --resume goes on")
                raise
        return progress.num_steps

    def _origin(self, policy: "CheckpointPolicy") -> RolloutOrigin:
        record = self.suite.record()
        return RolloutOrigin(
            checkpoint=str(policy.path),
            checkpoint_sha256=policy.sha256,
            model_type=policy.model_type,
            policy=policy.record(),
            suite=self.suite.name,
            versions=record["versions"],
            gl_backend=record["gl_backend"],
            rendering=record["rendering"],
            world_corruption=str(self.config.corruption),
        )

    def _remaining(
        self, origin: RolloutOrigin, earlier: Mapping[EpisodeKey, RolloutResult]
    ) -> list[EpisodeSpec]:
        return [
            episode
            for episode in self.episodes
            if (origin.checkpoint_sha256, episode.task, episode.episode) not in earlier
        ]

    def _notes(self) -> tuple[str, ...]:
        tasks = {episode.task for episode in self.episodes}
        notes = [
            f"{len(self.episodes)} episodes of {len(tasks)} tasks, the same for each checkpoint; "
            f"seed {self.config.seed}; 95 % Wilson intervals",
            "an episode that ended in an error is counted apart: it is no failure of the policy",
        ]
        if self.config.wrong_instruction:
            notes.append("control: every task is told another task's instruction")
        if str(self.config.corruption) != "none":
            notes.append(f"the world token is corrupted: {self.config.corruption}")
        for label, policy in zip(self.labels, self.policies, strict=True):
            notes += [f"{label}: {note}" for note in policy.notes]
        return tuple(notes)
