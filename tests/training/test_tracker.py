"""The tracker gets what metrics.jsonl gets, and no failure of it ends a training."""

import json
import sys
from types import ModuleType

import pytest

from tests.fixtures.cache import write_synthetic_cache
from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from world_modality.policy.config import TrainConfig, flags_of, from_flags, stored_config
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run as train


class WandbStandInError(Exception):
    pass


class StandInRun:
    def __init__(self, settings):
        self.settings, self.lines, self.is_finished, self.fails = settings, [], False, False

    def define_metric(self, name, step_metric):
        assert (name, step_metric) == ("*", "global_step")

    def log(self, values):
        if self.fails:
            raise WandbStandInError("no space")
        self.lines.append(values)

    def finish(self):
        self.is_finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in the place of wandb that keeps what it is told."""
    module = ModuleType("wandb")
    module.Error, module.runs, module.fails = WandbStandInError, [], False
    module.refuses = False

    def init(**settings):
        if module.refuses:
            raise WandbStandInError("api_key not configured\n(no-tty)")
        run = StandInRun(settings)
        run.fails = module.fails
        module.runs.append(run)
        return run

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def cache(tmp_path):
    return write_synthetic_cache(tmp_path / "cache")


def config_of(cache, tmp_path, **changes):
    return tiny_train_config(cache, tmp_path / "logs_b", "B", tracker="wandb", **changes)


def test_the_tracker_gets_every_line_of_the_log_and_the_flags(wandb, cache, tmp_path):
    train(config_of(cache, tmp_path))
    (run,) = wandb.runs
    assert run.is_finished
    assert run.settings["project"] == "world-modality"
    assert run.settings["name"] == "logs_b"
    assert run.settings["config"]["model_type"] == "B"
    text = (tmp_path / "logs_b" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["global_step"] for line in lines] == [one["global_step"] for one in run.lines]
    last = run.lines[-1]
    assert last["epoch/val_action_mse"] == lines[-1]["val_action_mse"]
    assert any("train/learning_rate" in one for one in run.lines)


def test_a_resumed_training_goes_on_in_the_same_run_and_a_new_one_does_not(wandb, cache, tmp_path):
    train(config_of(cache, tmp_path, num_epochs=1, lr_schedule="constant"))
    resumed = dict(num_epochs=1, lr_schedule="constant", resume=True)
    train(config_of(cache, tmp_path, **resumed))
    train(config_of(cache, tmp_path, overwrite=True))
    first, again, other = (run.settings["id"] for run in wandb.runs)
    assert first == again != other


def test_tracking_changes_no_weight_and_no_failure_of_it_ends_the_training(
    wandb, cache, tmp_path, capsys
):
    wandb.fails = True
    tracked = train(config_of(cache, tmp_path)).checkpoint
    assert capsys.readouterr().err.count("nothing more of this run reaches wandb: no space") == 1
    plain = train(tiny_train_config(cache, tmp_path / "plain", "B")).checkpoint
    assert_same_weights(weights(tracked), weights(plain))


def test_a_tracker_that_does_not_start_says_what_to_do(wandb, cache, tmp_path, monkeypatch):
    wandb.refuses = True
    with pytest.raises(InvalidInputError, match="WANDB_MODE=offline") as caught:
        train(config_of(cache, tmp_path))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidInputError, match="pip install wandb"):
        train(config_of(cache, tmp_path, overwrite=True))


def test_checkpoints_of_before_have_no_tracker(cache, tmp_path):
    flags = flags_of(tiny_train_config(cache, tmp_path, "A"))
    del flags["tracker"]
    assert stored_config(TrainConfig, flags).tracker == "none"
    assert from_flags(TrainConfig, flags).tracker == "none"
