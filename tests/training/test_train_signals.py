"""Training that is asked to stop: it finishes its step, saves, and says how to go on."""

import dataclasses
import os
import signal
import threading

import pytest

from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from world_modality.policy.checkpoint import newest_first
from world_modality.system import stop_signals
from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock
from world_modality.system.stop_signals import StopSignals
from world_modality.training import run as training_run
from world_modality.training.single import run
from world_modality.training.trainer import Trainer


@pytest.fixture(autouse=True)
def interruptible():
    """Let SIGINT arrive; a shell that starts a job in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(cache, tmp_path):
    return tiny_train_config(cache, tmp_path / "logs", "C", dropout=0.1, num_epochs=3)


@pytest.fixture
def whole(config, tmp_path):
    return run(dataclasses.replace(config, log_dir=tmp_path / "whole"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_end_and_the_resumed_run_is_bit_identical(
    config, whole, number, signal_at, monkeypatch, capsys
):
    signal_at(Trainer, "step", 13, number)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    newest = newest_first(config.log_dir, "C")[0]
    assert newest.name == "model_C_epoch1_step4.pt"
    said = capsys.readouterr().out
    assert f"stopped by {number.name} after step 14, saved as {newest}" in said
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(whole.checkpoint), weights(resumed.checkpoint))
    assert resumed.metrics == whole.metrics


def test_a_signal_during_validation_keeps_the_epochs_steps(config, whole, signal_at, monkeypatch):
    signal_at(training_run, "validate", 1)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.undo()
    assert newest_first(config.log_dir, "C")[0].name == "model_C_epoch1_step10.pt"
    steps = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, f: steps.append(1) or step(self, f))
    resumed = run(dataclasses.replace(config, resume=True))
    assert len(steps) == 10, "only the last epoch is trained"
    assert_same_weights(weights(whole.checkpoint), weights(resumed.checkpoint))
    log, other = (
        r.checkpoint.with_name("metrics.jsonl").read_text("utf-8") for r in (resumed, whole)
    )
    assert log == other


def test_a_signal_at_the_very_end_changes_nothing(config, whole, signal_at):
    signal_at(training_run.TrainingRun, "save", 2)
    result = run(config)
    assert_same_weights(weights(whole.checkpoint), weights(result.checkpoint))


def test_a_second_signal_interrupts_at_once_an_echo_does_not(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGTERM"
        monkeypatch.setattr(stop_signals, "REPEAT_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            raise AssertionError("the block was entered")
    assert signal.getsignal(signal.SIGTERM) is before, "the handler is put back"


def test_outside_the_main_thread_no_handler_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with StopSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_second_run_in_the_same_folder_is_refused(config):
    with (
        OutputLock(config.log_dir, "--log_dir"),
        pytest.raises(InvalidInputError, match=r"--log_dir: .* is being written by"),
    ):
        run(config)
    assert newest_first(config.log_dir, "C") == []
