import os
import re
import signal
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

from benchmarks.rollouts.loop import roll_out
from benchmarks.rollouts.shared_images import AttachedImages, SharedImages
from benchmarks.rollouts.slot import environment_slots
from tests.fixtures.rollout import (
    IMAGE_KEY,
    PointPolicy,
    PointSimulator,
    PointSuite,
    point_episodes,
)


def drawn_observation(seed, height=5):
    rng = np.random.default_rng(seed)
    return {
        "observation.images.wrist": rng.integers(0, 256, (2, 3, 3), dtype=np.uint8),
        IMAGE_KEY: rng.integers(0, 256, (height, 4, 3), dtype=np.uint8),
        "observation.state": rng.normal(size=4).astype(np.float32),
    }


def is_free(name):
    try:
        memory = SharedMemory(name=name)
    except FileNotFoundError:
        return True
    memory.close()
    return False


@pytest.fixture
def images():
    shared = SharedImages()
    yield shared
    shared.close()


def test_frames_come_back_as_they_were_written(images):
    observations = [drawn_observation(seed) for seed in range(3)]
    images.make_room(observations[0], 3)
    writer = AttachedImages()
    rests = [writer.write(images.block, i, o) for i, o in enumerate(observations)]
    read = [{**rest, **images.read(i)} for i, rest in enumerate(rests)]
    writer.write(images.block, 0, observations[2])  # what was read is not what lies there
    for found, expected in zip(read, observations, strict=True):
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert list(rests[0]) == ["observation.state"]


def test_memory_is_made_again_only_when_it_does_not_fit(images):
    names = []
    for height, num_frames in ((5, 2), (5, 1), (5, 0), (5, 3), (6, 3)):
        images.make_room(drawn_observation(0, height), num_frames)
        names.append(images.block.name)
    assert names[0] == names[1] == names[2]
    assert len(set(names)) == 3
    assert [is_free(name) for name in names] == [True, True, True, True, False]


def test_an_observation_without_images_needs_no_memory(images):
    images.make_room({"observation.state": np.zeros(3, np.float32)}, 2)
    assert images.block is None


class GrowingSimulator(PointSimulator):
    def observe(self):
        observation = super().observe()
        image = observation[IMAGE_KEY]
        return {**observation, IMAGE_KEY: image[: 10 + self._step]}


@dataclass(frozen=True)
class GrowingSuite(PointSuite):
    """Its images grow with every step."""

    def open(self, task):
        return GrowingSimulator(task, self)


def test_an_episode_whose_images_change_their_shape_is_an_error_that_says_so():
    outcomes = []
    with environment_slots(GrowingSuite(), 1) as slots:
        roll_out(PointPolicy(), point_episodes(("left",), 1), slots, outcomes.append)
    (outcome,) = outcomes
    assert outcome.success is None
    message = r"uint8 images of observation\.image \[10, 17, 3\], now the simulator observes obs"
    assert re.search(message, outcome.error)


@pytest.mark.parametrize("task", ["crashing", "dying", "killed", "left"])
def test_memory_is_freed_however_the_environments_process_ends(task):
    names, outcomes = [], []

    class Watching(PointPolicy):
        def act(self, queries):
            (slot,) = slots
            if slot._images.block is not None:
                names.append(slot._images.block.name)
                assert not is_free(names[-1])
                if task == "killed":
                    os.kill(slot._process.pid, signal.SIGKILL)
            return super().act(queries)

    with environment_slots(PointSuite(), 1) as slots:
        policy = Watching(gain=0.1, n_action_steps=1)
        episodes = point_episodes(("left" if task == "killed" else task,), 1)
        roll_out(policy, episodes, slots, outcomes.append)
        assert (outcomes[0].error is None) == (task == "left")
        assert names
        assert all(map(is_free, names)) == (task != "left"), "a whole one keeps it for the next"
    assert all(map(is_free, names))
