import dataclasses
import time
from multiprocessing.connection import wait

import numpy as np
import pytest

from benchmarks.metaworld.cameras import IMAGE_KEY, MetaworldRendering
from benchmarks.metaworld.simulator import STATE_KEY, MetaworldSimulator, MetaworldSuite
from benchmarks.rollouts import loop
from benchmarks.rollouts.loop import EpisodeQueue, roll_out
from benchmarks.rollouts.slot import environment_slots
from benchmarks.rollouts.videos import VideoFolder
from benchmarks.rollouts.worker import Outcome
from benchmarks.suite import EVALUATION_STREAM, EpisodeSpec, layout_seed
from tests.fixtures.rollout import PointPolicy, PointSuite, point_episodes
from world_modality.acting.episode_memory import is_observed
from world_modality.system.errors import UserError


@pytest.fixture(scope="module")
def slots():
    """Three environments of the point suite; their processes last, since starting one takes 1 s."""
    with environment_slots(PointSuite(), 3) as opened:
        yield opened


def played(policy, episodes, slots, videos=None):
    """Roll out and return the outcomes by task and number, without their durations."""
    outcomes: list[Outcome] = []
    roll_out(policy, episodes, slots, outcomes.append, videos)
    assert all(slot.episode is None for slot in slots)
    found = {(o.episode.task, o.episode.episode): o for o in outcomes}
    assert len(found) == len(outcomes) == len(episodes)
    return {key: dataclasses.replace(outcome, seconds=0.0) for key, outcome in found.items()}


def test_outcomes_do_not_depend_on_the_number_of_environments(slots):
    episodes = point_episodes(("left", "right", "far"), 4)
    one, three = PointPolicy(gain=0.3), PointPolicy(gain=0.3)
    alone, together = played(one, episodes, slots[:1]), played(three, episodes, slots)
    assert alone == together
    assert len({o.num_steps for o in alone.values()}) > 3, "the episodes are not all alike"
    assert {o.success for o in alone.values()} == {True, False}
    assert max(one.batch_sizes) == 1
    for key, memory in one.memories.items():
        assert memory.queried == three.memories[key].queried
        for frame, observation in memory.frames.items():
            other = three.memories[key].frames[frame]["observation.state"]
            np.testing.assert_array_equal(observation["observation.state"], other)


def test_waiting_episodes_are_asked_about_together(slots, monkeypatch):
    def wait_for_all(connections, timeout):
        time.sleep(0.1)  # all environments that are playing come to their next query
        return wait(connections, timeout)

    monkeypatch.setattr(loop, "wait", wait_for_all)
    policy = PointPolicy(gain=0.3)
    played(policy, point_episodes(num_episodes=3), slots)
    assert max(policy.batch_sizes) == 2, "never all three: one of them has to be playing"
    filled_up = PointPolicy(gain=0.3)
    roll_out(filled_up, point_episodes(num_episodes=3), slots, lambda _: None, batch_size=4)
    assert max(filled_up.batch_sizes) == 3


@pytest.mark.parametrize("lags", [(0,), (0, 1), (0, 6)])
def test_only_frames_that_the_policy_needs_are_observed(lags, slots):
    policy = PointPolicy(gain=0.0, n_action_steps=4, observed_lags=lags)
    ((key, outcome),) = played(policy, point_episodes(("left",), 1, max_steps=18), slots).items()
    memory = policy.memories[key]
    assert (outcome.success, outcome.num_steps) == (False, 18)
    assert memory.queried == [0, 4, 8, 12, 16]
    needed = {frame for frame in range(17) if is_observed(frame, policy)}
    assert set(memory.frames) == needed
    assert {q - lag for q in memory.queried for lag in lags if q >= lag} <= needed
    assert len(needed) < 17
    assert [int(f[IMAGE_KEY][0, 0, 0]) for f in memory.frames.values()] == list(memory.frames)
    counts = [int(f["observation.state"][1]) for f in memory.frames.values()]
    assert counts == list(range(1, len(needed) + 1)), "more was observed than handed over"
    assert not any(f["observation.state"][2] for f in memory.frames.values()), "torch in a worker"


@pytest.mark.parametrize(
    ("task", "message"),
    [("crashing", "ZeroDivisionError: physics"), ("dying", "process died (exit code 9)")],
)
def test_crash_is_an_error_of_its_episode_alone(task, message, slots):
    episodes = point_episodes(("left", task), 2)
    outcomes = played(PointPolicy(), episodes, slots)
    for number in range(2):
        broken, whole = outcomes[task, number], outcomes["left", number]
        assert broken.success is None
        assert message in broken.error
        assert (whole.success, whole.error) == (True, None)
    if task == "crashing":
        assert "fixtures/rollout.py" in outcomes[task, 0].error, "says where"


