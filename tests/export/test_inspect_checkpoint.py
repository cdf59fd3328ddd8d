"""One screen says what a checkpoint is; what it does not know, it does not make up."""

import dataclasses
import json

import pytest
import torch

from tests.export.test_export_policy import offline_report, written
from tests.fixtures.exported import changed_checkpoint
from world_modality.cache.contract import sha256_of_file
from world_modality.inspect_checkpoint import InspectCheckpointConfig, run
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError, UserError

CPU = torch.device("cpu")


def screen(path, capsys):
    run(InspectCheckpointConfig(path))
    return capsys.readouterr().out


def test_arm_flags_data_and_fingerprints_are_shown(home, capsys):
    path = home.checkpoints["C"]
    out = screen(path, capsys)
    checkpoint = load_checkpoint(path, CPU)
    assert "C: reads the world token, predicts future tokens" in out
    assert "1 of 1 epochs, 3 steps, seed 0" in out
    assert "3 frames seen, 4 actions at once, language" in out
    assert "--d_model 32" in out
    assert "--context_frames 3" in out
    assert "--log_dir" not in out
    assert "6 episodes (5 of training, 1 held out), 78 frames, 3 tasks, 10 fps" in out
    assert sha256_of_file(path) in out
    assert checkpoint.cache_fingerprint in out
    assert "pixel-pca, D=6" in out
    assert "no report lies beside the checkpoint" in out
    assert len(out.splitlines()) <= 24


def test_an_arm_without_tokens_or_language_says_so(home, capsys):
    out = screen(home.checkpoints["A"], capsys)
    assert "A: reads no world token, does not predict future tokens" in out
    assert "1 frame seen" in out
    assert "no language" in out
    assert "\n  text " not in out


def test_all_cameras_are_named(home, tmp_path, capsys):
    path = home.checkpoints["C"]
    manifest = load_checkpoint(path, CPU).manifest
    cameras = ["observation.images.front", "observation.images.wrist"]
    dataset = {**manifest["dataset"], "image_key": cameras[0], "image_keys": cameras}
    path = changed_checkpoint(path, tmp_path, manifest={**manifest, "dataset": dataset})
    assert f"{cameras[0]}, {cameras[1]}, {dataset['state_key']}" in screen(path, capsys)


def test_a_control_and_a_further_head_are_named(home, tmp_path, capsys):
    path = home.checkpoints["C"]
    train_config = load_checkpoint(path, CPU).train_config
    path = changed_checkpoint(
        path,
        tmp_path,
        train_config=dataclasses.replace(train_config, token_control="dummy"),
        auxiliary_head={"name": "coc", "record": {}, "weights": {}},
        further_flags={"coc_loss_weight": 3.0},
    )
    out = screen(path, capsys)
    assert "C, control dummy" in out
    assert "coc, beside the actions" in out
    assert "--coc_loss_weight 3.0" in out


def test_reports_beside_it_are_shown_with_their_intervals(home, tmp_path, capsys):
    path = changed_checkpoint(home.checkpoints["C"], tmp_path)
    report = tmp_path / f"eval_offline_{path.stem}" / "eval_offline.json"
    written(report, offline_report(home))
    out = screen(path, capsys)
    assert "this policy 0.25 [0.125, 0.5]" in out
    assert "top-1: 25.0 % [12.5, 50.0]" in out
    report.write_text(json.dumps(offline_report(home, epoch=9)), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="report of another checkpoint"):
        run(InspectCheckpointConfig(path))


def test_a_missing_checkpoint_lists_those_beside_it(home):
    missing = home.checkpoints["C"].with_name("model_C_epoch7.pt")
    with pytest.raises(UserError, match=r"model_C_epoch0\.pt"):
        run(InspectCheckpointConfig(missing))
