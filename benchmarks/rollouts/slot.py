"""The policy's side of an environment: a process that plays episodes, replaced when it is lost."""

import dataclasses
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import numpy as np
from jaxtyping import Float32

from benchmarks.rollouts.shared_images import SharedImages
from benchmarks.rollouts.videos import VideoFolder
from benchmarks.rollouts.worker import (
    Act,
    Answer,
    Begin,
    Command,
    Crashed,
    Outcome,
    Refused,
    Waiting,
    serve,
)
from benchmarks.suite import EpisodeSpec, Observation, Suite
from world_modality.system.errors import UserError

ANSWER_TIME_LIMIT_S = 600.0
"""What takes longer hangs. Building a simulator and playing a chunk of actions take seconds."""

_END_TIME_LIMIT_S = 5.0


class EnvironmentSlot:
    """Runs one episode at a time.

    Attributes:
        episode: the running episode; None while idle.
        memory: what the policy keeps about it.
        step: the frame it was at when last heard of.
        open_task: the task whose simulator is open, if any.
    """

    def __init__(self, suite: Suite, time_limit_s: float = ANSWER_TIME_LIMIT_S) -> None:
        self._suite = suite
        self._time_limit_s = time_limit_s
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None
        self._asked = self._begun = 0.0
        self._images = SharedImages()
        self._first_frame: Observation = {}
        self.episode: EpisodeSpec | None = None
        self.memory: Any = None
        self.step = 0
        self.open_task: str | None = None

    @property
    def connection(self) -> Connection:
        """Becomes readable when there is an answer, or the process has died."""
        assert self._connection is not None, "there is no process before the first episode"
        return self._connection

    @property
    def seconds_left(self) -> float:
        """Time until the running command counts as hanging."""
        return self._asked + self._time_limit_s - time.monotonic()

    def begin(
        self,
        episode: EpisodeSpec,
        memory: Any,
        videos: VideoFolder | None,
        sees_in_the_dark: bool = False,
    ) -> None:
        """Start an episode, and a process for it where there is none."""
        if self._process is None:
            self._start_process()
        self.episode, self.memory, self.step = episode, memory, 0
        self.open_task = episode.task
        self._begun = time.monotonic()
        self._send(Begin(episode, videos, sees_in_the_dark))

    def act(self, actions: Float32[np.ndarray, "n A"], observed: frozenset[int]) -> None:
        """Let the episode go on with these actions."""
        self._images.make_room(self._first_frame, len(observed))
        self._send(Act(actions, observed, self._images.block))

    def receive(self) -> Waiting | Outcome:
        """Return the answer to the last command; after an outcome the slot is idle.

        Where the environment crashed, or its process died, the episode ends in an error.

        Raises:
            UserError: the environment cannot run before the user has mended something.
        """
        try:
            answer: Answer = self.connection.recv()
        except (EOFError, OSError):  # OSError: died in the middle of a message
            return self._end_in_error(f"the environment's process died ({self._ending()})")
        if isinstance(answer, Refused):
            raise UserError(answer.message)
        if isinstance(answer, Crashed):
            return self._end_in_error(answer.error)
        if isinstance(answer, Outcome):
            self.episode = self.memory = None  # the simulator stays open
            return answer
        self.step = answer.step
        return self._with_images(answer)

    def give_up(self) -> Outcome:
        """End the episode of an environment that hangs, in an error."""
        return self._end_in_error(f"the environment did not answer within {self._time_limit_s:g} s")

    def close(self) -> None:
        """Become idle and end the process, whatever it is doing."""
        self.episode = self.memory = self.open_task = None
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return
        self._images.close()
        process.terminate()
        process.join(_END_TIME_LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()
        connection.close()

    def _end_in_error(self, error: str) -> Outcome:
        assert self.episode is not None
        seconds = time.monotonic() - self._begun
        outcome = Outcome(self.episode, None, self.step, seconds, error)
        self.close()  # the next episode gets a new process
        return outcome

    def _start_process(self) -> None:
        context = multiprocessing.get_context("spawn")  # rendering contexts do not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._suite), daemon=True)
        # Ctrl-C reaches the whole process group. A process inherits what is blocked when it
        # starts: this one ends when its parent says so. Here the signal only waits. Started along
        # with the first process, multiprocessing's resource tracker would unblock it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def _with_images(self, answer: Waiting) -> Waiting:
        """Return the answer with all of its images, which later commands leave alone."""
        if answer.step == 0:
            self._first_frame = answer.frames[0]
        if not answer.shares_images:
            return answer
        frames = {
            number: {**vectors, **self._images.read(index)}
            for index, (number, vectors) in enumerate(answer.frames.items())
        }
        return dataclasses.replace(answer, frames=frames, shares_images=False)

    def _send(self, command: Command) -> None:
        self._asked = time.monotonic()
        with suppress(BrokenPipeError):  # it has died, which `receive` reports
            self.connection.send(command)

    def _ending(self) -> str:
        assert self._process is not None
        self._process.join(_END_TIME_LIMIT_S)
        code = self._process.exitcode
        if code is None:
            return "it closed its connection"
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


@contextmanager
def environment_slots(
    suite: Suite, num_slots: int, time_limit_s: float = ANSWER_TIME_LIMIT_S
) -> Iterator[list[EnvironmentSlot]]:
    """Yield idle slots and end their processes afterwards, however that comes about."""
    slots = [EnvironmentSlot(suite, time_limit_s) for _ in range(num_slots)]
    try:
        yield slots
    finally:
        for slot in slots:
            slot.close()