def test_episode_that_hangs_is_an_error_and_its_environment_is_replaced(slots, monkeypatch):
    played(PointPolicy(), point_episodes(("left",), 1), slots[:1])
    monkeypatch.setattr(slots[0], "_time_limit_s", 1.0)
    (hung,) = played(PointPolicy(), point_episodes(("hanging",), 1), slots[:1]).values()
    monkeypatch.undo()
    (whole,) = played(PointPolicy(), point_episodes(("right",), 1), slots[:1]).values()
    assert (hung.success, whole.success) == (None, True)
    assert hung.error == "the environment did not answer within 1 s"


def test_what_the_user_can_mend_stops_the_run():
    message = "no task 'unknown' in the line; there are: left, right"
    with environment_slots(PointSuite(), 1) as own, pytest.raises(UserError, match=message):
        played(PointPolicy(), point_episodes(("unknown",)), own)


def test_actions_that_are_no_chunk_are_refused():
    class Mute(PointPolicy):
        def act(self, queries):
            return [np.zeros((self.n_action_steps - 1, 1), np.float32) for _ in queries]

    message = r"answers with 4 actions, got an array of shape \(3, 1\)"
    with environment_slots(PointSuite(), 1) as own, pytest.raises(ValueError, match=message):
        played(Mute(), point_episodes(("left",), 1), own)


def test_simulators_are_seldom_opened_again():
    queue = EpisodeQueue(point_episodes(("left", "right", "far"), 3))
    open_tasks: list[str | None] = [None, None]
    opened = 0
    order = []
    for turn in range(9):
        slot = turn % 2
        episode = queue.take(open_tasks[slot], [open_tasks[1 - slot]])
        opened += episode.task != open_tasks[slot]
        open_tasks[slot] = episode.task
        order.append((episode.task, episode.episode))
    assert queue.take(None, []) is None
    assert len(set(order)) == 9
    assert opened == 4, "each task once, and the last one in both environments"


class LiftPolicy(PointPolicy):
    """Moves the hand up and aside, further for each query."""

    def act(self, queries):
        for query in queries:
            query.memory.frames.update(query.frames)
        reach = [np.float32(0.1 * (1 + query.step % 3)) for query in queries]
        return [np.tile(np.array([r, -r, r, 0], np.float32), (4, 1)) for r in reach]


def test_metaworld_behaves_in_the_loop_as_alone(tmp_path):
    rendering = MetaworldRendering(image_size=48)
    seeds = [layout_seed(0, EVALUATION_STREAM, "reach-v3", number) for number in range(2)]
    episodes = [EpisodeSpec("reach-v3", "reach", n, seed, 0, 10) for n, seed in enumerate(seeds)]
    videos = VideoFolder(tmp_path, (IMAGE_KEY,), 80)
    policy = LiftPolicy()
    with environment_slots(MetaworldSuite(rendering), 2) as own:
        outcomes = played(policy, episodes, own, videos)
    assert all(o.error is None and o.num_steps == 10 for o in outcomes.values())
    simulator = MetaworldSimulator("reach-v3", rendering)
    for episode in episodes:
        frames = policy.memories["reach-v3", episode.episode].frames
        assert list(frames) == [0, 4, 8]
        simulator.reset(episode.initial_state)
        for step in range(9):
            if step in frames:
                alone = simulator.observe()
                for key in (IMAGE_KEY, STATE_KEY):
                    np.testing.assert_array_equal(frames[step][key], alone[key])
            r = 0.1 * (1 + step // 4 * 4 % 3)
            simulator.step(np.array([r, -r, r, 0], np.float32))
        path = tmp_path / "reach-v3" / f"episode_00{episode.episode}_failure.mp4"
        assert_video_begins_with(path, frames[0][IMAGE_KEY], num_frames=11)
    simulator.close()
    assert len(list(tmp_path.rglob("*.*"))) == 2, "no unfinished video is left"


def assert_video_begins_with(path, image, num_frames):
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 80
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(images) == num_frames
    error = np.abs(images[0].astype(int) - image.astype(int)).mean()
    other = np.abs(images[0].astype(int) - np.flip(image, 0).astype(int)).mean()
    assert error < 10 < other


def test_crashed_episode_leaves_no_video(tmp_path, slots):
    videos = VideoFolder(tmp_path, (IMAGE_KEY,), 20)
    played(PointPolicy(), point_episodes(("crashing", "left"), 1), slots, videos)
    names = [path.name for path in tmp_path.rglob("*.*")]
    assert names == ["episode_000_success.mp4"]
