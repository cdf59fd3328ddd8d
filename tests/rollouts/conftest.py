import dataclasses

import pytest

from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.results import RolloutOrigin, RolloutResult
from benchmarks.rollouts.worker import Outcome
from tests.fixtures.rollout import point_config, point_episodes

ORIGIN = RolloutOrigin(
    checkpoint="logs_c/model_C.pt",
    checkpoint_sha256="c0ffee",
    model_type="C",
    policy={"n_action_steps": 4, "world": {"corrupt": "none"}},
    suite="point",
    versions={"point": "1.0"},
    gl_backend="egl",
    rendering={"size": [16, 17]},
    world_corruption="none",
)
EPISODES = point_episodes(num_episodes=3)


def result(number: int, success: bool | None = True, **changes) -> RolloutResult:
    error = "ZeroDivisionError: physics\n  line 1" if success is None else None
    outcome = Outcome(EPISODES[number], success, 12, 0.5, error)
    return dataclasses.replace(RolloutResult.of(ORIGIN, outcome), **changes)


@pytest.fixture
def config(tmp_path) -> RolloutConfig:
    """A run of one checkpoint that solves about half of the episodes."""
    return point_config(tmp_path)
