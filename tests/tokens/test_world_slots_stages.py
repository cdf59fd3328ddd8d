"""A frame of several world tokens through every stage, by the command lines."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.lerobot import make_dataset
from world_modality.cache.contract import Cache
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.tokens.world_tokens import load_tokeniser

NAME = "local/tiny"
CAMERAS = ("observation.images.front", "observation.images.wrist")


def command(module, *arguments):
    """Give a stage a command line, in this process."""
    before = sys.argv
    sys.argv = [module, *map(str, arguments)]
    try:
        importlib.import_module(module).main()
    finally:
        sys.argv = before


class Workplace:
    """A dataset of two cameras, and the commands for it."""

    def __init__(self, folder):
        self.folder = folder
        self.root = make_dataset(folder / "tiny", num_episodes=9, num_frames=14, cameras=CAMERAS)

    def flags(self, name):
        return ("--dataset_name", NAME, "--cache_dir", self.folder / name)

    def precompute(self, name, *flags, cameras=CAMERAS[:1]):
        command(
            "world_modality.precompute_world_tokens",
            *(*self.flags(name), "--dataset_root", self.root, "--image_key", *cameras),
            *("--vision_model_name", "random-vit", "--random_vit_size", "tiny"),
            *("--random_vit_image_size", "28", "--device", "cpu"),
            *("--vq_num_tokens", "6", "--val_fraction", "0.34", *flags),
        )
        return Cache(self.folder / name, NAME)

    def checkpoint(self, script):
        return next((self.folder / script).glob("model_?_epoch0.pt"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a cache of W = 4 cells, and the arms B and C trained on it."""
    place = Workplace(tmp_path_factory.mktemp("slots"))
    place.cache = place.precompute("cells", "--embedding_grid", "2", "--world_slots", "cell")
    for script in ("train_baseline_b", "train_model_c"):
        command(
            script,
            *(*place.flags("cells"), "--log_dir", place.folder / script, "--device", "cpu"),
            *("--d_model", "16", "--n_layers", "1", "--n_heads", "2", "--num_epochs", "1"),
            *("--batch_size", "32", "--warmup_steps", "1", "--future_offset", "2"),
        )
    return place


def test_the_cache_holds_four_tokens_a_frame_that_can_be_computed_again(place):
    cache = place.cache
    tokens, cells = cache.load("world_tokens"), cache.load("view_embeddings")
    codebook = cache.manifest["codebook"]
    assert (tokens.shape[1], codebook["slots"], codebook["num_slots"]) == (4, "cell", 4)
    arrays = {name: cache.load(name) for name in cache.model_arrays}
    again = load_tokeniser(cache.manifest, arrays).encode(None, cells)
    np.testing.assert_array_equal(again, tokens)
    frames = np.isin(cache.load("episode_index"), cache.manifest["split"]["train"])
    assert codebook["fit_frames"] == frames.sum()
    assert codebook["num_used"] == len(np.unique(tokens[frames]))


def test_a_codebook_is_fitted_to_no_more_vectors_than_frames_are_asked_for(place, capsys):
    place.precompute(
        "cells", "--embedding_grid", "2", "--world_slots", "cell", "--vq_fit_frames", "40"
    )
    said = capsys.readouterr().out
    assert "fitting 6 codes to 40 vectors of 10 training frames" in said
    assert "of their variance" in said
    place.precompute("cells", "--embedding_grid", "2", "--world_slots", "cell")


def test_a_checkpoint_counts_and_predicts_each_slot(place):
    checkpoint = load_checkpoint(place.checkpoint("train_model_c"), torch.device("cpu"))
    assert checkpoint.policy_config.frame.world.num_world_slots == 4
    assert checkpoint.cache_arrays["train_token_counts"].shape == (3, 4, 6)


@pytest.mark.parametrize("script", ["train_baseline_b", "train_model_c"])
def test_offline_evaluation_reports_each_slot_and_all(place, script, tmp_path, capsys):
    checkpoint = ("--checkpoint", place.checkpoint(script), "--out_dir", tmp_path)
    command("world_modality.eval_offline", *checkpoint, *place.flags("cells"), "--device", "cpu")
    world = json.loads((tmp_path / "eval_offline.json").read_text("utf-8"))["world"]
    assert len(world) == 2 * (1 + 4)
    for slot in range(4):
        row = world[f"all_slot{slot}"][0]
        assert row["cross_entropy"]["model"]["value"] > 0
        assert {"model_top1", "copy_top1", "bigram_top1"} <= row["accuracy"].keys()
    mean = np.mean([world[f"all_slot{i}"][0]["accuracy"]["copy_top1"]["value"] for i in range(4)])
    assert world["all"][0]["accuracy"]["copy_top1"]["value"] == pytest.approx(mean)
    assert "world tokens by slot" in capsys.readouterr().out


def test_one_slot_is_corrupted_and_does_not_replace_the_report_of_all(place, capsys):
    checkpoint = place.checkpoint("train_model_c")
    flags = ("--checkpoint", checkpoint, *place.flags("cells"), "--num_draws", "2")
    for slot in ((), ("--corrupt_slot", "1")):
        command("world_modality.intervention_corrupt_world", *flags, *slot)
    every, one = (
        json.loads((checkpoint.parent / f"{name}_{checkpoint.stem}/corrupt_world.json").read_text())
        for name in ("corrupt_world", "corrupt_world_slot1")
    )
    assert [f"{name}@1" for name in every["corruptions"]] == list(one["corruptions"])
    assert every["clean_mse"] == one["clean_mse"]
    assert every["corruptions"]["uniform"] != one["corruptions"]["uniform@1"]
    assert 0 < one["corruptions"]["uniform@1"]["changed_tokens"] < 1
    assert "ratio" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command("world_modality.intervention_corrupt_world", *flags, "--corrupt_slot", "4")
    assert "numbered from 0 to 3" in capsys.readouterr().err


