"""Checkpoints within epochs, damaged ones, old ones, and disks that take none."""

import dataclasses
import json

import pytest
import torch

from tests.fixtures.cache import write_synthetic_cache
from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from world_modality.policy.checkpoint import load_checkpoint, newest_first
from world_modality.system.errors import InvalidInputError
from world_modality.training import saver as checkpoint_saver
from world_modality.training.log import RunLog
from world_modality.training.saver import CheckpointSaver
from world_modality.training.single import run

KNOBS = {"dropout": 0.1, "num_epochs": 3, "log_every": 3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_synthetic_cache(tmp_path_factory.mktemp("data") / "cache")


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    return run(tiny_train_config(cache, tmp_path_factory.mktemp("whole") / "logs", "C", **KNOBS))


@pytest.fixture
def config(cache, tmp_path):
    return tiny_train_config(cache, tmp_path / "logs", "C", **KNOBS, save_every_steps=4)


def names(config):
    return [path.name for path in newest_first(config.log_dir, "C")]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_run_resumed_within_an_epoch_ends_bit_identical(config, whole):
    run(config)
    assert "model_C_epoch1_step6.pt" in names(config), "steps count over the whole run"
    for name in names(config)[: names(config).index("model_C_epoch1_step6.pt")]:
        (config.log_dir / name).unlink()
    torch.manual_seed(999)
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(whole.checkpoint), weights(resumed.checkpoint))
    assert resumed.metrics == whole.metrics
    log, other = (
        r.checkpoint.with_name("metrics.jsonl").read_text("utf-8") for r in (resumed, whole)
    )
    assert log == other
    assert log.count('"kind": "epoch"') == 3


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_taken(config, whole, capsys):
    run(config)
    newest, second, third, *_ = newest_first(config.log_dir, "C")
    damage(newest)
    second.write_bytes(b"")
    resumed = run(dataclasses.replace(config, resume=True))
    said = capsys.readouterr()
    assert f"{newest} is damaged" in said.err
    assert f"{second} is damaged" in said.err
    assert f"going on from {third}" in said.out
    assert_same_weights(weights(whole.checkpoint), weights(resumed.checkpoint))


def test_nothing_is_begun_again_over_checkpoints_that_are_all_damaged(config):
    run(config)
    before = names(config)
    for path in newest_first(config.log_dir, "C"):
        damage(path)
    with pytest.raises(InvalidInputError, match="is damaged"):
        run(dataclasses.replace(config, resume=True))
    assert names(config) == before


def test_only_the_newest_checkpoints_stay_if_that_is_wanted(config, whole):
    result = run(dataclasses.replace(config, keep_last=2))
    assert len(names(config)) == 2
    assert names(config)[0] == result.checkpoint.name
    assert_same_weights(weights(whole.checkpoint), weights(result.checkpoint))


def refuse_writes(monkeypatch, refused):
    """Let the saves of these numbers fail as on a full disk."""
    calls = iter(range(1000))
    write = checkpoint_saver.save_checkpoint

    def save(path, checkpoint):
        if next(calls) in refused:
            raise OSError(28, "No space left on device", str(path))
        write(path, checkpoint)

    monkeypatch.setattr(checkpoint_saver, "save_checkpoint", save)


def test_a_disk_that_is_full_for_a_while_is_reported_and_costs_only_checkpoints(
    config, whole, capsys, monkeypatch
):
    refuse_writes(monkeypatch, {1, 2})
    result = run(config)
    said = capsys.readouterr().err
    assert said.count("warning: ") == 2
    assert "No space left on device" in said
    assert "The newest checkpoint is" in said
    assert_same_weights(weights(whole.checkpoint), weights(result.checkpoint))
    assert not list(config.log_dir.glob("*.partial"))


def test_a_run_whose_last_checkpoint_is_not_on_the_disk_does_not_end_well(
    config, whole, monkeypatch
):
    refuse_writes(monkeypatch, set(range(3, 1000)))
    with pytest.raises(InvalidInputError, match=r"could not be written.*model_C_epoch0\.pt"):
        run(config)
    monkeypatch.undo()
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(whole.checkpoint), weights(resumed.checkpoint))


def test_no_checkpoint_is_ahead_of_the_log(config, monkeypatch):
    def refuse(self):
        raise OSError(28, "No space left on device", "metrics.jsonl")

    monkeypatch.setattr(RunLog, "sync", refuse)
    with pytest.raises(InvalidInputError, match="There is no checkpoint yet"):
        run(config)
    assert names(config) == []


def test_the_saved_tensors_are_those_of_the_moment_of_saving(config, whole, tmp_path, monkeypatch):
    """The optimiser goes on writing into the same memory while a checkpoint is written."""
    stored = load_checkpoint(whole.checkpoint, torch.device("cpu"))
    model = {"weight": torch.zeros(1000)}
    with CheckpointSaver(tmp_path, "C", None) as saver:
        saver.save(tmp_path / "model_C_epoch0.pt", dataclasses.replace(stored, model=model))
        model["weight"] += 1
    saved = load_checkpoint(tmp_path / "model_C_epoch0.pt", torch.device("cpu"))
    assert not saved.model["weight"].any()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda lines: [*lines[:2], lines[2][: len(lines[2]) // 2], *lines[3:]],
            "line 3 is damaged",
        ),
        (lambda lines: lines[:3], "holds 0 of the 3 epochs"),
    ],
)
def test_a_damaged_log_is_refused_and_a_missing_one_begins_again(config, spoil, message, capsys):
    run(config)
    log = config.log_dir / "metrics.jsonl"
    lines = log.read_text("utf-8").splitlines()
    log.write_text("\n".join(spoil(lines)) + "\n")
    with pytest.raises(InvalidInputError, match=message):
        run(dataclasses.replace(config, resume=True))
    log.unlink()
    run(dataclasses.replace(config, resume=True, num_epochs=3))
    assert "the log begins at step" in capsys.readouterr().err


def test_a_torn_last_line_of_the_log_is_cut_off(config):
    run(config)
    newest_first(config.log_dir, "C")[0].unlink()
    log = config.log_dir / "metrics.jsonl"
    before = log.read_text("utf-8")
    log.write_text(before[:-9])
    run(dataclasses.replace(config, resume=True))
    assert log.read_text("utf-8") == before
    assert all(json.loads(line) for line in before.splitlines())
