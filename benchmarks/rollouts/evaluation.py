"""Rolls checkpoints out in the same episodes of a suite, and reports.

    <out_dir>/config.json       the flags
    <out_dir>/results.jsonl     one line per finished episode (see `RolloutResult`)
    <out_dir>/summary.json      success rates, comparisons, throughput
    <out_dir>/summary.md        the same as tables
    <out_dir>/summary.png       success of each task
    <out_dir>/videos/           with --save_videos

An interrupted evaluation leaves the results of the finished episodes, and goes on with --resume.
"""

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import Progress, roll_out
from benchmarks.rollouts.report import Report, compare, summarise
from benchmarks.rollouts.results import (
    EpisodeKey,
    ResultsFile,
    RolloutOrigin,
    RolloutResult,
    open_results,
    require_same_settings,
)
from benchmarks.rollouts.slot import EnvironmentSlot, environment_slots
from benchmarks.rollouts.videos import VideoFolder, remove_videos
from benchmarks.rollouts.worker import Outcome
from benchmarks.suite import EpisodeSpec, Suite
from world_modality.system.cli import write_config
from world_modality.system.errors import InvalidInputError, UserError

if TYPE_CHECKING:
    from benchmarks.rollouts.checkpoint_policy import CheckpointPolicy


def evaluate(
    suite: Suite,
    episodes: Sequence[EpisodeSpec],
    config: RolloutConfig,
    groups: Mapping[str, Sequence[str]] | None = None,
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
    with open_results(run.out_dir / "results.jsonl") as file:
        remaining = run.remaining(file)
        run.check_parity(remaining)
        if config.overwrite and not file.is_empty:
            file.clear()
            remove_videos(run.out_dir / "videos")
        write_config(config, run.out_dir / "config.json")
        throughput = run.roll_out(file, remaining)
        report = run.report(file.read(), groups or {}, throughput)
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
        from benchmarks.rollouts.checkpoint_policy import CheckpointPolicy

        self.suite, self.episodes, self.config = suite, episodes, config
        first = config.checkpoint[0]
        self.labels = checkpoint_labels(config.checkpoint)
        self.out_dir = config.out_dir or first.parent / f"rollouts_{suite.name}_{first.stem}"
        self.policies = [CheckpointPolicy.open(path, suite, config) for path in config.checkpoint]
        self.origins = [self._origin(policy) for policy in self.policies]
        for sha256, number in Counter(o.checkpoint_sha256 for o in self.origins).items():
            if number > 1:
                same = [o.checkpoint for o in self.origins if o.checkpoint_sha256 == sha256]
                raise InvalidInputError(f"{' and '.join(same)} are the same checkpoint")

    def remaining(self, file: ResultsFile) -> list[list[EpisodeSpec]]:
        """Return the episodes that each checkpoint still has to run, those in error among them."""
        done = self._finished(file)
        return [
            [e for e in self.episodes if (origin.checkpoint_sha256, e.task, e.episode) not in done]
            for origin in self.origins
        ]

    def check_parity(self, remaining: Sequence[Sequence[EpisodeSpec]]) -> None:
        """Compare this simulator with the recording of each checkpoint that has episodes to run."""
        if not self.config.check_parity:
            return
        from benchmarks.rollouts.parity.check import check_parity

        for path, policy, episodes in zip(
            self.config.checkpoint, self.policies, remaining, strict=True
        ):
            if episodes:
                # The cameras of the training, too: by them it tells that another one is seen.
                seen = (*policy.inputs.image_keys, *policy.inputs.trained_keys)
                keys = [key for key in self.suite.image_keys if key in seen]
                check_parity(path, self.suite.observing(keys), self.config)

    def roll_out(
        self, file: ResultsFile, remaining: Sequence[Sequence[EpisodeSpec]]
    ) -> dict[str, Any]:
        """Run what is left, one checkpoint after the other; return the throughput."""
        num_steps, started = 0, time.monotonic()
        num_slots = min(self.config.env_num, max(len(episodes) for episodes in remaining))
        unfinished = [index for index, episodes in enumerate(remaining) if episodes]
        # Environments render what the policy sees and nothing else.
        for keys, group in itertools.groupby(unfinished, self._image_keys):
            with environment_slots(self.suite.observing(keys), num_slots) as slots:
                for index in group:
                    num_steps += self._roll_out_one(index, remaining[index], slots, file)
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
        groups: Mapping[str, Sequence[str]],
        throughput: dict[str, Any],
    ) -> Report:
        """Summarise the selected episodes of every checkpoint."""
        wanted = {(episode.task, episode.episode) for episode in self.episodes}
        tasks = list(dict.fromkeys(episode.task for episode in self.episodes))
        chosen = [
            [
                result
                for result in results
                if result.checkpoint_sha256 == origin.checkpoint_sha256
                and (result.task, result.episode) in wanted
            ]
            for origin in self.origins
        ]
        labelled = zip(self.labels, self.origins, chosen, strict=True)
        pairs = itertools.combinations(zip(self.labels, chosen, strict=True), 2)
        return Report(
            suite=self.suite.name,
            notes=self._notes(tasks),
            checkpoints=tuple(
                summarise(label, origin, own, tasks, groups) for label, origin, own in labelled
            ),
            comparisons=tuple(compare(*one, *other) for one, other in pairs),
            throughput=throughput,
        )

    def _finished(self, file: ResultsFile) -> set[EpisodeKey]:
        if file.is_empty or self.config.overwrite:
            return set()
        if not self.config.resume:
            raise InvalidInputError(
                f"{file.path} holds results; --resume goes on with them, --overwrite deletes them, "
                "and another --out_dir leaves them alone"
            )
        earlier = file.read()
        require_same_settings(earlier, self.origins, self.episodes, file.path)
        return {result.key for result in earlier if result.success is not None}

    def _roll_out_one(
        self,
        index: int,
        episodes: Sequence[EpisodeSpec],
        slots: Sequence[EnvironmentSlot],
        file: ResultsFile,
    ) -> int:
        policy, label, origin = self.policies[index], self.labels[index], self.origins[index]
        videos = None
        if self.config.save_videos:
            folder, limit = self.out_dir / "videos" / label, self.config.videos_per_task
            videos = VideoFolder(folder, policy.inputs.image_keys, self.suite.fps, limit)
        num_done = len(self.episodes) - len(episodes)
        with closing(Progress(label, num_done, len(self.episodes))) as progress:

            def keep(outcome: Outcome) -> None:
                file.append(RolloutResult.of(origin, outcome))
                progress.show(outcome)

            try:
                batch_size = int(origin.policy["policy_batch_size"])
                roll_out(policy, episodes, slots, keep, videos, batch_size)
            except KeyboardInterrupt:
                progress.say(f"{file.path} has the finished episodes; --resume goes on")
                raise
        return progress.num_steps

    def _image_keys(self, index: int) -> tuple[str, ...]:
        return self.policies[index].inputs.image_keys

    def _origin(self, policy: "CheckpointPolicy") -> RolloutOrigin:
        return RolloutOrigin(
            checkpoint=str(policy.path),
            checkpoint_sha256=policy.sha256,
            model_type=policy.model_type,
            policy=policy.record(),
            suite=self.suite.name,
            **self.suite.record(),
            world_corruption=str(self.config.corruption),
        )

    def _notes(self, tasks: Sequence[str]) -> tuple[str, ...]:
        notes = [
            f"{len(self.episodes)} episodes of {len(tasks)} tasks, the same for each checkpoint; "
            f"seed {self.config.seed}; 95 % Wilson intervals",
            "an episode that ended in an error is counted apart: it is no failure of the policy",
        ]
        if self.config.wrong_instruction:
            notes.append("control: in every task the policy reads another task's instruction")
        if str(self.config.corruption) != "none":
            notes.append(f"the world token is corrupted: {self.config.corruption}")
        for label, policy in zip(self.labels, self.policies, strict=True):
            notes += [f"{label}: {note}" for note in policy.notes]
        return tuple(notes)


