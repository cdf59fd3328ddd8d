"""The environment's side of a rollout: a process that plays the episodes it is sent.

It answers each command with one message. Only the frames that were asked for are observed, since
rendering is most of the cost of a frame; a video needs them all.
"""

import multiprocessing
import os
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import Float32

from benchmarks.rollouts.outage import black_images, dimmed
from benchmarks.rollouts.shared_images import AttachedImages, ImageBlock
from benchmarks.rollouts.videos import EpisodeVideo, VideoFolder
from benchmarks.suite import EpisodeSpec, Observation, Simulator, Suite
from world_modality.system.errors import UserError

_NUM_TRACEBACK_ENTRIES = 3


@dataclass(frozen=True)
class Begin:
    """Command: start this episode, film it if it is to be filmed, and tell what is seen first.

    In an outage black images are seen; with `sees_in_the_dark` it is the policy that has to hide
    what is there.
    """

    episode: EpisodeSpec
    videos: VideoFolder | None
    sees_in_the_dark: bool = False


@dataclass(frozen=True)
class Act:
    """Command: execute float32 actions [n, A] and tell what is seen at the frames `observed`.

    Their images go into `images`, one frame behind the other; None leaves them in the answer.
    """

    actions: Float32[np.ndarray, "n A"]
    observed: frozenset[int]
    images: ImageBlock | None = None


@dataclass(frozen=True)
class Waiting:
    """Answer: the episode goes on at frame `step`, with the frames observed since the last.

    With `shares_images` the frames lack their images, which lie in the command's `images`.
    """

    step: int
    frames: dict[int, Observation]
    shares_images: bool = False


@dataclass(frozen=True)
class Outcome:
    """Answer: the episode is over.

    Attributes:
        episode: which one.
        success: whether it was solved; None if it ended in an error.
        num_steps: executed actions; for an error, as far as is known.
        seconds: since the episode's reset, waiting for actions included; for an error, since it
            was sent to its environment.
        error: what went wrong, if something did.
    """

    episode: EpisodeSpec
    success: bool | None
    num_steps: int
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Crashed:
    """Answer: the episode ended in an error, which says nothing about the policy's success."""

    error: str


@dataclass(frozen=True)
class Refused:
    """Answer: no episode can run before the user has mended something."""

    message: str


Command = Begin | Act
Answer = Waiting | Outcome | Crashed | Refused


def serve(connection: Connection, suite: Suite) -> None:
    """Answer commands until the other side is gone or an episode has crashed.

    After a crash the process ends: nothing of the broken simulator is left for later episodes.
    """
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    # Mesa's software renderer, where it is one, would start as many threads as there are cores in
    # each of as many processes; drawing in the calling thread gives the same pixels sooner.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    environment = Environment(suite)
    while True:
        try:
            command = connection.recv()
        except EOFError:
            return
        answer = _answer(environment, command)
        connection.send(answer)
        if isinstance(answer, Crashed | Refused):
            return


class Environment:
    """Plays one episode after the other; the simulator stays open while the task is the same."""

    def __init__(self, suite: Suite) -> None:
        self._suite = suite
        self._simulator: Simulator | None = None
        self._episode: EpisodeSpec | None = None
        self._video: EpisodeVideo | None = None
        self._images = AttachedImages()
        self._black: Observation = {}
        self._sees_in_the_dark = False
        self._step = 0
        self._started = 0.0

    def begin(self, command: Begin) -> Waiting:
        """Start an episode; frame 0 is always observed."""
        simulator = self._open(command.episode.task)
        self._episode, self._step, self._started = command.episode, 0, time.monotonic()
        videos = command.videos
        self._video = None if videos is None else videos.begin(command.episode)
        simulator.reset(command.episode.initial_state)
        observation = simulator.observe()
        self._black, self._sees_in_the_dark = black_images(observation), command.sees_in_the_dark
        if self._video is not None:
            self._video.add(observation)
        return Waiting(0, {0: observation})

    def act(self, command: Act) -> Waiting | Outcome:
        """Execute actions one by one, up to the first that solves the task or the last allowed."""
        assert self._simulator is not None, "an episode begins before it acts"
        assert self._episode is not None, "an episode begins before it acts"
        frames: dict[int, Observation] = {}
        for action in command.actions:
            solved = self._simulator.step(action)
            self._step += 1
            is_over = solved or self._step == self._episode.max_steps
            is_asked_for = self._step in command.observed and not is_over
            if is_asked_for or self._video is not None:
                observation = self._observed(self._simulator)
                if is_asked_for and command.images is not None:
                    observation = self._images.write(command.images, len(frames), observation)
                if is_asked_for:
                    frames[self._step] = observation
            if is_over:
                if self._video is not None:
                    self._video.finish(solved)
                seconds = time.monotonic() - self._started
                return Outcome(self._episode, solved, self._step, seconds, None)
        return Waiting(self._step, frames, shares_images=command.images is not None)

    def _observed(self, simulator: Simulator) -> Observation:
        """Return what the policy sees now, and film it; a film shows the dark dimmed."""
        assert self._episode is not None, "an episode begins before it is observed"
        is_dark = self._step in self._episode.dark_frames
        if is_dark and self._video is None and not self._sees_in_the_dark:
            return {**self._black, **simulator.observe_vectors()}
        observation = simulator.observe()
        if self._video is not None:
            self._video.add(dimmed(observation) if is_dark else observation)
        return (
            {**observation, **self._black}
            if is_dark and not self._sees_in_the_dark
            else observation
        )

    def abandon(self) -> None:
        """Remove what a crashed episode leaves on the disk."""
        if self._video is not None:
            self._video.discard()

    def _open(self, task: str) -> Simulator:
        if self._simulator is None or self._simulator.task != task:
            if self._simulator is not None:
                self._simulator.close()
                self._simulator = None
            self._simulator = self._suite.open(task)
        return self._simulator


def _answer(environment: Environment, command: Command) -> Answer:
    try:
        if isinstance(command, Begin):
            return environment.begin(command)
        return environment.act(command)
    except UserError as error:
        return Refused(str(error))
    except Exception as error:  # noqa: BLE001 - the one place where a crash becomes a record
        environment.abandon()
        entries = traceback.format_tb(error.__traceback__)[-_NUM_TRACEBACK_ENTRIES:]
        return Crashed(f"{type(error).__name__}: {error}\n{''.join(entries)}".rstrip())


def _exit_with_parent() -> None:
    # A simulator that hangs would outlive a killed parent.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
