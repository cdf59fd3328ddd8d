"""Which layout (start and goal positions) an episode gets: by seed, stream, task and number.

A layout's seed is drawn from `SeedSequence([seed, stream, crc32(task name), episode])`. The
streams keep the layouts of demonstrations and of evaluation apart under every seed, so that a
policy is never rolled out on a layout it was trained on. The task enters by its name: a layout
does not depend on which other tasks are selected, nor on the order in which the simulator's
library lists them.
"""

import zlib

import numpy as np

DEMONSTRATION_STREAM = 0
EVALUATION_STREAM = 1

SCHEME = {
    "stream": DEMONSTRATION_STREAM,
    "entropy": "SeedSequence([seed, stream, crc32(task), attempt])",
    "layout_seed": "generate_state(1, uint64)[0] >> 1",
    "streams": {"demonstrations": DEMONSTRATION_STREAM, "evaluation": EVALUATION_STREAM},
}
"""What a dataset's record says about its layouts."""


def layout_seed(seed: int, stream: int, task: str, episode: int) -> int:
    """Return the seed of one episode's layout, in [0, 2**63).

    Args:
        seed: the run's seed, not negative.
        stream: `DEMONSTRATION_STREAM` or `EVALUATION_STREAM`.
        task: the simulator's task name, such as `push-v3`.
        episode: number of the attempt or rollout within the task, from 0.
    """
    state = _sequence(seed, stream, task, episode).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def noise_generator(seed: int, stream: int, task: str, episode: int) -> np.random.Generator:
    """Return the generator of one episode's action noise, independent of its layout's."""
    return np.random.default_rng(_sequence(seed, stream, task, episode).spawn(1)[0])


def _sequence(seed: int, stream: int, task: str, episode: int) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, stream, zlib.crc32(task.encode()), episode])
