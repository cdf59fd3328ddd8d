"""Training processes that work together, started as commands."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ACCELERATE = Path(sys.executable).with_name("accelerate")


def train_arguments(config):
    """Return the command line that gives this config of arm C."""
    flags = ("context_frames", "chunk_size", "future_offset", "future_stride", "d_model")
    flags += ("n_layers", "num_epochs", "batch_size", "warmup_steps", "log_every", "dropout")
    flags += ("token_control", "device", "dataset_name", "cache_dir", "log_dir", "learning_rate")
    named = [(f"--{name}", str(getattr(config, name))) for name in flags]
    return ["train_model_c.py", *(word for pair in named for word in pair)]


def accelerate_launch(arguments, num_processes):
    """Run a training through the launcher, to its end; returns what the first process said."""
    launcher = [str(ACCELERATE), "launch", "--multi_gpu", "--num_processes", str(num_processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--main_process_port", "0"]  # any free one
    done = subprocess.run([*launcher, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start_group(arguments, num_processes):
    """Start the processes of a training without a launcher, as it would start them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": num_processes, "LOCAL_WORLD_SIZE": num_processes, "MASTER_PORT": port}
    processes = []
    for rank in range(num_processes):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes
