"""The rollout loop: many environments, one policy or several, no suite.

A policy is asked about episodes that wait for actions right now, at most half of them at a time:
the others go on with physics and rendering meanwhile, and once out of step they stay so. Several
policies share the environments: where one has no episode left another's goes on, and a simulator
that is open plays every policy's episodes of its task. What happens in an episode depends neither
on the number of environments nor on timing nor on other policies, as long as the policy and the
simulator keep what `RolloutPolicy` and `Simulator` promise.
"""

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from benchmarks.rollouts.slot import EnvironmentSlot
from benchmarks.rollouts.videos import VideoFolder
from benchmarks.rollouts.worker import Outcome, Waiting
from benchmarks.suite import EpisodeSpec, Observation
from world_modality.acting.episode_memory import is_observed


@dataclass(frozen=True)
class Query:
    """An episode that waits for its next actions.

    Attributes:
        memory: what the policy's `begin` returned for the episode.
        step: number of the frame that is acted in, from 0.
        frames: the frames observed since the last query, by their number; the newest is `step`.
    """

    memory: Any
    step: int
    frames: Mapping[int, Observation]


@runtime_checkable
class RolloutPolicy(Protocol):
    """Acts in many episodes at once.

    An episode's actions do not depend on which other episodes are asked about in the same call.
    """

    @property
    def n_action_steps(self) -> int:
        """Actions that a query is answered with; they come at frames 0, n, 2n and so on."""

    @property
    def observed_lags(self) -> tuple[int, ...]:
        """How many frames before a query the frames lie that it needs; 0 is among them.

        Frames before the episode's start are not asked for. No other frames are rendered.
        """

    def begin(self, episode: EpisodeSpec) -> Any:
        """Return the memory of a new episode, which only this policy looks into."""

    def act(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Return for each query float32 actions [n, A], in the simulator's units."""

    def record(self) -> dict[str, Any]:
        """Return what decides its actions, as JSON, for the results."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A policy and the episodes that it is rolled out in.

    Attributes:
        policy: acts in all of them.
        episodes: in any order; an environment stays on a task as long as there are episodes of it.
        on_outcome: called in this process as episodes end, in no particular order.
        videos: where to film every episode, if anywhere.
        batch_size: observations that the policy computes at a time, filled up or not; asking about
            fewer than that saves nothing.
        sees_in_the_dark: give the policy the images of an outage's frames, which it hides itself.
    """

    policy: RolloutPolicy
    episodes: Iterable[EpisodeSpec]
    on_outcome: Callable[[Outcome], None]
    videos: VideoFolder | None = None
    batch_size: int = 1
    sees_in_the_dark: bool = False


def roll_out(
    policy: RolloutPolicy,
    episodes: Iterable[EpisodeSpec],
    slots: Sequence[EnvironmentSlot],
    on_outcome: Callable[[Outcome], None],
    videos: VideoFolder | None = None,
    batch_size: int = 1,
    sees_in_the_dark: bool = False,
) -> None:
    """Run every episode of one policy once; the arguments are those of `Assignment`."""
    own = Assignment(policy, episodes, on_outcome, videos, batch_size, sees_in_the_dark)
    roll_out_together([own], slots)


def roll_out_together(assignments: Sequence[Assignment], slots: Sequence[EnvironmentSlot]) -> None:
    """Run every episode once; an episode whose environment crashes, dies or hangs is an error.

    Args:
        assignments: one a policy.
        slots: idle environments, which are idle again afterwards.

    Raises:
        UserError: an environment cannot run before the user has mended something.
        ValueError: a policy's answer has the wrong shape.
    """
    queue = EpisodeQueue(assignments)
    max_queries = max([(len(slots) + 1) // 2, *(one.batch_size for one in assignments)])
    playing_for: dict[EnvironmentSlot, Assignment] = {}
    waiting: deque[tuple[EnvironmentSlot, Query]] = deque()
    _begin_episodes(queue, slots, playing_for)
    while any(slot.episode is not None for slot in slots):
        unanswered = [slot for slot, _ in waiting]
        playing = [s for s in slots if s.episode is not None and s not in unanswered]
        for slot, answer in _answers(playing, wait_for_one=not waiting):
            if isinstance(answer, Waiting):
                waiting.append((slot, Query(slot.memory, answer.step, answer.frames)))
            else:
                playing_for[slot].on_outcome(answer)
        _begin_episodes(queue, slots, playing_for)
        asked = [waiting.popleft() for _ in range(min(max_queries, len(waiting)))]
        for assignment in dict.fromkeys(playing_for[slot] for slot, _ in asked):
            own = [(slot, query) for slot, query in asked if playing_for[slot] is assignment]
            _act(assignment.policy, own)


class EpisodeQueue:
    """Episodes by task, handed out so that simulators are seldom built again."""

    def __init__(self, assignments: Iterable[Assignment]) -> None:
        self._by_task: dict[str, deque[tuple[Assignment, EpisodeSpec]]] = {}
        for assignment in assignments:
            for episode in assignment.episodes:
                self._by_task.setdefault(episode.task, deque()).append((assignment, episode))

    def take(
        self, open_task: str | None, tasks_elsewhere: Sequence[str | None]
    ) -> tuple[Assignment, EpisodeSpec] | None:
        """Return the next episode for an environment and whose it is, or None when there is none.

        Args:
            open_task: whose simulator it has open; an episode of this task comes first.
            tasks_elsewhere: what the other environments have open; of other tasks the one comes
                first that has most episodes for each environment that would share it.
        """
        left = {task: episodes for task, episodes in self._by_task.items() if episodes}
        if not left:
            return None
        if open_task is not None and open_task in left:
            return left[open_task].popleft()
        task = max(left, key=lambda name: len(left[name]) / (1 + tasks_elsewhere.count(name)))
        return left[task].popleft()


def _begin_episodes(
    queue: EpisodeQueue,
    slots: Sequence[EnvironmentSlot],
    playing_for: dict[EnvironmentSlot, Assignment],
) -> None:
    for slot in slots:
        if slot.episode is not None:
            continue
        elsewhere = [other.open_task for other in slots if other is not slot]
        taken = queue.take(slot.open_task, elsewhere)
        if taken is None:
            return
        assignment, episode = taken
        playing_for[slot] = assignment
        slot.begin(
            episode,
            assignment.policy.begin(episode),
            assignment.videos,
            assignment.sees_in_the_dark,
        )


def _answers(
    playing: Sequence[EnvironmentSlot], wait_for_one: bool
) -> list[tuple[EnvironmentSlot, Waiting | Outcome]]:
    if not playing:
        return []
    time_left = max(0.0, min(slot.seconds_left for slot in playing)) if wait_for_one else 0.0
    ready = wait([slot.connection for slot in playing], time_left)
    answers: list[tuple[EnvironmentSlot, Waiting | Outcome]] = []
    for slot in playing:
        if slot.connection in ready:
            answers.append((slot, slot.receive()))
        elif slot.seconds_left <= 0:
            answers.append((slot, slot.give_up()))
    return answers


def _act(policy: RolloutPolicy, waiting: Sequence[tuple[EnvironmentSlot, Query]]) -> None:
    answers = policy.act([query for _, query in waiting])
    for (slot, query), actions in zip(waiting, answers, strict=True):
        if actions.ndim != 2 or len(actions) != policy.n_action_steps:
            raise ValueError(
                f"the policy answers with {policy.n_action_steps} actions, got an array of shape "
                f"{actions.shape}"
            )
        ahead = range(query.step + 1, query.step + policy.n_action_steps + 1)
        slot.act(actions, frozenset(frame for frame in ahead if is_observed(frame, policy)))


class Progress:
    """Shows how many episodes are done and how they ended.

    Attributes:
        num_steps: environment steps of the outcomes shown so far.
    """

    def __init__(self, label: str, num_done: int, num_episodes: int) -> None:
        self.num_steps = 0
        self._counts: Counter[bool | None] = Counter()
        self._bar = tqdm(total=num_episodes, initial=num_done, desc=label, unit="episode")

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def show(self, outcome: Outcome, policy: str) -> None:
        """Count an episode that has ended; name it and its policy if it was in an error."""
        self.num_steps += outcome.num_steps
        self._counts[outcome.success] += 1
        if outcome.error is not None:
            name = f"{outcome.episode.task} episode {outcome.episode.episode}"
            self.say(f"{policy}: error in {name}: {outcome.error.splitlines()[0]}")
        solved, failed, errors = (self._counts[ending] for ending in (True, False, None))
        text = f"solved {solved}/{solved + failed}" + (f", errors {errors}" if errors else "")
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update()

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._bar.write(message, file=sys.stderr)
