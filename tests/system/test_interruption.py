"""SIGTERM and SIGINT end every stage's command: code 130, nothing half-written, no process left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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


def start(fields="seed: int = 0", **options):
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(fields=fields)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background inherits an ignored SIGINT, and would pass it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    assert process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stage_with_code_130_and_says_how_to_go_on(number):
    with start() as process:
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "cleaned up\n")
    assert errors == "interrupted; give the same command again to go on with what is finished\n"


def test_a_stage_with_a_resume_flag_names_it():
    with start("resume: bool = False") as process:
        process.send_signal(signal.SIGTERM)
        assert "again with --resume to go on" in process.communicate(timeout=20)[1]


def test_echoes_of_the_signal_do_not_disturb_the_cleaning_up():
    with start() as process:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            time.sleep(0.1)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output) == (130, "cleaned up\n"), errors


def test_a_signal_that_a_library_swallowed_can_be_repeated(monkeypatch):
    from world_modality.system import stop_signals as interruption

    monkeypatch.setattr(interruption, "REPEAT_S", 0.0)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        with interruption.termination_as_interrupt():
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def test_handlers_are_given_back_where_nothing_was_interrupted():
    from world_modality.system.stop_signals import termination_as_interrupt

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with termination_as_interrupt():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


RUN_CHILD = """
from world_modality import demo
from world_modality.system.cli import run_cli

def run(config):
    demo._command("-c", "import time; print('child', flush=True); time.sleep(60)")

run_cli(demo.DemoConfig, run)
"""


def test_the_demo_ends_its_stage_before_it_ends():
    with subprocess.Popen(
        [sys.executable, "-c", RUN_CHILD],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.stdout.readline() != "child\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 130, process.stderr.read()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
