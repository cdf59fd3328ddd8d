"""Chaos on small stages written here, some of which lose work on purpose."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from ops import chaos, chaos_sync
from ops.chaos import ChaosConfig, run
from ops.comparison import compare_folders
from ops.store.errors import OpsError

ROOT = Path(__file__).parents[2]

# Adds up numbers in ten steps, one file each. CAREFUL publishes whole files and checks them.
STAGE = """
import hashlib, os, pathlib, sys, time
careful, resume = "--careful" in sys.argv, "--resume" in sys.argv
folder = pathlib.Path(sys.argv[1])
folder.mkdir(exist_ok=True)
total = 0
for step in range(10):
    path = folder / f"step{step}.txt"
    if resume and path.exists():
        number, digest = path.read_text("utf-8").split()
        if careful and hashlib.sha256(number.encode()).hexdigest() != digest:
            sys.exit(f"{path.name} is damaged")
        total = int(number)
        continue
    total += 1_000_003 * step + (0 if careful or not resume else 1)
    text = f"{total} {hashlib.sha256(str(total).encode()).hexdigest()}"
    partial = folder / "step.partial"
    with open(partial, "w") as file:
        file.write(text)
    os.replace(partial, path)
    time.sleep(0.01)
"""


@pytest.fixture
def stage(tmp_path):
    path = tmp_path / "stage.py"
    path.write_text(STAGE)
    return [sys.executable, "-S", str(path), "{dir}"]


def report_of(out):
    return json.loads((out / "report.json").read_text("utf-8"))


def test_a_stage_that_resumes_well_ends_as_if_undisturbed(stage, tmp_path, capsys):
    config = ChaosConfig(tmp_path / "out", kills=6, faults=8, compare=("step*.txt",))
    assert run(config, [*stage, "--careful"]) == 0, capsys.readouterr().out
    report = report_of(config.out)
    assert report["kills"] == 6
    whats = " ".join(finding["what"] for finding in report["findings"])
    for fault in ("cut to", "flipped", "read-only folder", "disk full"):
        assert fault in whats


def test_a_stage_that_resumes_badly_or_reads_damaged_files_is_found_out(stage, tmp_path):
    faults = {"faults": 6, "fault_kinds": ("flip",), "compare": ("step*.txt",)}
    config = ChaosConfig(tmp_path / "out", kills=4, **faults)
    assert run(config, stage) == 1
    verdicts = {finding["verdict"] for finding in report_of(config.out)["findings"]}
    assert "DIFFERS" in verdicts
    assert "USED SILENTLY" in verdicts


def test_a_command_that_fails_or_compares_nothing_proves_nothing(stage, tmp_path):
    with pytest.raises(OpsError, match="exit code 3"):
        run(ChaosConfig(tmp_path / "a", compare=("*",)), ["sh", "-c", "exit 3", "{dir}"])
    with pytest.raises(OpsError, match="matches no file"):
        run(ChaosConfig(tmp_path / "b", compare=("*.pt",)), stage)
    with pytest.raises(OpsError, match=r"as \{dir\}"):
        run(ChaosConfig(tmp_path / "c", compare=("*",)), ["true"])


def test_a_kill_reaches_the_children_of_the_command(tmp_path):
    script = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    outcome = chaos.run_killable(["sh", "-c", script], tmp_path / "log", kill_after_s=0.3)
    assert outcome.killed
    pid = (tmp_path / "pid").read_text("utf-8").strip()
    state = Path(f"/proc/{pid}/stat")
    assert not state.exists() or state.read_text("utf-8").split()[2] == "Z"


@pytest.mark.parametrize("namespaces", [True, False])
def test_a_full_disk_and_a_read_only_folder_refuse_writes(tmp_path, monkeypatch, namespaces):
    if not namespaces:
        monkeypatch.setattr(chaos, "has_namespaces", lambda: False)
    folder, log = tmp_path / "work", tmp_path / "log"
    fill = [sys.executable, "-S", "-c", f"open({str(folder / 'big')!r}, 'wb').write(b'x' * 2**21)"]
    full = chaos.run_on_full_disk(fill, folder, log, 2**20)
    assert full.exit_code != 0
    assert "File too large" in full.last_lines or (namespaces and "No space" in full.last_lines)
    (folder / "big").unlink()
    if namespaces or os.geteuid() != 0:  # permissions stop nobody who may do everything
        assert chaos.run_in_read_only_folder(fill, folder, log).exit_code != 0
    assert chaos.run_killable(fill, log).exit_code == 0


def test_damage_is_one_bit_or_a_missing_end(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    chaos.damage_file(path, "flip", random.Random(0))
    assert len(path.read_bytes()) == 100
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
    chaos.damage_file(path, "truncate", random.Random(0))
    assert len(path.read_bytes()) < 100


def folders(tmp_path, names, write):
    """Make a folder of each name, and let `write(folder, name)` fill it."""
    made = [tmp_path / name for name in names]
    for folder in made:
        folder.mkdir()
        write(folder, folder.name)
    return made


def test_comparisons_see_what_differs_and_ignore_what_may(tmp_path):
    def write(folder, name):
        line = {"seconds": name, "inner": {"seconds": name, "value": 2.0}}
        (folder / "m.jsonl").write_text(json.dumps(line) + "\n")
        np.save(folder / "a.npy", np.array([2.0, np.nan]))

    one, two = folders(tmp_path, ("one", "two"), write)
    spec = ({"jsonl": ["*.jsonl"], "npy": ["*.npy"]}, ["seconds"])
    assert compare_folders(one, two, *spec) == []
    assert compare_folders(one, two, {"exact": ["*"]}) != []
    np.save(two / "a.npy", np.array([2.0, np.nan], np.float32))
    (two / "extra.npy").write_bytes(b"")
    (two / "m.jsonl").unlink()
    assert set(compare_folders(one, two, *spec)) == {
        "a.npy differs",
        "extra.npy should not be there",
        "m.jsonl is missing",
    }


def test_an_array_that_would_run_code_is_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot be read" in compare_folders(tmp_path, tmp_path, {"npy": ["a.npy"]})[0]


def test_parquet_files_are_compared_by_their_columns(tmp_path):
    columns = {"frame": [0, 1], "state": [[0.5, 1.0], [2.0, float("nan")]], "png": [b"a", b"b"]}
    changes = {"three": {"png": [b"a", b"c"]}, "four": {"frame": [0.0, 1.0]}}

    def write(folder, name):
        table = pyarrow.table(columns | changes.get(name, {}))
        table = table.replace_schema_metadata({"fingerprint": name})
        pyarrow.parquet.write_table(table, folder / "file.parquet")

    one, two, three, four = folders(tmp_path, ("one", "two", "three", "four"), write)
    spec = {"parquet": ["*.parquet"]}
    assert compare_folders(one, two, {"exact": ["*"]}) != []
    assert compare_folders(one, two, spec) == []
    assert "png" in compare_folders(one, three, spec)[0]
    assert "frame" in compare_folders(one, four, spec)[0]


@pytest.mark.slow
def test_torch_files_are_compared_by_their_tensors(tmp_path):
    import torch

    def write(folder, name):
        bias = torch.tensor([-0.0 if name == "three" else 0.0])
        torch.save({"train_config": {"log_dir": name}, "bias": bias}, folder / "model.pt")

    one, two, three = folders(tmp_path, ("one", "two", "three"), write)
    spec = ({"pt": ["*.pt"]}, ["log_dir"])
    assert compare_folders(one, two, *spec) == []
    assert "bias" in compare_folders(one, three, *spec)[0]


@pytest.mark.slow
def test_faults_of_the_remote_and_kills_of_the_sync_lose_nothing(tmp_path, capsys):
    config = chaos_sync.ChaosSyncConfig(tmp_path / "out", faults=14, seed=1)
    assert chaos_sync.run(config, []) == 0, capsys.readouterr().out


def test_a_loss_on_the_remote_would_be_seen(tmp_path):
    config = chaos_sync.ChaosSyncConfig(tmp_path / "out", checkpoint_kib=1)
    config.out.mkdir()
    sync = chaos_sync.ChaosSync(config)
    sync.writer.step()
    assert sync.save_without_fault() == []
    (config.out / "remote" / "model_epoch0.pt").write_bytes(bytes(1024))
    (config.out / "remote" / "latest.json").unlink()
    assert sorted(line.split(" with ")[0] for line in sync.witness.losses()) == [
        "content of latest.json",
        "content of model_epoch0.pt",
    ]


@pytest.mark.slow
def test_help_of_every_command_of_ops_is_printed():
    for module in ("ops.sync", "ops.chaos", "ops.chaos_sync"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0
        assert "usage:" in done.stdout