def test_the_analysis_has_a_row_for_each_slot_and_all_tables_of_one(place, tmp_path, capsys):
    flags = (*place.flags("cells"), "--max_k", "2")
    command("world_modality.analyze_world_tokens", *flags, "--out_dir", tmp_path)
    said = capsys.readouterr().out
    every = json.loads((tmp_path / "analysis.json").read_text("utf-8"))
    assert [one["slot"] for one in every["slots"]] == [0, 1, 2, 3]
    assert (tmp_path / "analysis.png").read_bytes().startswith(b"\x89PNG")
    command("world_modality.analyze_world_tokens", *flags, "--slot", "2")
    assert "(slot 2)" in capsys.readouterr().out
    one = place.cache.folder / "analysis_slot2" / "analysis.json"
    alone = json.loads(one.read_text("utf-8"))
    assert alone.pop("world_tokens_sha256") == every["world_tokens_sha256"]
    assert alone == every["slots"][2]
    used = alone["train_usage"]["num_used"]
    tokens = place.cache.load("world_tokens")[:, 2]
    train = np.isin(place.cache.load("episode_index"), place.cache.manifest["split"]["train"])
    assert used == len(np.unique(tokens[train]))
    assert f"  {2:>4}{used:>9}" in said
    with pytest.raises(SystemExit):
        command("world_modality.analyze_world_tokens", *flags, "--slot", "4")


def test_the_report_reads_runs_and_analyses_of_several_slots(place, tmp_path, capsys):
    analysis = tmp_path / "tokens"
    flags = (*place.flags("cells"), "--max_k", "1", "--out_dir", analysis)
    command("world_modality.analyze_world_tokens", *flags)
    runs = [place.folder / script for script in ("train_baseline_b", "train_model_c")]
    for run in runs:
        (checkpoint,) = run.glob("model_?_epoch0.pt")
        command("world_modality.eval_offline", "--checkpoint", checkpoint, *place.flags("cells"))
    command("world_modality.report", *runs, analysis, "--out_dir", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "| tokens, slot 0 |" in text
    assert "| tokens, slot 3 |" in text


def test_pictures_show_the_cells_that_have_a_token(place, tmp_path, capsys):
    flags = (*place.flags("cells"), "--dataset_root", place.root, "--out_dir", tmp_path)
    command("world_modality.inspect_token_images", *flags, "--num_tokens", "3")
    report = json.loads((tmp_path / "token_frames.json").read_text("utf-8"))
    assert "cells (" in capsys.readouterr().out
    tokens = place.cache.load("world_tokens")
    for token in report["tokens"]:
        assert token["num_frames"] == (tokens == token["token"]).sum()
        for shown in token["frames"]:
            assert tokens[shown["frame"], shown["vector"]] == token["token"]
            assert shown["vector"] == 2 * shown["row"] + shown["column"]
        with Image.open(tmp_path / token["file"]) as image:
            assert image.format == "JPEG"
    command("world_modality.inspect_token_images", *flags, "--slot", "3", "--num_tokens", "2")
    report = json.loads((tmp_path / "token_frames.json").read_text("utf-8"))
    assert {shown["vector"] for one in report["tokens"] for shown in one["frames"]} == {3}
    assert report["tokens"][0]["share"] == np.bincount(tokens[:, 3]).max() / len(tokens)


def test_views_have_tokens_of_their_own_and_levels_stand_side_by_side(place, tmp_path, capsys):
    flags = ("--world_slots", "view", "--vq_kind", "residual", "--embedding_components", "4")
    cache = place.precompute("views", *flags, cameras=CAMERAS)
    assert cache.load("world_tokens").shape[1] == 4
    codebook = cache.manifest["codebook"]
    assert codebook["explained_variance"] > 0.5
    assert len(codebook["num_used_per_level"]) == 2
    assert min(codebook["num_used_per_level"]) == codebook["num_used"]
    assert cache.has("residual_centroids")
    capsys.readouterr()
    shown = (*place.flags("views"), "--dataset_root", place.root, "--out_dir", tmp_path)
    command("world_modality.inspect_token_images", *shown, "--image_key", CAMERAS[1])
    assert "the first of 2 levels" in capsys.readouterr().out
    report = json.loads((tmp_path / "token_frames.json").read_text("utf-8"))
    assert report["slots"] == [2]
    assert {s["image_key"] for one in report["tokens"] for s in one["frames"]} == {CAMERAS[1]}
    command("world_modality.analyze_world_tokens", *place.flags("views"), "--max_k", "1")
    # Another kind takes the array of the one before with it; embeddings are kept.
    again = place.precompute(
        "views", *flags[:2], "--embedding_components", "4", "--vq_kind", "product", cameras=CAMERAS
    )
    assert not again.has("residual_centroids")
    assert again.load("world_tokens").shape[1] == 2 * 4
    assert "reused            columns, embeddings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--world_slots", "cell"), "--world_slots cell gives tokens to views or cells"),
        (("--vq_levels", "3"), "--vq_levels 3 has no effect on --vq_kind kmeans"),
        (("--vq_kind", "residual", "--vq_levels", "1"), "--vq_levels must be at least 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_embedded(place, flags, message, capsys):
    with pytest.raises(SystemExit):
        place.precompute("refused", *flags)
    assert message in capsys.readouterr().err
    assert not (place.folder / "refused").exists()
