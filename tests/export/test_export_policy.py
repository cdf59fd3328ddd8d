"""A checkpoint becomes a folder; what does not belong together is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.fixtures.exported import CHUNK, CONTEXT, changed_checkpoint, exported
from world_modality.export.policy_record import PolicyRecord, lerobot_key
from world_modality.export_policy import ExportPolicyConfig, run
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.system.errors import InvalidInputError, UserError

CPU = torch.device("cpu")
FILES = {
    *("config.json", "model.safetensors", "README.md", "export_policy_config.json"),
    *("policy_preprocessor.json", "policy_postprocessor.json"),
}


def read(folder):
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def with_manifest(home, tmp_path, arm="C", section="dataset", **entries):
    """A copy of a checkpoint whose manifest says something else of one section."""
    path = home.checkpoints[arm]
    manifest = load_checkpoint(path, CPU).manifest
    manifest = {**manifest, section: {**manifest[section], **entries}}
    return changed_checkpoint(path, tmp_path / "changed", manifest=manifest)


@pytest.mark.parametrize("arm", ["A", "C"])
def test_the_folder_holds_weights_arrays_and_what_lerobot_asks_for(home, tmp_path, arm):
    folder = exported(home.checkpoints[arm], tmp_path / "out")
    assert {path.name for path in folder.iterdir() if path.name != ".lock"} == FILES
    checkpoint = load_checkpoint(home.checkpoints[arm], CPU)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in checkpoint.model.items():
        assert torch.equal(tensors.pop(f"model.{name}"), tensor)
    arrays = {"codebook_centroids", "pixel_pca_components", "pixel_pca_mean"}
    arrays |= {"instruction_embeddings"} if arm == "C" else set()
    assert set(tensors) == {f"arrays.{name}" for name in arrays}
    content = read(folder)
    assert content["type"] == "world_modality"
    assert content["n_action_steps"] == CHUNK
    assert set(content["input_features"]) == {"observation.image", "observation.state"}
    assert content["output_features"]["action"]["shape"] == [2]
    assert content["record"]["policy"]["model_type"] == arm
    assert "observation" not in content["record"]


def test_the_training_instructions_are_embedded_as_the_cache_has_them(home, tmp_path):
    folder = exported(home.checkpoints["C"], tmp_path / "out")
    rows = load_file(folder / "model.safetensors")["arrays.instruction_embeddings"].numpy()
    instructions = read(folder)["record"]["instructions"]
    cached = home.cache.load("instruction_embeddings")
    tasks = home.cache.load("task_index")
    texts = home.cache.manifest["dataset"]["tasks"]
    assert sorted(instructions) == sorted(texts.values())
    for task, text in texts.items():
        frame = int(np.flatnonzero(tasks == int(task))[0])
        found = rows[instructions.index(text)]
        np.testing.assert_allclose(found, cached[frame], atol=2e-3)


def test_a_record_survives_its_file_and_refuses_what_is_missing_or_unknown(home, tmp_path):
    content = read(exported(home.checkpoints["C"], tmp_path / "out"))["record"]
    assert PolicyRecord.read(content, "config.json").as_json() == content
    for wrong in (
        {**content, "colour": "red"},
        {name: value for name, value in content.items() if name != "codebook"},
        {**content, "policy": {**content["policy"], "depth": 3}},
        {**content, "arrays": {"codebook_centroids": {"dtype": "float32"}}},
        {**content, "format": "world-modality-policy/9"},
    ):
        with pytest.raises(InvalidInputError, match=r"lacks or adds|format"):
            PolicyRecord.read(wrong, "config.json")


def test_the_same_command_again_is_fine_and_another_policy_is_not_replaced(home, tmp_path):
    folder = exported(home.checkpoints["C"], tmp_path / "out")
    before = read(folder)
    exported(home.checkpoints["C"], folder)
    with pytest.raises(InvalidInputError, match=r"another policy.*--overwrite"):
        exported(home.checkpoints["A"], folder)
    assert read(folder) == before
    exported(home.checkpoints["A"], folder, overwrite=True)
    assert read(folder)["record"]["policy"]["model_type"] == "A"
    # An export that was interrupted has no configuration yet.
    (folder / "config.json").unlink()
    exported(home.checkpoints["C"], folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"thesis\.tex"):
        exported(home.checkpoints["C"], tmp_path / "full")


def test_an_interrupted_export_leaves_no_configuration(home, tmp_path, monkeypatch):
    folder = exported(home.checkpoints["C"], tmp_path / "out")

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save", stop)
    with pytest.raises(KeyboardInterrupt):
        exported(home.checkpoints["C"], folder)
    assert not (folder / "config.json").exists()


def test_actions_are_clipped_as_the_dataset_says(home, tmp_path):
    unknown = exported(home.checkpoints["A"], tmp_path / "drawn")
    assert read(unknown)["action_range"] is None
    given = exported(home.checkpoints["A"], tmp_path / "given", action_range=(-3.0, 2.0))
    assert read(given)["action_range"] == [-3.0, 2.0]
    recording = {"suite": {"name": "metaworld"}, "rendering": {}, "config": {}}
    path = with_manifest(home, tmp_path, "A", recording={**recording, "tasks": {"push-v3": {}}})
    folder = exported(path, tmp_path / "simulated")
    assert read(folder)["action_range"] == [-1.0, 1.0]
    assert "--env.task=push-v3" in (folder / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InvalidInputError, match="smaller number first"):
        ExportPolicyConfig(path, tmp_path, action_range=(1.0, -1.0))


@pytest.mark.parametrize(
    ("control", "refusal"),
    [("oracle", "a token of the future"), ("shuffled", r"a token that is drawn"), ("dummy", None)],
)
def test_a_control_whose_token_lerobot_cannot_give_is_refused(home, tmp_path, control, refusal):
    path = home.checkpoints["C"]
    train_config = load_checkpoint(path, CPU).train_config
    path = changed_checkpoint(
        path,
        tmp_path / "changed",
        train_config=dataclasses.replace(train_config, token_control=control),
    )
    if refusal is None:
        assert read(exported(path, tmp_path / "out"))["record"]["token_control"] == control
        return
    with pytest.raises(InvalidInputError, match=refusal):
        exported(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["codebook_centroids", "pixel_pca_mean"])
def test_an_array_that_is_not_the_manifests_is_refused(home, tmp_path, name):
    path = home.checkpoints["C"]
    arrays = dict(load_checkpoint(path, CPU).cache_arrays)
    arrays[name] = arrays[name] + 1
    path = changed_checkpoint(path, tmp_path / "changed", cache_arrays=arrays)
    with pytest.raises(InvalidInputError, match=r"not the one|another cache"):
        exported(path, tmp_path / "out")


def test_a_checkpoint_that_cannot_be_checked_is_refused(home, tmp_path):
    path = changed_checkpoint(home.checkpoints["C"], tmp_path / "changed", cache_fingerprint="")
    with pytest.raises(InvalidInputError, match="no fingerprint"):
        exported(path, tmp_path / "out")
    with pytest.raises(UserError, match="no checkpoint"):
        exported(tmp_path / "none.pt", tmp_path / "out")


def test_a_policy_of_more_world_tokens_than_its_codebook_gives_is_refused(home, tmp_path):
    path = home.checkpoints["C"]
    config = load_checkpoint(path, CPU).policy_config
    frame = config.frame
    several = dataclasses.replace(frame, world=dataclasses.replace(frame.world, num_world_slots=2))
    path = changed_checkpoint(
        path, tmp_path / "changed", policy_config=dataclasses.replace(config, frame=several)
    )
    with pytest.raises(InvalidInputError, match=r"1 tokens a frame, .* built for 2"):
        exported(path, tmp_path / "out")


def test_the_card_says_how_far_back_the_policy_reads(home, tmp_path):
    path = home.checkpoints["C"]
    config = load_checkpoint(path, CPU).policy_config
    past = {"context_stride": 4, "world_history": 5, "world_history_stride": 2}
    config = dataclasses.replace(config, window=dataclasses.replace(config.window, **past))
    path = changed_checkpoint(path, tmp_path / "changed", policy_config=config)
    card = (exported(path, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    words = " ".join(card.split())
    assert (
        "present world token and those of 5 earlier frames, 2 frames apart, and predicts" in words
    )
    assert f"from {CONTEXT} observed frames that are 4 apart, the robot's state" in words
    assert "It reads what was seen up to 10 frames ago" in words


def test_columns_get_the_names_that_lerobots_processors_let_pass():
    assert lerobot_key("observation.images.top") == "observation.images.top"
    assert [lerobot_key(name) for name in ("image", "state")] == [
        "observation.image",
        "observation.state",
    ]


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_policy_is_and_claims_nothing_without_reports(home, tmp_path):
    folder = exported(home.checkpoints["C"], tmp_path / "out", license="mit")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert front_matter(card) == {
        "library_name": "lerobot",
        "pipeline_tag": "robotics",
        "tags": ["lerobot", "robotics", "world_modality"],
        "license": "mit",
    }
    assert "nothing is claimed" in card
    assert "C (this one) | yes | yes" in card
    assert "pixel-pca is a stand-in" in card
    for text in home.cache.manifest["dataset"]["tasks"].values():
        assert f"- `{text}`" in card
    bare = exported(home.checkpoints["A"], tmp_path / "a")
    text = (bare / "README.md").read_text(encoding="utf-8")
    assert "license" not in front_matter(text)
    assert "reads no instruction" in text


def test_texts_of_a_dataset_do_not_break_the_card(home, tmp_path):
    path = with_manifest(home, tmp_path, "A", name="local/a|b`c\n# not a heading")
    folder = exported(path, tmp_path / "out")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "`local/a/b'c # not a heading`" in card
    assert not re.search("^# not a heading", card, re.MULTILINE)


def offline_report(home, arm="C", **run_entries):
    content = load_checkpoint(home.checkpoints[arm], CPU)
    interval = {"value": 0.25, "low": 0.125, "high": 0.5, "num_episodes": 3}
    return {
        "run": {
            "model_type": arm,
            "epoch": content.epoch,
            "cache_fingerprint": content.cache_fingerprint,
            "num_val_episodes": 3,
            **run_entries,
        },
        "actions": {name: {"mse": interval} for name in ("model", "task_mean", "last_action")},
        "world": {"all": [{"accuracy": {"model_top1": interval}}]},
    }


def rollout_report(sha256):
    interval = {"value": 0.75, "low": 0.5, "high": 0.9, "num_episodes": 20}
    policy = {"n_action_steps": 4, "temporal_ensemble_coeff": None}
    origin = {
        "checkpoint_sha256": sha256,
        "suite": "drawn",
        "world_corruption": "none",
        "rendering": {"image_size": 48},
        "policy": policy,
    }
    tasks = {"lift": {"success_rate": interval}}
    overall = {"success_rate": interval, "num_errors": 1}
    return {"checkpoints": [{"origin": origin, "tasks": tasks, "overall": overall}]}


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_reports_beside_the_checkpoint_are_in_the_card_with_their_intervals(home, tmp_path):
    path = changed_checkpoint(home.checkpoints["C"], tmp_path / "cell" / "train", epoch=1)
    sha256 = read(exported(path, tmp_path / "first"))["record"]["checkpoint"]["sha256"]
    written(
        path.parent / f"eval_offline_{path.stem}" / "eval_offline.json",
        offline_report(home, epoch=1),
    )
    written(tmp_path / "cell" / "rollouts" / "summary.json", rollout_report(sha256))
    written(tmp_path / "cell" / "rollouts_b" / "summary.json", rollout_report("of another"))
    card = (exported(path, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    assert "| this policy | 0.25 [0.125, 0.5] |" in card
    assert "next world token: 25.0 % [12.5, 50.0]" in card
    assert card.count("| lift | 75.0 % [50.0, 90.0] | 20 |") == 1
    assert "1 episodes ended in an error" in card
    assert "nothing is claimed" not in card


@pytest.mark.parametrize(
    ("report", "refusal"),
    [
        ({"epoch": 77}, "its epoch is 77"),
        ({"cache_fingerprint": "other"}, "another checkpoint: its cache_fingerprint"),
        (None, "no report of python -m world_modality.eval_offline"),
    ],
)
def test_a_report_of_another_checkpoint_is_refused(home, tmp_path, report, refusal):
    content = {} if report is None else offline_report(home, **report)
    path = written(tmp_path / "eval_offline.json", content)
    with pytest.raises(InvalidInputError, match=refusal):
        exported(home.checkpoints["C"], tmp_path / "out", eval_offline=path)


def test_rollouts_of_another_checkpoint_and_missing_reports_are_refused(home, tmp_path):
    path = written(tmp_path / "summary.json", rollout_report("of another"))
    with pytest.raises(InvalidInputError, match="reports no rollouts of"):
        exported(home.checkpoints["C"], tmp_path / "out", rollouts=(path,))
    with pytest.raises(UserError, match="no report"):
        exported(home.checkpoints["C"], tmp_path / "out", rollouts=(tmp_path / "none.json",))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="not JSON"):
        exported(home.checkpoints["C"], tmp_path / "out", rollouts=(path,))


def test_what_is_printed_names_the_folder_and_what_is_not_known(home, tmp_path, capsys):
    run(ExportPolicyConfig(home.checkpoints["C"], tmp_path / "out"))
    out = capsys.readouterr().out
    assert f"exported to {tmp_path / 'out'}" in out
    assert "actions are not clipped" in out
    assert "distilbert-base-uncased is a folder of this machine" in out
    assert "--policy.text_model_name=FOLDER" in out
    assert "no offline evaluation and 0 rollouts" in out
