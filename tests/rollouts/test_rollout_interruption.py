import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.demos.conftest import child_processes, wait_until_ended
from tests.fixtures.rollout import (
    PointSuite,
    evaluate_points,
    lines,
    outcomes,
    point_episodes,
)

ROOT = Path(__file__).parents[2]


def start_command(config, n_trials):
    """Start the evaluation as a process group; return when some episodes are done."""
    script = "from tests.fixtures.rollout import main; main()"
    flags = {
        "checkpoint": config.checkpoint[0],
        "out_dir": config.out_dir,
        "n_trials": n_trials,
        "env_num": 2,
    }
    command = [sys.executable, "-c", script, "--no_check_parity"]
    command += [text for name, value in flags.items() for text in (f"--{name}", str(value))]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in a shell's background inherits an ignored SIGINT, and would pass it on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    results = config.out_dir / "results.jsonl"
    while process.poll() is None and not (results.exists() and results.stat().st_size > 1000):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    return process


def assert_resumes_to_the_same(config, n_trials):
    episodes = point_episodes(num_episodes=n_trials)
    evaluate_points(PointSuite(), episodes, dataclasses.replace(config, resume=True))
    whole = dataclasses.replace(config, out_dir=config.out_dir.with_name("whole"))
    evaluate_points(PointSuite(), episodes, whole)
    assert outcomes(config) == outcomes(whole)


def test_killed_run_goes_on_to_the_same_results(config):
    with start_command(config, 40) as process:
        environments = child_processes(process.pid)
        time.sleep(random.uniform(0, 0.5))
        process.kill()
    wait_until_ended(environments, 20)
    done = (config.out_dir / "results.jsonl").read_bytes().count(b"\n")
    assert 0 < done < 80, "it was killed on the way"
    assert_resumes_to_the_same(config, 40)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_ends_cleanly(number, config):
    with start_command(config, 200) as process:
        environments = child_processes(process.pid)
        assert len(environments) >= 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        errors = process.stderr.read()
        assert process.wait(20) == 130, errors
    assert "Traceback" not in errors, errors
    assert "has the finished episodes; --resume goes on" in errors
    assert "interrupted; give the same command again with --resume" in errors
    wait_until_ended(environments, 20)
    assert 0 < len(lines(config)) < 400
    assert all(line["success"] is not None for line in lines(config)), "no error is made of it"
