"""Outages: for a stretch of each episode the policy's cameras are dark, and the robot goes on.

The recordings that a policy is trained on stay whole: it is its input in closed loop that goes
dark. The robot's state is still seen.
"""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.rollouts.shared_images import image_shapes
from benchmarks.suite import EpisodeSpec, Observation
from world_modality.system.errors import InvalidInputError

# Keeps these draws apart from the layouts', which are seeded by the same numbers.
_STREAM = zlib.crc32(b"outage")


@dataclass(frozen=True)
class Outage:
    """How long the cameras are dark, and from which frames on.

    Attributes:
        length: in frames.
        first_start: the earliest frame that it may begin in, from 1.
        last_start: the latest one.
    """

    length: int
    first_start: int
    last_start: int

    def drawn_for(self, episodes: Sequence[EpisodeSpec]) -> list[EpisodeSpec]:
        """Return the episodes with an outage each, drawn from seed, task and number alone.

        Every frame from `first_start` to `last_start` is equally likely. An episode's outages of
        two lengths begin in the same frame, so that a longer one contains the shorter.

        Raises:
            InvalidInputError: it may last longer than an episode.
        """
        for episode in episodes:
            if self.last_start + self.length > episode.max_steps:
                raise InvalidInputError(
                    f"--outage_length {self.length} from frame {self.last_start} on ends after "
                    f"the {episode.max_steps} steps of an episode of {episode.task}; give a "
                    "shorter one, an earlier --outage_start, or more --max_steps"
                )
        return [
            dataclasses.replace(
                episode, outage_start=self._start(episode), outage_length=self.length
            )
            for episode in episodes
        ]

    def _start(self, episode: EpisodeSpec) -> int:
        words = [episode.seed, _STREAM, zlib.crc32(episode.task.encode()), episode.episode]
        rng = np.random.default_rng(words)
        return int(rng.integers(self.first_start, self.last_start, endpoint=True))

    def record(self) -> dict[str, object]:
        """Return it as JSON."""
        return {"length": self.length, "start": [self.first_start, self.last_start]}

    def __str__(self) -> str:
        where = (
            f"frame {self.first_start}"
            if self.first_start == self.last_start
            else f"a frame drawn in {self.first_start} to {self.last_start}"
        )
        return f"the cameras are dark for {self.length} frames from {where} on"


def black_images(seen: Mapping[str, np.ndarray]) -> Observation:
    """Return a black image for each one that an observation has."""
    return {key: np.zeros(shape, dtype=np.uint8) for key, shape in image_shapes(seen)}


def dimmed(observation: Observation) -> Observation:
    """Return an observation with its images at a quarter of their brightness, for films."""
    images = {key for key, _ in image_shapes(observation)}
    return {
        key: value // np.uint8(4) if key in images else value for key, value in observation.items()
    }
