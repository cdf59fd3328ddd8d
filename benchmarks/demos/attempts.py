"""Makes attempts in worker processes until every task has its episodes.

The kept episodes of a task are its first solved attempts in the order of their numbers, and
exactly the attempts up to the last kept one are made: the outcome depends neither on the number
of workers nor on who finishes first.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from tqdm import tqdm

from benchmarks.demos.destination import DemoStaging
from benchmarks.demos.episode import DemoEpisode
from world_modality.system.errors import InvalidInputError, UserError

RecordAttempt = Callable[[str, int], DemoEpisode | None]
"""Plays a task's attempt of a number; returns the episode, a function of both alone, or None if it
was not solved. It is sent to worker processes."""


class AttemptCrashError(RuntimeError):
    """A worker raised or died in an attempt, which is not counted as failed."""


@dataclass
class TaskAttempts:
    """What is known of a task's attempts.

    With `makes_every_attempt` all `max_attempts` are made, and every solved one is kept.
    """

    task: str
    num_wanted: int
    max_attempts: int
    outcomes: dict[int, bool]
    running: set[int] = field(default_factory=set)
    makes_every_attempt: bool = False

    @property
    def kept(self) -> list[int]:
        """Numbers of the attempts to keep: the first `num_wanted` solved ones."""
        return sorted(attempt for attempt, solved in self.outcomes.items() if solved)[
            : self.num_wanted
        ]

    @property
    def num_discarded(self) -> int:
        """Failed attempts before the last kept one, or all of them where every attempt is made."""
        last = self.max_attempts if self.makes_every_attempt else max(self.kept, default=-1)
        return sum(not solved and attempt < last for attempt, solved in self.outcomes.items())

    @property
    def num_done(self) -> int:
        """How many of the `num_wanted` episodes need no further attempt."""
        return len(self.outcomes) if self.makes_every_attempt else len(self.kept)

    def next_attempt(self) -> int | None:
        """Return the lowest attempt that is certainly needed, or None while there is none.

        A running attempt counts as solved here: nothing is recorded that may turn out superfluous.

        Raises:
            InvalidInputError: the attempts are used up.
        """
        num_solved = 0
        for attempt in range(self.max_attempts):
            if num_solved == self.num_wanted:
                return None
            if attempt not in self.outcomes and attempt not in self.running:
                return attempt
            num_solved += self.outcomes.get(attempt, True)
        enough = 1 if self.makes_every_attempt else self.num_wanted
        if num_solved >= enough or self.running:
            return None
        raise InvalidInputError(
            f"the expert solved {self.task} in {num_solved} of {self.max_attempts} attempts, "
            f"{self.num_wanted} episodes are wanted; raise --max_attempts_per_episode to continue, "
            "or start again (--overwrite) with more --max_steps, less --action_noise, or other "
            "--tasks"
        )


class _Worker:
    """One process in an executor of its own, so that a process that dies names its attempt."""

    def __init__(self, record: RecordAttempt, staging: DemoStaging) -> None:
        context = multiprocessing.get_context("spawn")  # rendering contexts do not survive a fork
        theirs, self._lifeline = context.Pipe(duplex=False)
        self._executor = ProcessPoolExecutor(
            max_workers=1,
            mp_context=context,
            initializer=_start_worker,
            initargs=(record, staging, theirs),
        )
        self.task: TaskAttempts | None = None
        self.attempt = -1
        self.future: Future[bool] | None = None

    def submit_next(self, tasks: Sequence[TaskAttempts]) -> None:
        """Start the attempt that is needed next, if the process is idle and there is one."""
        if self.future is not None:
            return
        # Staying on a task, or taking one that no other worker is on, saves building simulators.
        for task in sorted(tasks, key=lambda one: (one is not self.task, bool(one.running))):
            attempt = task.next_attempt()
            if attempt is not None:
                self.task, self.attempt = task, attempt
                task.running.add(attempt)
                self.future = self._executor.submit(_record_attempt, task.task, attempt)
                return

    def collect(self) -> None:
        """Take the finished attempt's outcome."""
        assert self.future is not None
        assert self.task is not None
        name = f"{self.task.task} attempt {self.attempt}"
        try:
            solved = self.future.result()
        except UserError:
            raise
        except BrokenProcessPool as error:
            raise AttemptCrashError(f"the process that recorded {name} died") from error
        except Exception as error:
            raise AttemptCrashError(f"recording {name} crashed: {error!r}") from error
        self.task.running.discard(self.attempt)
        self.task.outcomes[self.attempt] = solved
        self.future = None

    def abandon(self) -> None:
        """End the process in the middle of its attempt, which is made again another time."""
        self._lifeline.close()

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()


def record_attempts(
    record: RecordAttempt, staging: DemoStaging, tasks: Sequence[TaskAttempts], num_workers: int
) -> None:
    """Record into `staging` until every task has its episodes; `tasks` holds the outcomes then.

    Attempts whose outcomes `tasks` holds already are not made again.

    Raises:
        InvalidInputError: a task's attempts are used up.
        AttemptCrashError: a worker raised or died; the message names task and attempt.
    """
    if all(task.next_attempt() is None for task in tasks):
        return
    num_staged = sum(task.num_done for task in tasks)
    if num_staged:
        print(f"continuing with {num_staged} episodes recorded before")
    num_wanted = sum(task.num_wanted for task in tasks)
    workers = [_Worker(record, staging) for _ in range(num_workers)]
    try:
        with tqdm(total=num_wanted, desc="recording", unit="episode", initial=num_staged) as bar:
            while True:
                for worker in workers:
                    worker.submit_next(tasks)
                pending = {one.future: one for one in workers if one.future is not None}
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    pending[future].collect()
                bar.update(sum(task.num_done for task in tasks) - bar.n)
    except KeyboardInterrupt:
        for worker in workers:  # an attempt may take minutes
            worker.abandon()
        raise
    finally:
        for worker in workers:
            worker.close()


_record: RecordAttempt
_staging: DemoStaging


def _start_worker(record: RecordAttempt, staging: DemoStaging, lifeline: Connection) -> None:
    global _record, _staging
    _record, _staging = record, staging
    # Ctrl-C reaches the parent too, which ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_lifeline, args=(lifeline,), daemon=True).start()


def _exit_with_lifeline(lifeline: Connection) -> None:
    # It ends when the parent closes its side or dies; an executor's process would wait for ever.
    with suppress(EOFError):
        lifeline.recv()
    os._exit(1)


def _record_attempt(task: str, attempt: int) -> bool:
    episode = _record(task, attempt)
    _staging.save(task, attempt, episode)
    return episode is not None
