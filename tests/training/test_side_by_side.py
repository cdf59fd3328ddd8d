"""Seeds trained side by side: each ends as its own training would, stopped and resumed or not."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fixtures.policy import (
    assert_same_content,
    assert_same_weights,
    log_lines,
    tiny_train_config,
    weights,
)
from world_modality.policy.checkpoint import load_checkpoint, newest_first
from world_modality.policy.config import flags_of, from_flags
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock
from world_modality.train import SeedsConfig, run
from world_modality.training import run as training_run
from world_modality.training.single import run as train_one
from world_modality.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SEEDS = (3, 1)


def seeds_config(cache, log_dir, model_type="C", seeds=SEEDS, **changes):
    knobs = {"dropout": 0.1} | changes
    flags = flags_of(tiny_train_config(cache, log_dir, model_type))
    return from_flags(SeedsConfig, flags | knobs | {"seeds": seeds})


def alone(config, seed, log_dir):
    return dataclasses.replace(config.of_seed(seed), log_dir=log_dir)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("A", {}),
        ("B", {"token_control": "placebo", "use_language": True}),
        ("C", {"world_input_dropout": 0.3, "world_input_layernorm": True}),
        ("C", {"token_control": "shuffled", "dropout": 0.0}),
        ("C", {"token_control": "dummy", "max_grad_norm": 0.05}),
        ("C", {"token_control": "oracle", "block_world_to_action": True}),
        ("C_no_world_input", {"lr_schedule": "constant", "observation_dropout": 0.4}),
    ],
)
def test_each_seed_ends_as_its_own_training_does(cache, tmp_path, model_type, changes):
    config = seeds_config(cache, tmp_path / "together", model_type, **changes)
    results = run(config)
    for seed, result in zip(SEEDS, results, strict=True):
        own = train_one(alone(config, seed, tmp_path / f"alone_{seed}"))
        assert result.checkpoint == tmp_path / "together" / f"seed_{seed}" / own.checkpoint.name
        assert result.metrics == own.metrics
        stored, expected = (load_checkpoint(r.checkpoint, CPU) for r in (result, own))
        assert_same_weights(stored.model, expected.model)
        assert_same_content(stored.training_state, expected.training_state)
        assert log_lines(result.checkpoint.parent) == log_lines(own.checkpoint.parent)


def test_a_run_folder_is_that_of_a_single_run(cache, tmp_path):
    config = seeds_config(cache, tmp_path / "together", save_every_steps=7, keep_last=2)
    run(config)
    train_one(alone(config, 1, tmp_path / "alone"))
    folders = tmp_path / "together" / "seed_1", tmp_path / "alone"
    names, own_names = (
        {p.name for p in folder.iterdir() if not p.name.startswith("events")} for folder in folders
    )
    assert names == own_names
    flags, own = (json.loads((folder / "config.json").read_text("utf-8")) for folder in folders)
    assert flags == own | {"log_dir": str(folders[0])}


@pytest.mark.parametrize(
    ("owner", "name", "call", "steps"),
    [
        # The second seed's step of the fourteenth.
        (Trainer, "step", 27, (14, 14)),
        # The first seed has validated, the second is about to.
        (training_run, "validate", 1, (10, 10)),
    ],
)
def test_stopped_and_resumed_side_by_side_they_end_bit_identical(
    cache, tmp_path, monkeypatch, signal_at, owner, name, call, steps
):
    whole = run(seeds_config(cache, tmp_path / "whole"))
    config = seeds_config(cache, tmp_path / "stopped")
    signal_at(owner, name, call)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    newest = [newest_first(own.log_dir, "C")[0] for own in config.runs()]
    assert tuple(load_checkpoint(path, CPU).global_step for path in newest) == steps
    resumed = run(dataclasses.replace(config, resume=True))
    for one, other in zip(whole, resumed, strict=True):
        assert_same_weights(weights(one.checkpoint), weights(other.checkpoint))
        assert log_lines(one.checkpoint.parent) == log_lines(other.checkpoint.parent)


def test_a_seed_that_is_behind_catches_up(cache, tmp_path):
    whole = run(seeds_config(cache, tmp_path / "whole", num_epochs=3))
    config = seeds_config(cache, tmp_path / "killed", num_epochs=3, save_every_steps=5)
    run(config)
    for seed, kept in ((3, "model_C_epoch1_step5.pt"), (1, "model_C_epoch0_step5.pt")):
        paths = newest_first(config.of_seed(seed).log_dir, "C")
        for path in paths[: [path.name for path in paths].index(kept)]:
            path.unlink()
    resumed = run(dataclasses.replace(config, resume=True))
    for one, other in zip(whole, resumed, strict=True):
        assert_same_weights(weights(one.checkpoint), weights(other.checkpoint))
        logs = [log_lines(r.checkpoint.parent) for r in (one, other)]
        assert [x["global_step"] for x in logs[0]] == [x["global_step"] for x in logs[1]]


def test_a_single_run_goes_on_with_one_seed_and_the_others_leave_its_result_alone(cache, tmp_path):
    config = seeds_config(cache, tmp_path / "logs")
    whole = run(seeds_config(cache, tmp_path / "whole"))
    results = run(config)
    for result in results:
        result.checkpoint.unlink()
    finished = train_one(dataclasses.replace(config.of_seed(1), resume=True))
    assert finished.checkpoint == results[1].checkpoint
    assert_same_weights(weights(finished.checkpoint), weights(whole[1].checkpoint))
    content = finished.checkpoint.read_bytes()
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(resumed[0].checkpoint), weights(whole[0].checkpoint))
    assert finished.checkpoint.read_bytes() == content, "a finished seed is left alone"
    assert resumed[1] == finished


def test_one_seed_is_trained_as_before(cache, tmp_path):
    config = seeds_config(cache, tmp_path / "logs", seeds=None, seed=4)
    (result,) = run(config)
    assert result.checkpoint.parent == tmp_path / "logs"
    own = train_one(alone(seeds_config(cache, tmp_path), 4, tmp_path / "own"))
    assert_same_weights(weights(result.checkpoint), weights(own.checkpoint))
    assert "seeds" not in json.loads((tmp_path / "logs" / "config.json").read_text("utf-8"))


def test_a_folder_that_is_in_use_or_holds_a_run_is_refused(cache, tmp_path):
    config = seeds_config(cache, tmp_path / "logs", num_epochs=1)
    with (
        OutputLock(config.of_seed(1).log_dir, "--log_dir"),
        pytest.raises(InvalidInputError, match=r"seed_1 is being written"),
    ):
        run(config)
    run(config)
    with pytest.raises(InvalidInputError, match=r"seed_3 already holds a run.*--resume"):
        run(config)


def test_several_processes_are_refused(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match="--seeds trains in one process, not in 2"):
        run(seeds_config(cache, tmp_path / "logs"))
    assert not (tmp_path / "logs").exists()


def test_a_loss_that_explodes_names_its_seed(cache, tmp_path):
    knobs = {"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_steps": 0}
    with pytest.raises(InvalidInputError, match=r"seed 3, the loss is .*lower --learning_rate"):
        run(seeds_config(cache, tmp_path / "logs", **knobs))


def test_seeds_that_do_not_fit_on_the_device_are_one_message(cache, tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(Trainer, "step", full)
    with pytest.raises(InvalidInputError, match=r"2 seeds side by side do not fit on cpu.*fewer"):
        run(seeds_config(cache, tmp_path / "logs"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seeds": (0, 1, 0)}, "names 0 more than once"),
        ({"seeds": (0, 1), "seed": 2}, "--seed 2 or --seeds, not both"),
        ({"seeds": (0, 1), "compile": True}, "--compile trains one seed"),
        ({"seeds": (0, -1)}, "--seeds must be at least 0, not -1"),
        ({"seeds": ()}, "at least one"),
    ],
)
def test_seeds_that_name_no_set_of_runs_are_refused(flags, message):
    with pytest.raises(InvalidInputError, match=message):
        SeedsConfig(dataset_name="x/y", **flags)


def test_the_two_head_training_has_one_seed_a_process():
    flags = ["--dataset_name", "x/y", "--labels_jsonl", "x", "--seeds", "0", "1"]
    command = [sys.executable, "-m", "coc_vla.train", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "--seeds" in done.stdout + done.stderr


def test_the_frames_are_on_the_device_once(cache, tmp_path, monkeypatch):
    held = []
    made = Trainer.__init__

    def noting(self, policy, tensors, *others):
        held.append(tensors)
        made(self, policy, tensors, *others)

    monkeypatch.setattr(Trainer, "__init__", noting)
    run(seeds_config(cache, tmp_path / "logs", num_epochs=1))
    assert len(held) == len(SEEDS)
    assert held[0] is held[1]
