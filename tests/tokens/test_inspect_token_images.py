"""The pictures of world tokens: which frames they show, and what they are made of."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.lerobot import make_dataset
from world_modality.cache.contract import Cache
from world_modality.evaluation.slot_places import GAP, OUTLINE, Box, cell_images, seen_box
from world_modality.evaluation.token_grid import TILE_SIDE, Tile, draw_grid, thumbnail
from world_modality.inspect_token_images import (
    InspectConfig,
    choose_tokens,
    main,
    run,
    sample_frames,
)
from world_modality.precompute_world_tokens import PrecomputeConfig
from world_modality.precompute_world_tokens import run as precompute
from world_modality.system.errors import InvalidInputError, MissingFileError

NAME = "local/tiny"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    root = make_dataset(folder / "tiny")
    precompute(
        PrecomputeConfig(
            dataset_name=NAME,
            dataset_root=root,
            cache_dir=folder / "cache",
            vision_model_name="pixel-pca",
            pixel_pca_size=8,
            pixel_pca_components=6,
            vq_num_tokens=8,
        )
    )
    return folder


@pytest.fixture
def config(prepared, tmp_path):
    return InspectConfig(
        dataset_name=NAME,
        dataset_root=prepared / "tiny",
        cache_dir=prepared / "cache",
        out_dir=tmp_path / "out",
        num_tokens=4,
        samples_per_token=5,
    )


def test_the_documented_command_writes_grids_sheet_and_list(config, monkeypatch, capsys):
    command = (
        f"--dataset_name {NAME} --cache_dir {config.cache_dir} --split train "
        f"--image_key observation.image --out_dir {config.out_dir} --num_tokens 10 "
        f"--samples_per_token 12 --dataset_root {config.dataset_root}"
    )
    monkeypatch.setattr(sys, "argv", ["inspect_token_images", *command.split()])
    main()
    said = capsys.readouterr().out
    tokens = np.unique(Cache(config.cache_dir, NAME).load("world_tokens"))
    assert f"only {len(tokens)} of 8 codes are used" in said
    assert "never a DINOv2 result" in said
    assert {p.name for p in config.out_dir.glob("token_*.jpg")} == {
        f"token_{token}.jpg" for token in tokens
    }
    for path in config.out_dir.glob("*.jpg"):
        with Image.open(path) as image:
            assert image.format == "JPEG"
            assert min(image.size) > 80


def test_the_list_names_frames_that_have_the_token(config):
    run(config)
    report = json.loads((config.out_dir / "token_frames.json").read_text("utf-8"))
    assert "never a DINOv2 result" in report["note"]
    cache = Cache(config.cache_dir, NAME)
    world_tokens = np.asarray(cache.load("world_tokens"))
    episode_index = np.asarray(cache.load("episode_index"))
    counts = np.bincount(world_tokens)
    shown = [token["token"] for token in report["tokens"]]
    assert [counts[t] for t in shown] == sorted(counts, reverse=True)[:4]
    for token in report["tokens"]:
        assert token["num_frames"] == counts[token["token"]]
        for frame in token["frames"]:
            assert world_tokens[frame["frame"]] == token["token"]
            assert episode_index[frame["frame"]] == frame["episode_index"]
            first = np.flatnonzero(episode_index == frame["episode_index"])[0]
            assert frame["frame"] - first == frame["frame_in_episode"]


def test_the_tiles_are_the_frames(config):
    from world_modality.source.frame_decoding import frames_at
    from world_modality.source.lerobot_adapter import open_dataset

    (sample,) = run(dataclasses.replace(config, num_tokens=1, samples_per_token=1))
    source = open_dataset(NAME, dataset_root=config.dataset_root)
    (frame,) = frames_at(source, "observation.image", sample.frames)
    expected = thumbnail(frame).astype(int)
    with Image.open(config.out_dir / sample.file_name) as image:
        pixels = np.asarray(image).astype(int)
    tile = pixels[24 : 24 + expected.shape[0], 6 : 6 + expected.shape[1]]
    assert np.abs(tile - expected).mean() < 3  # JPEG


def test_a_second_run_leaves_no_grid_of_the_first(config):
    run(config)
    (config.out_dir / "mine.jpg").write_bytes(b"")
    (shown,) = run(dataclasses.replace(config, num_tokens=1))
    assert [p.name for p in config.out_dir.glob("token_*.jpg")] == [shown.file_name]
    assert (config.out_dir / "mine.jpg").exists()


@pytest.mark.parametrize("name", ["../precious.jpg", "config.json", "notes.jpg", ".lock", "", 7])
def test_a_list_that_names_other_files_removes_none_of_them(config, name):
    for path in (config.out_dir / "notes.jpg", config.out_dir.parent / "precious.jpg"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept")
    (config.out_dir / "token_frames.json").write_text(json.dumps({"tokens": [{"file": name}]}))
    run(config)
    assert (config.out_dir / "notes.jpg").read_text("utf-8") == "kept"
    assert (config.out_dir.parent / "precious.jpg").read_text("utf-8") == "kept"


def test_the_same_seed_shows_the_same_frames(config):
    drawn = [
        [s.frames.tolist() for s in run(dataclasses.replace(config, seed=seed))]
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_episode_is_shown_before_any_is_shown_twice():
    rng = np.random.default_rng(0)
    world_tokens = rng.integers(0, 3, 400)
    episodes = np.repeat(np.arange(8), 50)
    for num_samples in (5, 8, 11, 16):
        sample = sample_frames(1, world_tokens, episodes, num_samples, rng)
        assert (world_tokens[sample.frames] == 1).all()
        assert len(np.unique(sample.frames)) == num_samples
        per_episode = np.bincount(episodes[sample.frames], minlength=8)
        assert per_episode.max() - per_episode.min() <= 1


def test_a_rare_token_shows_all_its_frames():
    world_tokens = np.array([0, 1, 0, 0, 1, 0])
    sample = sample_frames(1, world_tokens, np.zeros(6, int), 12, np.random.default_rng(0))
    assert sample.frames.tolist() == [1, 4]
    assert (sample.num_frames, sample.num_episodes) == (2, 1)


def test_the_most_frequent_tokens_come_first_and_ties_by_id():
    world_tokens = np.array([5, 5, 5, 2, 2, 7, 7, 0])
    assert choose_tokens(world_tokens, 9, 3, ()) == [5, 2, 7]
    assert choose_tokens(world_tokens, 9, 9, ()) == [5, 2, 7, 0]
    assert choose_tokens(world_tokens, 9, 3, (0, 7)) == [0, 7]
    with pytest.raises(InvalidInputError, match="between 0 and 8"):
        choose_tokens(world_tokens, 9, 3, (9,))
    with pytest.raises(InvalidInputError, match="no frame has it"):
        choose_tokens(world_tokens, 9, 3, (8,))


def test_a_dataset_that_is_not_the_caches_is_refused(config, tmp_path):
    other = make_dataset(tmp_path / "other", num_episodes=3)
    with pytest.raises(InvalidInputError, match="but the cache was made from one with"):
        run(dataclasses.replace(config, dataset_root=other))
    with pytest.raises(MissingFileError, match="no cache at"):
        run(dataclasses.replace(config, cache_dir=tmp_path))
    assert not config.out_dir.exists()


def test_a_grid_has_room_for_every_tile():
    tiles = [
        Tile(np.full((80, 160, 3), 10 * i, dtype=np.uint8), f"frame {i}", "a very long task " * 9)
        for i in range(7)
    ]
    image = draw_grid("token 3", tiles)
    assert image.size[0] > 4 * 160
    pixels = np.asarray(image)
    for i in range(7):
        top, left = 24 + (i // 4) * (80 + 28 + 6), 6 + (i % 4) * (160 + 6)
        assert (pixels[top : top + 80, left : left + 160] == 10 * i).all()


def test_a_cell_is_a_part_of_what_the_encoder_sees():
    whole = seen_box({"resize": "area average"}, 40, 48)
    assert whole == Box(0, 0, 40, 48)
    # The shorter side of 40 becomes 32, of which the middle 28 are seen: 35 of 40, and of 48.
    processor = {"do_resize": True, "size": {"shortest_edge": 32}, "do_center_crop": True}
    processor["crop_size"] = {"height": 28, "width": 28}
    seen = seen_box(processor, 40, 48)
    assert seen == Box(2.5, 6.5, 35, 35)
    assert seen.cell(2, 1, 0) == Box(2.5, 24, 17.5, 17.5)
    assert seen_box({**processor, "do_center_crop": False}, 40, 48) == whole
    squashed = {**processor, "size": {"height": 56, "width": 28}}
    assert seen_box(squashed, 40, 48) == Box(0, 12, 40, 24)
    # Nothing is seen beyond the image.
    assert seen_box({**processor, "do_resize": False}, 20, 16) == Box(0, 0, 20, 16)


def test_the_cells_of_a_grid_tile_what_is_seen():
    seen = Box(2, 4, 30, 20)
    covered = np.zeros((30, 40), dtype=int)
    for row in range(3):
        for column in range(3):
            left, top, right, bottom = seen.cell(3, row, column).corners
            covered[top:bottom, left:right] += 1
    assert (covered[4:24, 2:32] == 1).all()
    assert covered.sum() == 20 * 30


def test_a_tile_shows_the_cell_beside_the_frame_that_outlines_it():
    image = np.zeros((TILE_SIDE, TILE_SIDE, 3), dtype=np.uint8)
    image[80:, 80:] = (10, 200, 30)
    tile, crop = cell_images(image, Box(0, 0, 160, 160).cell(2, 1, 1))
    assert (crop == (10, 200, 30)).all()
    assert tile.shape[1] == TILE_SIDE + GAP + crop.shape[1]
    np.testing.assert_array_equal(tile[: len(crop), TILE_SIDE + GAP :], crop)
    outlined = (tile[:TILE_SIDE, :TILE_SIDE] == OUTLINE).all(axis=2)
    rows, columns = np.nonzero(outlined)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (80, 159, 80, 159)
    assert not outlined[90:150, 90:150].any()
    assert (image[80, 80] == (10, 200, 30)).all()  # the frame itself is not drawn on
