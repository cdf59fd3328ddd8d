import dataclasses
import json

import numpy as np
import pytest

from benchmarks.rollouts.config import RolloutConfig
from benchmarks.rollouts.loop import roll_out
from benchmarks.rollouts.outage import Outage
from benchmarks.rollouts.results import open_results
from benchmarks.rollouts.slot import environment_slots
from benchmarks.suite import EpisodeSpec
from tests.fixtures.rollout import (
    IMAGE_KEY,
    PointPolicy,
    PointSimulator,
    PointSuite,
    evaluate_points,
    lines,
    point_episodes,
)
from tests.rollouts.conftest import result
from world_modality.system.errors import InvalidInputError
from world_modality.verdict.rollout_file import read_rollouts


def outage_config(config, **changes):
    flags = {"outage_length": 6, "outage_start": (5, 9)} | changes
    return dataclasses.replace(config, **flags)


def test_the_start_depends_on_seed_task_and_number_alone_and_every_one_occurs():
    episodes = point_episodes(num_episodes=60)
    drawn = Outage(4, 3, 6).drawn_for(episodes)
    assert {e.outage_start for e in drawn} == {3, 4, 5, 6}
    assert [dataclasses.replace(e, outage_start=None, outage_length=0) for e in drawn] == episodes
    backwards = Outage(4, 3, 6).drawn_for(episodes[::-1])[::-1]
    longer = Outage(8, 3, 6).drawn_for(episodes)
    assert [e.outage_start for e in backwards] == [e.outage_start for e in drawn]
    assert [e.outage_start for e in longer] == [e.outage_start for e in drawn]
    other = Outage(4, 3, 6).drawn_for(point_episodes(num_episodes=60, seed=1))
    assert [e.outage_start for e in other] != [e.outage_start for e in drawn]
    (one,) = Outage(2, 7, 7).drawn_for(episodes[:1])
    assert list(one.dark_frames) == [7, 8]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"outage_length": -1}, "--outage_length must be at least 0"),
        ({"outage_start": (3, 4)}, "--outage_start has no effect without --outage_length"),
        ({"outage_length": 3}, "needs the frames that it may begin in, such as --outage_start"),
        ({"outage_length": 3, "outage_start": (0, 4)}, "in that order and from 1"),
        ({"outage_length": 3, "outage_start": (5, 4)}, "in that order and from 1"),
    ],
)
def test_an_outage_that_is_none_is_refused(tmp_path, flags, message):
    with pytest.raises(InvalidInputError, match=message):
        RolloutConfig((tmp_path / "x.pt",), **flags)


def test_an_outage_longer_than_the_episode_is_refused(config):
    episodes = point_episodes(max_steps=14)
    evaluate_points(PointSuite(), episodes, outage_config(config, outage_length=5))
    message = r"--outage_length 6 from frame 9 on ends after the 14 steps of an episode of left"
    with pytest.raises(InvalidInputError, match=message):
        evaluate_points(PointSuite(), episodes, outage_config(config, overwrite=True))


class SpyingSimulator(PointSimulator):
    def observe(self):
        assert self._step not in range(*self._suite.unseen), "rendered in the dark"
        return super().observe()


@dataclasses.dataclass(frozen=True)
class SpyingSuite(PointSuite):
    """Breaks if it has to render one of these frames."""

    unseen: tuple[int, int] = (6, 11)

    def open(self, task):
        return SpyingSimulator(task, self)


def frames_of(policy, suite, episodes, **options):
    endings = []
    with environment_slots(suite, 1) as slots:
        roll_out(policy, episodes, slots, endings.append, **options)
    assert [ending.error for ending in endings] == [None] * len(episodes)
    return policy.memories["left", 0].frames


def test_dark_frames_are_black_not_rendered_and_keep_the_robots_state():
    (episode,) = Outage(5, 6, 6).drawn_for(point_episodes(("left",), 1, max_steps=30))
    policy = PointPolicy(gain=0.0, observed_lags=(0, 1, 2, 3))
    frames = frames_of(policy, SpyingSuite(), [episode])
    assert sorted(frames) == list(range(29))
    for number, seen in frames.items():
        expected = 0 if number in episode.dark_frames else number
        assert (seen[IMAGE_KEY] == expected).all(), number
        assert seen[IMAGE_KEY].shape == (16, 17, 3)
    positions = [frames[number]["observation.state"][0] for number in range(29)]
    assert len(set(positions[5:12])) == 7, "the state goes on changing"


def test_a_policy_that_hides_the_dark_itself_is_shown_all_frames():
    (episode,) = Outage(5, 6, 6).drawn_for(point_episodes(("left",), 1, max_steps=30))
    policy = PointPolicy(gain=0.0)
    frames = frames_of(policy, PointSuite(), [episode], sees_in_the_dark=True)
    assert (frames[8][IMAGE_KEY] == 8).all()


