"""The precompute stage as a process of its own, and its death by SIGKILL."""

import dataclasses
import json
import signal
import subprocess
import time

START_WITHIN_S = 300


def flags_of(config):
    """Give the flags that stand for a config."""
    words = []
    for key, value in dataclasses.asdict(config).items():
        if isinstance(value, bool):
            words += [f"--{key}" if value else f"--no_{key}"]
        elif value is not None:
            words += [f"--{key}", str(value)]
    return words


def kill_after_first_rows(command, progress):
    """Kill a stage once a progress file vouches for rows of the embeddings; return how many."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + START_WITHIN_S
    rows = 0
    while not rows and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
        if progress.exists():
            rows = json.loads(progress.read_text())["rows"].get("embeddings", 0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    return rows
