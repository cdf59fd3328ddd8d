import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.rollouts.evaluation import checkpoint_labels, with_wrong_instructions
from tests.fixtures.rollout import (
    IMAGE_KEY,
    SIDE_KEY,
    PointPolicy,
    PointSuite,
    evaluate_points,
    lines,
    point_episodes,
    write_checkpoint,
)
from world_modality.system.errors import InvalidInputError, UserError


def test_checkpoints_share_episodes_and_are_compared(config, tmp_path):
    other = write_checkpoint(tmp_path / "other" / "model_A.pt", 1.0)
    both = dataclasses.replace(config, checkpoint=(*config.checkpoint, other), save_videos=True)
    summary = evaluate_points(PointSuite(), point_episodes(), both)
    assert [c["label"] for c in summary["checkpoints"]] == ["logs/model_A", "other/model_A"]
    first, second = (
        {
            (r["task"], r["episode"], r["initial_state"], r["seed"])
            for r in lines(both)
            if r["checkpoint"] == str(path)
        }
        for path in both.checkpoint
    )
    assert first == second
    assert len(first) == 10
    (comparison,) = summary["comparisons"]
    rates = [c["overall"]["success_rate"]["value"] for c in summary["checkpoints"]]
    assert 0 < rates[0] < rates[1] == 1
    assert comparison["difference"]["value"] == pytest.approx(rates[0] - rates[1])
    assert set(summary["checkpoints"][0]["groups"]) == {"easy", "hard"}
    assert summary["throughput"]["num_steps"] == sum(r["num_steps"] for r in lines(both))
    assert json.loads((both.out_dir / "summary.json").read_text("utf-8")) == summary
    assert json.loads((both.out_dir / "config.json").read_text("utf-8"))["n_trials"] == 3
    videos = {path.relative_to(both.out_dir / "videos") for path in both.out_dir.rglob("*.mp4")}
    assert videos == {
        Path(Path(r["checkpoint"]).parent.name, "model_A", r["task"])
        / f"episode_00{r['episode']}_{'success' if r['success'] else 'failure'}.mp4"
        for r in lines(both)
    }


def test_each_policy_gets_the_images_of_its_own_cameras_and_no_others(config, monkeypatch):
    seen = {}
    act = PointPolicy.act

    def watched(policy, queries):
        for query in queries:
            for number, frame in query.frames.items():
                images = {key: image for key, image in frame.items() if image.dtype == np.uint8}
                assert all(
                    (image == number + 100 * (key == SIDE_KEY)).all()
                    for key, image in images.items()
                )
                seen.setdefault(policy.path.name, set()).add(tuple(images))
        return act(policy, queries)

    monkeypatch.setattr(PointPolicy, "act", watched)
    both = write_checkpoint(config.checkpoint[0].parent / "two_views.pt", 0.5)
    suite = PointSuite(image_keys=(SIDE_KEY, "observation.images.top", IMAGE_KEY))
    checkpoints = (*config.checkpoint, both)
    evaluate_points(suite, point_episodes(), dataclasses.replace(config, checkpoint=checkpoints))
    assert seen == {"model_A.pt": {(IMAGE_KEY,)}, "two_views.pt": {(IMAGE_KEY, SIDE_KEY)}}


def test_parity_is_checked_with_the_cameras_that_are_seen_and_those_of_the_training(
    config, monkeypatch
):
    checked = []
    monkeypatch.setitem(
        sys.modules,
        "benchmarks.rollouts.parity.check",
        SimpleNamespace(check_parity=lambda path, suite, config: checked.append(suite.image_keys)),
    )
    suite = PointSuite(image_keys=(SIDE_KEY, "observation.images.top", IMAGE_KEY))
    flags = {"check_parity": True, "overwrite": True}
    evaluate_points(suite, point_episodes(num_episodes=1), dataclasses.replace(config, **flags))
    other = dataclasses.replace(config, camera_key=(SIDE_KEY,), **flags)
    evaluate_points(suite, point_episodes(num_episodes=1), other)
    assert checked == [(IMAGE_KEY,), (SIDE_KEY, IMAGE_KEY)]


