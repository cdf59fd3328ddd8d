import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fixtures.cache import replace_arrays
from tests.fixtures.policy import assert_same_weights, tiny_train_config, weights
from tests.fixtures.process import wait_for
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError
from world_modality.training.single import run

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", ["A", "C"])
def test_a_resumed_run_ends_bit_identical_to_an_undisturbed_one(cache, tmp_path, model_type):
    knobs = {"dropout": 0.1, "num_epochs": 4}
    if model_type == "C":
        knobs["world_input_dropout"] = 0.3
    whole = run(tiny_train_config(cache, tmp_path / "whole", model_type, **knobs))
    config = tiny_train_config(cache, tmp_path / "halved", model_type, **knobs)
    run(config)
    for epoch in (2, 3):
        (config.log_dir / f"model_{model_type}_epoch{epoch}.pt").unlink()
    torch.manual_seed(999)
    resumed = run(dataclasses.replace(config, resume=True))
    assert_same_weights(weights(whole.checkpoint), weights(resumed.checkpoint))
    logs = [
        (folder / "metrics.jsonl").read_text("utf-8")
        for folder in (tmp_path / "whole", config.log_dir)
    ]
    assert logs[0] == logs[1]
    assert logs[0].count('"kind": "epoch"') == 4


def test_a_killed_training_process_resumes_bit_identical(cache, tmp_path):
    arguments = [
        *(sys.executable, str(ROOT / "train_model_c.py")),
        *("--dataset_name", cache.dataset_name, "--cache_dir", str(cache.cache_dir)),
        *("--d_model", "32", "--n_layers", "1", "--num_epochs", "6", "--batch_size", "16"),
        *("--device", "cpu", "--resume"),
    ]

    def command(name):
        return [*arguments, "--log_dir", str(tmp_path / name)]

    subprocess.run(command("whole"), cwd=ROOT, check=True, capture_output=True)
    process = subprocess.Popen(command("killed"), cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "killed" / "model_C_epoch1.pt").exists)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not list((tmp_path / "killed").glob("model_C_epoch5.pt"))
    subprocess.run(command("killed"), cwd=ROOT, check=True, capture_output=True)
    name = "model_C_epoch5.pt"
    assert_same_weights(weights(tmp_path / "whole" / name), weights(tmp_path / "killed" / name))


def test_resuming_a_finished_run_changes_nothing(cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "logs", "B")
    first = run(config)
    content = first.checkpoint.read_bytes()
    again = run(dataclasses.replace(config, resume=True))
    assert again == first
    assert again.checkpoint.read_bytes() == content


def test_an_existing_run_is_neither_overwritten_nor_mixed_by_accident(cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "logs", "B")
    run(config)
    with pytest.raises(InvalidInputError, match=r"already holds a run.*--resume"):
        run(config)
    with pytest.raises(InvalidInputError, match=r"--seed 0 then, 7 now"):
        run(dataclasses.replace(config, resume=True, seed=7))
    other_arm = dataclasses.replace(config, model_type="A", resume=True)
    with pytest.raises(InvalidInputError, match="already holds a run"):
        run(other_arm)
    replaced = run(dataclasses.replace(config, overwrite=True, seed=7))
    assert load_checkpoint(replaced.checkpoint, CPU).train_config.seed == 7


def test_resuming_on_a_changed_cache_is_refused(cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "logs", "B")
    run(config)
    states = np.array(cache.load("states")) + 1
    replace_arrays(cache, {"states": states})
    with pytest.raises(InvalidInputError, match=r"trained on another cache.*arrays differ"):
        run(dataclasses.replace(config, resume=True))


def test_compiling_without_a_compiler_says_what_is_missing(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = tiny_train_config(cache, tmp_path / "compiled", "C", compile=True)
    with pytest.raises(InvalidInputError, match=r"there is no no-such-compiler; apt-get install"):
        run(config)


@pytest.mark.slow
def test_a_compiled_run_resumed_ends_bit_identical_and_close_to_an_eager_one(cache, tmp_path):
    # In processes of their own: the shape checks of the tests cannot be compiled.
    flags = ["--dataset_name", cache.dataset_name, "--cache_dir", cache.cache_dir]
    flags += ["--d_model", "32", "--n_layers", "2", "--dropout", "0", "--batch_size", "32"]
    flags += ["--observation_dropout", "0.3"]
    flags += ["--num_epochs", "2", "--device", "cpu", "--log_dir"]

    def ends(*more: str | Path) -> dict[str, torch.Tensor]:
        command = [sys.executable, "train_model_c.py", *map(str, [*flags, *more])]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return weights(Path(more[0]) / "model_C_epoch1.pt")

    eager = ends(tmp_path / "eager")
    compiled = ends(tmp_path / "compiled", "--compile")
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(compiled[name], value) for name, value in eager.items())
    (tmp_path / "compiled" / "model_C_epoch1.pt").unlink()
    assert_same_weights(ends(tmp_path / "compiled", "--compile", "--resume"), compiled)