def test_results_and_summary_tell_the_outage_and_every_policy_has_the_same(config, tmp_path):
    second = tmp_path / "logs_b" / "model_A.pt"
    second.parent.mkdir()
    second.write_text("0.6", encoding="utf-8")
    config = outage_config(config, checkpoint=(*config.checkpoint, second))
    summary = evaluate_points(PointSuite(), point_episodes(num_episodes=4), config)
    assert summary["outage"] == {"length": 6, "start": [5, 9]}
    notes = " ".join(summary["notes"])
    assert "the cameras are dark for 6 frames from a frame drawn in 5 to 9 on" in notes
    assert "the outage began in" in notes
    starts = {}
    for line in lines(config):
        assert line["outage_length"] == 6
        starts.setdefault(line["checkpoint"], {})[line["task"], line["episode"]] = line[
            "outage_start"
        ]
    first, other = starts.values()
    assert first == other
    assert len(set(first.values())) > 1
    found = read_rollouts(config.out_dir / "results.jsonl")
    assert found[0].conditions["outage"] == {"length": 6, "start": [5, 9]}


def test_films_show_the_dark_dimmed(config):
    import av

    config = outage_config(config, save_videos=True, outage_start=(5, 5))
    evaluate_points(PointSuite(), point_episodes(("left",), 1), config)
    (path,) = (config.out_dir / "videos").rglob("*.mp4")
    with av.open(str(path)) as film:
        brightness = [frame.to_ndarray(format="rgb24").mean() for frame in film.decode(video=0)]
    assert brightness[10] == pytest.approx(10 // 4, abs=2)
    assert brightness[11] == pytest.approx(11, abs=2)


def test_resuming_with_another_outage_is_refused(config):
    config = outage_config(config)
    episodes = point_episodes(num_episodes=3)
    evaluate_points(PointSuite(), episodes, config)
    again = dataclasses.replace(config, resume=True)
    evaluate_points(PointSuite(), episodes, again)
    for changes, message in (
        ({"outage_length": 7}, "outage_length is 7 now and was 6"),
        ({"outage_start": (10, 12)}, "outage_start is 1[0-2] now and was [5-9]"),
        ({"outage_length": 0, "outage_start": None}, "outage_length is 0 now and was 6"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            evaluate_points(PointSuite(), episodes, dataclasses.replace(again, **changes))


def test_lines_without_an_outage_are_as_they_were_and_older_ones_are_read(tmp_path):
    plain, dark = result(0), result(1, outage_start=3, outage_length=5)
    with open_results(tmp_path / "results.jsonl") as file:
        file.append(plain)
        file.append(dark)
        assert file.read() == [plain, dark]
    first, second = (tmp_path / "results.jsonl").read_text("utf-8").splitlines()
    assert "outage" not in first
    assert json.loads(second)["outage_start"] == 3
    (tmp_path / "results.jsonl").write_text(
        second.replace('"outage_length": 5', '"x": 5') + "\n", encoding="utf-8"
    )
    with (
        open_results(tmp_path / "results.jsonl") as file,
        pytest.raises(InvalidInputError, match="no result of a rollout"),
    ):
        file.read()
    assert np.isfinite(plain.seconds)


@pytest.mark.parametrize("film", [False, True])
def test_libero_and_metaworld_go_dark_and_render_nothing(tmp_path, monkeypatch, film):
    from benchmarks.rollouts.videos import VideoFolder
    from benchmarks.rollouts.worker import Act, Begin, Environment
    from tests.demos.test_suite_contract import SUITES

    for task, suite in SUITES.items():
        spec = EpisodeSpec(task, "go", 0, 0, 0, 12, outage_start=3, outage_length=4)
        environment = Environment(suite)
        videos = VideoFolder(tmp_path, tuple(suite.image_keys), suite.fps) if film else None
        first = environment.begin(Begin(spec, videos)).frames[0]
        rendered = []
        simulator = environment._simulator
        monkeypatch.setattr(
            simulator,
            "observe",
            lambda observe=simulator.observe, own=rendered, at=environment: (
                own.append(at._step) or observe()
            ),
        )
        actions = np.zeros((9, suite.action_dim), np.float32)
        answer = environment.act(Act(actions, frozenset(range(1, 10))))
        assert set(answer.frames) == set(range(1, 10))
        for number, seen in answer.frames.items():
            assert set(seen) == set(first)
            dark = [not seen[key].any() for key in suite.image_keys]
            assert all(dark) if number in range(3, 7) else not any(dark)
        assert rendered == [n for n in range(1, 10) if film or n not in range(3, 7)]
        simulator.close()
