import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.fixtures.cache import SyntheticSpec, write_synthetic_cache
from tests.fixtures.policy import tiny_train_config
from world_modality.evaluation.offline_run import OfflineRun
from world_modality.intervention_corrupt_world import CorruptWorldConfig, run
from world_modality.policy.predictions import predict
from world_modality.source.episodes import Episodes
from world_modality.system.errors import InvalidInputError
from world_modality.tokens.corruption import RecordedTokens, read_corruption
from world_modality.training.single import run as train

ROOT = Path(__file__).parents[2]


def rng(seed=0):
    return np.random.default_rng(seed)


def corrupted(name, tokens, episodes, frames, train_frames=None, seed=0):
    train_frames = frames if train_frames is None else train_frames
    recorded = RecordedTokens(tokens, episodes, frames, train_frames)
    return read_corruption(name, "test").offline_tokens(recorded, rng(seed))


def drawn_from(name, train, num_frames):
    """Return as many tokens as there are frames, drawn from the training frames before them."""
    tokens = np.r_[train, np.full(num_frames, 9)]
    episodes = Episodes.from_frames(np.repeat([0, 1], [len(train), num_frames]), 0 * tokens)
    frames = np.arange(len(train), len(tokens))
    return corrupted(name, tokens, episodes, frames, np.arange(len(train)))


@pytest.fixture
def episodes():
    lengths = [5, 3, 7, 4]
    return Episodes.from_frames(
        np.repeat(np.arange(4), lengths), np.repeat(np.array([0, 1, 0, 1]), lengths)
    )


@pytest.mark.parametrize(
    ("name", "shares"), [("uniform", [1 / 3, 1 / 3, 1 / 3]), ("marginal", [0.9, 0.09, 0.01])]
)
def test_codes_of_training_are_drawn_equally_often_or_as_often_as_it_has_them(name, shares):
    train = np.array([2] * 90 + [5] * 9 + [7])
    values, counts = np.unique(drawn_from(name, train, 30_000), return_counts=True)
    assert values.tolist() == [2, 5, 7]
    assert stats.chisquare(counts, 30_000 * np.array(shares)).pvalue > 1e-3


def test_task_shuffle_permutes_within_the_task_and_among_the_given_frames_only(episodes):
    tokens = np.arange(19)
    frames = np.r_[0:8, 8:15]
    shuffled = corrupted("task_shuffle", tokens, episodes, frames)
    task = episodes.tasks[episodes.of_frame[frames]]
    for value in (0, 1):
        assert sorted(shuffled[task == value]) == sorted(tokens[frames][task == value])
    assert (shuffled != tokens[frames]).any()


@pytest.mark.parametrize("num_steps", [1, 3, 100])
def test_stale_tokens_equal_a_plain_loop(episodes, num_steps):
    tokens = np.arange(19) * 10
    frames = np.arange(19)
    expected = []
    for start, end in zip(episodes.starts, episodes.ends, strict=True):
        expected += [int(tokens[max(start, t - num_steps)]) for t in range(start, end)]
    assert corrupted(f"stale:{num_steps}", tokens, episodes, frames).tolist() == expected