def test_checkpoints_of_one_cache_are_checked_once(config, monkeypatch):
    checked = []
    monkeypatch.setitem(
        sys.modules,
        "benchmarks.rollouts.parity.check",
        SimpleNamespace(check_parity=lambda path, suite, config: checked.append(path.stem)),
    )
    fingerprints = {"model_A": "one", "same": "one", "other": "two"}
    record = PointPolicy.record
    monkeypatch.setattr(
        PointPolicy,
        "record",
        lambda policy: {**record(policy), "cache_fingerprint": fingerprints[policy.path.stem]},
    )
    folder = config.checkpoint[0].parent
    others = [write_checkpoint(folder / f"{name}.pt", len(name)) for name in ("same", "other")]
    several = dataclasses.replace(
        config, checkpoint=(*config.checkpoint, *others), check_parity=True
    )
    evaluate_points(PointSuite(), point_episodes(num_episodes=1), several)
    assert checked == ["model_A", "other"]


def test_videos_show_all_cameras_side_by_side(config):
    import av

    both = write_checkpoint(config.checkpoint[0].parent / "two_views.pt", 1.0)
    filmed = dataclasses.replace(config, checkpoint=(both,), save_videos=True)
    suite = PointSuite(image_keys=(IMAGE_KEY, SIDE_KEY))
    evaluate_points(suite, point_episodes(("left",), num_episodes=1), filmed)
    (path,) = filmed.out_dir.rglob("*.mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    assert frame.shape == (16, 34, 3)
    assert abs(frame[:, :15].mean() - 0) < 5
    assert abs(frame[:, 19:].mean() - 100) < 5


def test_the_first_episodes_of_each_task_can_be_filmed_alone(config):
    filmed = dataclasses.replace(config, save_videos=True, videos_per_task=1)
    evaluate_points(PointSuite(), point_episodes(), filmed)
    videos = list(filmed.out_dir.rglob("*.mp4"))
    assert {path.parent.name for path in videos} == {one["task"] for one in lines(filmed)}
    assert {path.name[: len("episode_000")] for path in videos} == {"episode_000"}
    with pytest.raises(InvalidInputError, match="films nothing without --save_videos"):
        dataclasses.replace(config, videos_per_task=1)


def test_errors_are_run_again_and_finished_episodes_stay(config, tmp_path, capsys):
    suite = PointSuite(mended=tmp_path / "mended")
    episodes = point_episodes(("left", "crashing"), 2)
    summary = evaluate_points(suite, episodes, config)
    assert summary["checkpoints"][0]["overall"]["num_errors"] == 2
    assert summary["checkpoints"][0]["overall"]["num_episodes"] == 2
    assert "error in crashing episode 0: ZeroDivisionError: physics" in capsys.readouterr().err
    before = lines(config)
    (tmp_path / "mended").touch()
    again = evaluate_points(suite, episodes, dataclasses.replace(config, resume=True))
    assert again["checkpoints"][0]["overall"]["num_errors"] == 0
    after = lines(config)
    assert after[:4] == before
    assert [line["task"] for line in after[4:]] == ["crashing"] * 2
    assert again["throughput"]["num_steps"] == sum(line["num_steps"] for line in after[4:])
    evaluate_points(suite, episodes, dataclasses.replace(config, resume=True))
    assert lines(config) == after, "nothing was left to do"


def test_run_of_nothing_but_errors_is_an_error_with_results_beside_the_checkpoint(config):
    beside = dataclasses.replace(config, out_dir=None)
    with pytest.raises(UserError, match=r"every episode ended in an error; .*results\.jsonl"):
        evaluate_points(PointSuite(), point_episodes(("crashing",), 2), beside)
    folder = config.checkpoint[0].parent / "rollouts_point_model_A"
    assert {"summary.md", "summary.png"} <= {path.name for path in folder.iterdir()}


def test_earlier_results_are_neither_mixed_nor_lost(config):
    evaluate_points(PointSuite(), point_episodes(), config)
    before = lines(config)
    with pytest.raises(InvalidInputError, match="holds results; --resume goes on with them"):
        evaluate_points(PointSuite(), point_episodes(), config)
    resumed = dataclasses.replace(config, resume=True)
    with pytest.raises(InvalidInputError, match=r'style is "round" now and was "flat"'):
        evaluate_points(PointSuite(rendering="round"), point_episodes(), resumed)
    write_checkpoint(config.checkpoint[0], 0.9)
    with pytest.raises(InvalidInputError, match="checkpoint_sha256 is "):
        evaluate_points(PointSuite(), point_episodes(), resumed)
    assert lines(config) == before
    again = dataclasses.replace(config, overwrite=True)
    evaluate_points(PointSuite(), point_episodes(num_episodes=1), again)
    assert len(lines(config)) == 2
    more = evaluate_points(PointSuite(), point_episodes(num_episodes=4), resumed)
    assert more["checkpoints"][0]["overall"]["num_episodes"] == 8 == len(lines(config))


def test_parity_is_checked_before_the_first_episode(config, monkeypatch):
    def refuse(path, suite, config):
        raise UserError(f"{path.name} in {suite.name}: images are flipped")

    monkeypatch.setitem(
        sys.modules, "benchmarks.rollouts.parity.check", SimpleNamespace(check_parity=refuse)
    )
    checked = dataclasses.replace(config, check_parity=True)
    with pytest.raises(UserError, match=r"model_A\.pt in point: images are flipped"):
        evaluate_points(PointSuite(), point_episodes(), checked)
    assert (config.out_dir / "results.jsonl").read_bytes() == b""
    evaluate_points(PointSuite(), point_episodes(), config)


def test_wrong_instruction_is_another_tasks(config):
    told = {"a": "go", "b": "go", "c": "stop", "d": "turn"}
    episodes = [
        dataclasses.replace(episode, instruction=told[episode.task])
        for episode in point_episodes(tuple(told), 2)
    ]
    wrong = {e.task: e.instruction for e in with_wrong_instructions(episodes)}
    assert wrong == {"a": "stop", "b": "stop", "c": "turn", "d": "go"}
    with pytest.raises(InvalidInputError, match="all selected tasks have 'go'"):
        with_wrong_instructions(episodes[:4])
    control = dataclasses.replace(config, wrong_instruction=True)
    evaluate_points(PointSuite(), point_episodes(num_episodes=1), control)
    assert {r["task"]: r["instruction"] for r in lines(config)} == {
        "left": "go right",
        "right": "go left",
    }
    assert "reads another task's instruction" in (config.out_dir / "summary.md").read_text("utf-8")


def test_labels_are_short_and_distinct():
    assert checkpoint_labels([Path("a/x.pt"), Path("b/y.pt")]) == ["x", "y"]
    assert checkpoint_labels([Path("a/x.pt"), Path("b/x.pt")]) == ["a/x", "b/x"]
    deep = [Path("1/a/x.pt"), Path("2/a/x.pt"), Path("2/b/y.pt")]
    assert checkpoint_labels(deep) == ["1/a/x", "2/a/x", "2/b/y"]
    with pytest.raises(InvalidInputError, match="names a file twice"):
        checkpoint_labels([Path("a/x.pt"), Path("a/x.pt")])


def test_copies_of_a_checkpoint_are_refused(config, tmp_path):
    copy = write_checkpoint(tmp_path / "copy.pt", 0.3)
    twice = dataclasses.replace(config, checkpoint=(*config.checkpoint, copy))
    with pytest.raises(InvalidInputError, match=r"model_A\.pt and .*copy\.pt are the same"):
        evaluate_points(PointSuite(), point_episodes(), twice)
