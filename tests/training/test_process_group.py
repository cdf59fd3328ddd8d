"""Training in several processes: what it gives is what one process gives."""

import dataclasses
import signal
import sys

import pytest
import torch

from tests.fixtures.policy import log_lines, tiny_train_config, weights
from tests.fixtures.process import accelerate_launch, start_group, train_arguments, wait_for
from world_modality.policy.checkpoint import newest_first
from world_modality.policy.config import TrainConfig, flags_of, from_flags
from world_modality.system.errors import InvalidInputError
from world_modality.system.process_group import ProcessGroup, is_launched
from world_modality.training.single import run

CPU = torch.device("cpu")


@pytest.fixture
def config(cache, tmp_path):
    # 295 training frames: the last batch is one frame, and a process gets none of it.
    knobs = {"num_epochs": 3, "batch_size": 49, "log_every": 1, "dropout": 0.0}
    knobs["observation_dropout"] = 0.3
    return tiny_train_config(cache, tmp_path / "together", "C", token_control="shuffled", **knobs)


@pytest.fixture
def launched(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")


def assert_like(run_dir, reference):
    """Check a run against another, loss by loss and weight by weight, up to rounding."""
    lines = log_lines(run_dir), log_lines(reference)
    for line, expected in zip(*lines, strict=True):
        assert line.pop("kind") == expected.pop("kind")
        assert line == pytest.approx(expected, rel=2e-5, abs=2e-6)
    checkpoints = [newest_first(folder, "C")[0] for folder in (run_dir, reference)]
    assert checkpoints[0].name == checkpoints[1].name
    found, expected = map(weights, checkpoints)
    for name, values in expected.items():
        if name.endswith("in_proj_bias"):
            # The softmax does not see the keys' bias: its gradient is rounding alone, which Adam
            # scales up.
            for tensor in (values, found[name]):
                tensor.view(3, -1)[1] = 0
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_two_launched_processes_train_like_one_which_goes_on_where_they_stopped(config, tmp_path):
    alone = dataclasses.replace(config, log_dir=tmp_path / "alone")
    run(alone)
    said = accelerate_launch(train_arguments(config), 2)
    assert said.count("checkpoint: ") == 1, "the first process alone tells"
    assert "cpu of 2 processes" in said
    assert_like(config.log_dir, alone.log_dir)
    newest_first(config.log_dir, "C")[0].unlink()
    resumed = run(dataclasses.replace(config, resume=True))
    assert resumed.checkpoint.name == "model_C_epoch2.pt"
    assert_like(config.log_dir, alone.log_dir)


@pytest.mark.slow
def test_two_processes_learn_vectors_and_a_share_of_labels_like_one(config, tmp_path):
    flags = {"world_target": ("token", "embedding_change"), "labelled_fraction": 0.5}
    changed = {**flags_of(config), **flags, "num_epochs": 1}
    run(from_flags(TrainConfig, changed | {"log_dir": tmp_path / "alone"}))
    arguments = train_arguments(from_flags(TrainConfig, changed))
    arguments += ["--world_target", *flags["world_target"], "--labelled_fraction", "0.5"]
    accelerate_launch(arguments, 2)
    assert_like(config.log_dir, tmp_path / "alone")


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(config, tmp_path):
    alone = dataclasses.replace(config, log_dir=tmp_path / "alone")
    run(alone)
    run(config)
    newest_first(config.log_dir, "C")[0].unlink()
    processes = start_group([*train_arguments(config), "--resume"], 2)
    assert [process.wait() for process in processes] == [0, 0]
    assert_like(config.log_dir, alone.log_dir)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(config):
    long = dataclasses.replace(config, num_epochs=500)
    processes = start_group(train_arguments(long), 2)
    wait_for(lambda: newest_first(config.log_dir, "C"))
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [130, 130], said
    newest = newest_first(config.log_dir, "C")[0]
    assert "stopped by a signal to another process after step" in said[0][0]
    assert f"saved as {newest}" in said[0][0]
    assert "give the same command again with --resume" in said[0][1]
    assert "checkpoint" not in said[1][0] + said[1][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": "no/such"}, "precompute_world_tokens --dataset_name no/such"),
        ({"learning_rate": 1e30}, "lower --learning_rate"),
    ],
)
def test_an_error_ends_all_processes_and_is_told_once(config, changes, message):
    processes = start_group(train_arguments(dataclasses.replace(config, **changes)), 2)
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert message in said[0][1]
    assert "error: " not in said[1][1]


# The second one comes late; what is there by then is told after the wait.
APART = """
import sys, time
from pathlib import Path
from world_modality.system.process_group import ProcessGroup
with ProcessGroup.independent("cpu") as group:
    if not group.is_first:
        time.sleep(1)
    Path(sys.argv[1], str(group.index)).touch()
    group.wait()
    there = sorted(path.name for path in Path(sys.argv[1]).iterdir())
    print(group.device.type, group.num_processes, there)
"""


@pytest.mark.slow
def test_independent_processes_wait_for_each_other(tmp_path):
    for process in start_group(["-c", APART, str(tmp_path)], 2):
        # gloo says something before.
        assert process.communicate()[0].endswith("\ncpu 2 ['0', '1']\n")


@pytest.mark.parametrize("num_rows", [0, 1, 2, 3, 7, 256])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_the_parts_of_a_batch_are_the_batch(num_rows, num_processes):
    rows = list(range(num_rows))
    groups = [ProcessGroup(CPU, index, num_processes) for index in range(num_processes)]
    parts = [rows[group.part(num_rows)] for group in groups]
    assert [row for part in parts for row in part] == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_process_that_was_started_alone_is_none_of_a_launch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert not is_launched()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not is_launched()


def test_a_training_without_a_launcher_needs_no_accelerate(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert run(dataclasses.replace(config, num_epochs=1)).checkpoint.exists()


@pytest.mark.usefixtures("launched")
def test_a_launched_training_without_accelerate_says_how_to_get_it(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InvalidInputError, match=r"2 processes needs accelerate .*requirements.txt"):
        run(config)


@pytest.mark.usefixtures("launched")
def test_one_gpu_for_several_processes_is_refused(config):
    with pytest.raises(InvalidInputError, match="--device cuda:1 is one GPU"):
        run(dataclasses.replace(config, device="cuda:1"))


def test_a_launcher_that_starts_one_process_instead_of_several_is_noticed(config, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(InvalidInputError, match="add --multi_gpu"):
        run(config)
