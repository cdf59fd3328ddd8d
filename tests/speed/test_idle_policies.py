import numpy as np
import pytest

from benchmarks.rollouts.loop import Query, RolloutPolicy, roll_out
from benchmarks.rollouts.slot import environment_slots
from benchmarks.speed.harness.idle_policies import (
    EveryFramePolicy,
    NoOpPolicy,
    RecordedPolicy,
    ReplayedPolicy,
)
from tests.fixtures.rollout import PointPolicy, PointSuite, point_episodes


def test_replayed_actions_give_the_recorded_episodes():
    episodes = point_episodes(("left", "right"), 2)
    recorded = RecordedPolicy(PointPolicy())
    replayed = ReplayedPolicy(recorded)
    assert isinstance(recorded, RolloutPolicy)
    assert isinstance(replayed, RolloutPolicy)
    ends = []
    with environment_slots(PointSuite(), 1) as slots:
        for policy in (recorded, replayed, NoOpPolicy(recorded, 1)):
            outcomes = []
            roll_out(policy, episodes, slots, outcomes.append)
            ends.append({o.episode: (o.success, o.num_steps, o.error) for o in outcomes})
    assert ends[0] == ends[1] != ends[2]
    assert all(np.any(actions) for actions in recorded.answers.values())
    (unknown,) = point_episodes(("far",), 1)
    with pytest.raises(KeyError, match="far"):
        replayed.act([Query(replayed.begin(unknown), 0, {})])


def test_a_policy_that_sees_every_frame_acts_as_it_does_on_its_own():
    seen: list[list[int]] = []

    class Watched(PointPolicy):
        def act(self, queries):
            seen.extend(sorted(query.frames) for query in queries)
            return super().act(queries)

    every = EveryFramePolicy(Watched())
    assert isinstance(every, RolloutPolicy)
    assert every.observed_lags == (0, 1, 2, 3)
    ends = []
    with environment_slots(PointSuite(), 1) as slots:
        for policy in (PointPolicy(), every):
            outcomes = []
            roll_out(policy, point_episodes(("left", "right"), 2), slots, outcomes.append)
            ends.append({o.episode: (o.success, o.num_steps, o.error) for o in outcomes})
    assert ends[0] == ends[1]
    assert {len(frames) for frames in seen} == {1}
    assert {frames[0] % 4 for frames in seen} == {0}
