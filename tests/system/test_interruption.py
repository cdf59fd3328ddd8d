"""SIGTERM and SIGINT end every stage's command: code 130, nothing half-written, no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from world_modality.system import stop_signals

ROOT = Path(__file__).parents[2]
COMMAND = """
import sys, time
from dataclasses import dataclass
from world_modality.system.cli import run_cli

@dataclass(frozen=True)
class Config:
    {fields}

def run(config):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        time.sleep(0.5)
        print("cleaned up", flush=True)

run_cli(Config, run)
"""


def start(code, first_line):
    """Run code in a process of its own, and wait for the first line that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in a shell's background inherits an ignored SIGINT, and would pass it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.stdout.readline() != first_line:
        assert process.poll() is None
    return process


def start_stage(fields="seed: int = 0"):
    return start(COMMAND.format(fields=fields), "working\n")


@pytest.mark.parametrize(
    ("number", "fields", "how"),
    [
        (signal.SIGTERM, "seed: int = 0", ""),
        (signal.SIGINT, "resume: bool = False", " with --resume"),
    ],
)
def test_a_signal_ends_a_stage_with_code_130_and_says_how_to_go_on(number, fields, how):
    with start_stage(fields) as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "cleaned up\n")
    told = f"interrupted; give the same command again{how} to go on with what is finished\n"
    assert errors == told


def test_echoes_of_the_signal_do_not_disturb_the_cleaning_up():
    with start_stage() as process:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.1)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "cleaned up\n"), errors


@pytest.fixture
def handlers():
    """The handlers before the test, which are put back after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_that_a_library_swallowed_can_be_repeated(monkeypatch, handlers):
    monkeypatch.setattr(stop_signals, "REPEAT_S", 0.0)
    with stop_signals.termination_as_interrupt():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)


def test_handlers_are_given_back_where_nothing_was_interrupted(handlers):
    with stop_signals.termination_as_interrupt():
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