def with_wrong_instructions(episodes: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
    """Give each task's episodes the instruction of the next task that has another one.

    It is the control that asks whether a policy listens.

    Raises:
        InvalidInputError: all tasks have the same instruction.
    """
    right = {episode.task: episode.instruction for episode in episodes}
    texts = list(right.values())
    if len(set(texts)) < 2:
        raise InvalidInputError(
            "--wrong_instruction gives each task another selected task's instruction, but all "
            f"selected tasks have {texts[0]!r}; select more of them with --tasks"
        )
    wrong = {
        task: next(text for text in texts[position + 1 :] + texts[:position] if text != own)
        for position, (task, own) in enumerate(right.items())
    }
    return [dataclasses.replace(episode, instruction=wrong[episode.task]) for episode in episodes]


def checkpoint_labels(paths: Sequence[Path]) -> list[str]:
    """Name checkpoints by their file, with as many parent folders as it takes to be distinct.

    Raises:
        InvalidInputError: a path is given twice.
    """
    parts = [path.absolute().with_suffix("").parts[1:] for path in paths]
    for depth in range(1, max(len(one) for one in parts) + 1):
        labels = ["/".join(one[-depth:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise InvalidInputError(
        f"--checkpoint names a file twice: {' '.join(str(path) for path in paths)}"
    )