SLOTS = np.stack([np.arange(19), 100 + np.arange(19) // 5, 200 + np.arange(19)], axis=1)


@pytest.mark.parametrize("name", ["task_shuffle", "stale:3"])
def test_moved_tokens_are_all_those_of_one_other_frame(episodes, name):
    wrong = corrupted(name, SLOTS, episodes, np.arange(19))
    assert {tuple(row) for row in wrong.tolist()} <= {tuple(row) for row in SLOTS.tolist()}
    assert (wrong != SLOTS).any(axis=0).all()


@pytest.mark.parametrize("name", ["uniform", "marginal"])
def test_drawn_tokens_are_those_that_the_slot_had_in_training(episodes, name):
    wrong = corrupted(name, SLOTS, episodes, np.arange(10, 19), np.arange(10))
    for slot in range(3):
        assert set(wrong[:, slot]) <= set(SLOTS[:10, slot])
    # Each slot is drawn by itself: rows that no frame has.
    assert {tuple(row) for row in wrong.tolist()} - {tuple(row) for row in SLOTS.tolist()}


@pytest.mark.parametrize("name", ["uniform", "task_shuffle", "stale:3"])
def test_one_slot_is_made_wrong_as_if_all_were_and_the_others_stay(episodes, name):
    frames = np.arange(3, 19)
    every = corrupted(name, SLOTS, episodes, frames, seed=5)
    one = corrupted(f"{name}@1", SLOTS, episodes, frames, seed=5)
    np.testing.assert_array_equal(one[:, [0, 2]], SLOTS[frames][:, [0, 2]])
    np.testing.assert_array_equal(one[:, 1], every[:, 1])
    assert (one[:, 1] != SLOTS[frames, 1]).any()
    # What is read otherwise need not be the recorded tokens.
    recorded = RecordedTokens(SLOTS, episodes, frames, frames)
    kept = read_corruption(f"{name}@1", "test").offline_tokens(recorded, rng(5), 7 + SLOTS[frames])
    np.testing.assert_array_equal(kept[:, [0, 2]], 7 + SLOTS[frames][:, [0, 2]])
    np.testing.assert_array_equal(kept[:, 1], every[:, 1])


@pytest.mark.parametrize("name", ["uniform", "marginal", "task_shuffle", "stale:2", "stale:2@1"])
def test_every_frame_of_a_history_is_made_wrong(episodes, name):
    frames = np.arange(19)
    recorded = RecordedTokens(SLOTS, episodes, frames, frames, lags=(4, 2, 0))
    own = recorded.read_at(frames)
    for start, end in zip(episodes.starts, episodes.ends, strict=True):
        for t in range(start, end):
            assert (own[t] == SLOTS[[max(t - 4, start), max(t - 2, start), t]]).all()
    wrong = read_corruption(name, "test").offline_tokens(recorded, rng())
    assert wrong.shape == own.shape == (19, 3, 3)
    hit = [1] if "@" in name else [0, 2]
    assert (wrong != own)[..., hit].any(axis=0).all()
    if "@" in name:
        np.testing.assert_array_equal(wrong[..., [0, 2]], own[..., [0, 2]])
    elif name in ("task_shuffle", "stale:2"):  # another frame's, with that frame's own past
        streams = {one.tobytes() for one in own}
        assert {one.tobytes() for one in wrong} <= streams
    else:
        assert len(np.unique(wrong[..., 0] - wrong[:, -1:, 0])) > 3


@pytest.mark.parametrize("name", ["uniform", "task_shuffle", "stale:2", "other_episode"])
def test_one_position_of_a_history_alone_is_made_wrong_as_it_is_with_all(episodes, name):
    frames = np.arange(19)
    for tokens in (SLOTS, SLOTS[:, 0]):
        recorded = RecordedTokens(tokens, episodes, frames, frames, lags=(4, 2, 0))
        own = recorded.read_at(frames)
        every = read_corruption(name, "test").offline_tokens(recorded, rng(5))
        for position, index in ((0, 2), (1, 1), (2, 0)):
            one = read_corruption(f"{name}@position{position}", "test")
            read = one.offline_tokens(recorded, rng(5))
            others = [place for place in range(3) if place != index]
            np.testing.assert_array_equal(read[:, index], every[:, index])
            np.testing.assert_array_equal(read[:, others], own[:, others])
            assert (read != own).any()
    one_slot = read_corruption(f"{name}@1@position2", "test")
    recorded = RecordedTokens(SLOTS, episodes, frames, frames, lags=(4, 2, 0))
    own, read = recorded.read_at(frames), one_slot.offline_tokens(recorded, rng(5))
    assert np.argwhere((read != own).any(axis=0)).tolist() == [[0, 1]]


def test_what_is_wrong_in_part_is_spelled_apart():
    for text in ("stale:8@position2", "uniform@frames0-7", "marginal@1@position0"):
        one = read_corruption(text, "test")
        whole = read_corruption(text.split("@")[0], "test")
        assert (str(one), one.is_partial, whole.is_partial) == (text, True, False)
        assert one.severity < whole.severity
        assert one.label != whole.label
    for wrong in ("stale@position2", "uniform@position", "uniform@frames3", "uniform@frames-1-2"):
        with pytest.raises(InvalidInputError, match="is none of"):
            read_corruption(wrong, "test")


def test_a_corruption_of_one_slot_is_spelled_apart_and_is_less_severe():
    every, one = (read_corruption(name, "test") for name in ("stale:8", "stale:8@2"))
    assert (str(one), one.slot, one.lag) == ("stale:8@2", 2, 8)
    assert one == every.of_slot(2)
    assert one.label != every.label
    assert one.severity < every.severity < read_corruption("marginal@0", "test").severity
    for wrong in ("stale@2", "uniform@", "uniform@x", "@1"):
        with pytest.raises(InvalidInputError, match="is none of"):
            read_corruption(wrong, "test")


def test_each_slot_has_closed_loop_shares_of_its_own():
    counts = np.zeros((2, 3, 4), dtype=np.int32)
    counts[0, :, 0], counts[1, 1, 2], counts[1, 2, 3] = 6, 2, 6
    of_task = read_corruption("task_marginal", "test").shares(counts)
    assert of_task.shape == (2, 3, 4)
    assert of_task[0, :, 0].tolist() == [1, 1, 1]
    assert of_task[1, 2].tolist() == [0, 0, 0, 1]
    (every,) = read_corruption("marginal", "test").shares(counts)
    np.testing.assert_allclose(every, [[1, 0, 0, 0], [0.75, 0, 0.25, 0], [0.5, 0, 0, 0.5]])
    (uniform,) = read_corruption("uniform", "test").shares(counts)
    np.testing.assert_allclose(uniform[1], [0.5, 0, 0.5, 0])
    for slot in range(3):
        (alone,) = read_corruption("marginal", "test").shares(counts[:, slot])
        np.testing.assert_array_equal(alone, every[slot])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a cache whose actions only the token tells, and a checkpoint per arm."""
    folder = tmp_path_factory.mktemp("trained")
    cache = write_synthetic_cache(folder / "cache", SyntheticSpec(num_episodes=40))
    paths = {
        arm: train(
            tiny_train_config(cache, folder / arm, arm, num_epochs=12, learning_rate=3e-3)
        ).checkpoint
        for arm in ("C", "C_no_world_input")
    }
    return cache, paths


def config(trained, arm, out_dir, **changes):
    cache, paths = trained
    where = {"dataset_name": cache.dataset_name, "cache_dir": cache.cache_dir, "out_dir": out_dir}
    return CorruptWorldConfig(checkpoint=paths[arm], device="cpu", **where, **changes)


def test_the_ablation_is_run_and_its_ratio_is_exactly_one(trained, tmp_path, monkeypatch):
    calls = []

    def counted(policy, tensors, frames, world_tokens=None, progress=None):
        calls.append(world_tokens)
        return predict(policy, tensors, frames, world_tokens, progress)

    monkeypatch.setattr("world_modality.policy.predictions.predict", counted)
    report = run(config(trained, "C_no_world_input", tmp_path, num_draws=3))
    assert len(calls) == 1 + 3 * 3 + 3
    assert sum(tokens is not None for tokens in calls) == 12
    for effect in report.corruptions.values():
        assert (effect.ratio.value, effect.ratio.low, effect.ratio.high) == (1, 1, 1)
        assert set(effect.ratio_per_draw) == {1}
        assert effect.changed_tokens > 0


def test_a_policy_that_uses_the_token_gets_worse_and_the_ratio_is_exact(trained, tmp_path):
    report = run(config(trained, "C", tmp_path, num_draws=2, seed=4))
    effect = report.corruptions["task_shuffle"]
    assert effect.ratio.low is not None
    assert effect.ratio.low > 1
    opened = OfflineRun.open(config(trained, "C", None))
    frames = opened.val_frames
    clean = predict(opened.policy, opened.tensors, frames)
    tokens = [
        corrupted("task_shuffle", opened.tokens, opened.tensors.episodes, frames, seed=[4, i])
        for i in range(2)
    ]
    wrong = [predict(opened.policy, opened.tensors, frames, t) for t in tokens]
    ratios = [c.squared_error.sum() / clean.squared_error.sum() for c in wrong]
    assert effect.ratio_per_draw == pytest.approx(ratios, rel=1e-5)
    assert effect.ratio.value == pytest.approx(np.mean(ratios), rel=1e-5)
    assert report.clean_mse.value == pytest.approx(
        clean.squared_error.sum() / clean.valid.sum(), rel=1e-5
    )
    changed = np.mean([t != opened.tokens[frames] for t in tokens])
    assert effect.changed_tokens == pytest.approx(changed)


@pytest.mark.parametrize("without_error", ["clean", "task_shuffle"])
def test_a_ratio_to_or_of_no_error_is_not_defined(
    trained, tmp_path, monkeypatch, capsys, without_error
):
    def sums(opened, tokens, name):
        return np.full(len(opened.episode_counts), 0.0 if name == without_error else 2.0)

    monkeypatch.setattr("world_modality.intervention_corrupt_world._sums_with", sums)
    report = run(config(trained, "C", tmp_path, num_draws=2))
    effect = report.corruptions["task_shuffle"]
    assert effect.ratio.value is effect.ratio.low is effect.ratio.high is None
    assert effect.ratio_per_draw == [None, None]
    assert "is not defined" in capsys.readouterr().out
    others = [one.ratio.value for name, one in report.corruptions.items() if name != "task_shuffle"]
    assert set(others) == ({None} if without_error == "clean" else {1.0})
    assert list(tmp_path.rglob("corrupt_world.png"))


def test_through_the_command_line_with_the_documented_flags(trained, tmp_path):
    cache, paths = trained
    command = [sys.executable, "-m", "world_modality.intervention_corrupt_world"]
    command += ["--checkpoint", str(paths["C"]), "--dataset_name", cache.dataset_name]
    command += ["--cache_dir", str(cache.cache_dir), "--out_dir", str(tmp_path)]
    command += ["--stale_steps", "2", "5", "--num_draws", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "the actions use what the token says" in done.stdout
    report = json.loads((tmp_path / "corrupt_world.json").read_text("utf-8"))
    names = ["uniform", "marginal", "task_shuffle", "stale:2", "stale:5"]
    assert list(report["corruptions"]) == names
    assert (tmp_path / "corrupt_world.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("slot", [-1, 1])
def test_a_slot_that_no_frame_has_is_refused(trained, tmp_path, slot):
    with pytest.raises(InvalidInputError, match=f"--corrupt_slot {slot}: .* has 1 world token,"):
        run(config(trained, "C", tmp_path, corrupt_slot=slot))


@pytest.mark.parametrize("changes", [{"num_draws": 0}, {"stale_steps": (0,)}])
def test_impossible_settings_are_refused(trained, tmp_path, changes):
    with pytest.raises(InvalidInputError, match=f"--{next(iter(changes))} must be at least 1"):
        config(trained, "C", tmp_path, **changes)


def test_each_position_of_a_history_is_a_row_of_the_report(trained, tmp_path):
    cache, _ = trained
    flags = {"world_history": 2, "num_epochs": 12, "learning_rate": 3e-3}
    checkpoint = train(tiny_train_config(cache, tmp_path / "history", "C", **flags)).checkpoint
    changes = {"num_draws": 2, "corrupt_history_position": (0, 2)}
    of_history = cache, {"C": checkpoint}
    report = run(config(of_history, "C", tmp_path / "report", **changes))
    names = [name for name in report.corruptions if name.startswith("task_shuffle")]
    assert names == ["task_shuffle", "task_shuffle@position0", "task_shuffle@position2"]
    whole, present, oldest = (report.corruptions[name] for name in names)
    # The action is a table of the present token.
    assert whole.ratio.low > present.ratio.value * 0.5
    assert present.ratio.low > oldest.ratio.high
    assert present.changed_tokens > 0.5, "the share of the tokens of that position"
    with pytest.raises(InvalidInputError, match=r"positions 0 .* to 2"):
        run(config(of_history, "C", tmp_path / "x", corrupt_history_position=(3,)))
    with pytest.raises(InvalidInputError, match="the present frame's token alone"):
        run(config(trained, "C", tmp_path / "y", corrupt_history_position=(0,)))
