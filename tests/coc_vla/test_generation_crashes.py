"""A labelling run that is killed at random moments; COC_KILLS sets how often."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coc_vla.coc_generation import CocGenerationConfig, run
from coc_vla.labels.record import scan_labels
from tests.fixtures.chat_server import ChatServer, good_reply, serving
from tests.fixtures.coc import comparable
from tests.fixtures.instruction import add_column
from tests.fixtures.lerobot import make_dataset
from world_modality.system.cli import flag_arguments

ROOT = Path(__file__).parents[2]
NUM_EPISODES = 80


def command_of(config):
    names = ("dataset_name", "dataset_root", "output_jsonl", "backend", "instruction_key")
    names += ("gripper_dim", "batch_size", "base_url", "concurrency")
    flags = flag_arguments({name: getattr(config, name) for name in names})
    return [sys.executable, "-m", "coc_vla.coc_generation", *flags, "--resume"]


def count_lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_and_resume(config, num_kills, longest_wait_s, seed=1):
    """Kill the stage at random moments after its first line, until it ends by itself."""
    rng = random.Random(seed)
    kills = 0
    while True:
        lines = count_lines(config.output_jsonl)
        process = subprocess.Popen(
            command_of(config), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while kills < num_kills and process.poll() is None:
            if count_lines(config.output_jsonl) > lines:
                time.sleep(rng.uniform(0, longest_wait_s))
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
                if rng.random() < 0.5:  # a kill inside a write, which is too short to be hit
                    with config.output_jsonl.open("ab") as file:
                        file.write(b'{"episode_id": 3, "instru')
                break
            time.sleep(0.002)
        else:
            stderr = process.communicate()[1]
            assert process.returncode == 0, stderr.decode()
            return kills


def reply_with_refusals(body, count):
    """Answer some first questions badly, by their seed alone: retries are interrupted, too."""
    is_retry = "It cannot be used" in body["messages"][0]["content"][-1]["text"]
    return "no idea" if body["seed"] % 4 == 0 and not is_retry else good_reply(body, count)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openai", "rules"])
def test_a_run_killed_at_random_moments_ends_with_the_same_labels(backend, tmp_path):
    root = make_dataset(tmp_path / "data", num_episodes=NUM_EPISODES)
    num_frames = sum(12 + episode % 3 for episode in range(NUM_EPISODES))
    add_column(root, "text", ["push the block to the goal"] * num_frames)
    num_kills = int(os.environ.get("COC_KILLS", "3"))
    with serving(ChatServer(reply_with_refusals, latency_s=0.1)) as url:
        whole = CocGenerationConfig(
            dataset_name="local/tiny",
            dataset_root=root,
            output_jsonl=tmp_path / "whole.jsonl",
            instruction_key="text",
            backend=backend,
            base_url=url if backend == "openai" else None,
            concurrency=2,
            batch_size=1,
            gripper_dim=1,
        )
        killed = dataclasses.replace(whole, output_jsonl=tmp_path / "killed.jsonl")
        # The rules are so fast that they would end before they are killed often enough.
        num_killed = kill_and_resume(killed, num_kills, 0.1 if backend == "openai" else 0.004)
        run(whole)
    print(f"{backend}: killed {num_killed} times")
    assert num_killed == num_kills
    assert comparable(killed.output_jsonl) == comparable(whole.output_jsonl)
    assert scan_labels(killed.output_jsonl).num_lines == NUM_EPISODES
