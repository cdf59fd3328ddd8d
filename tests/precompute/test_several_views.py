"""Views, grids and components in the cache: what is written, resumed, merged, reused, refused."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import tyro

from tests.fixtures.lerobot import change_rows, make_dataset
from tests.fixtures.policy import tiny_train_config
from tests.fixtures.process import flags_of, kill_after_first_rows
from world_modality.cache.contract import ARRAYS, Cache, require_arrays
from world_modality.cache.frame_shapes import ObservationShape
from world_modality.encode.embedding_components import EmbeddingComponents
from world_modality.encode.observation_encoder import load_observation_encoder
from world_modality.policy.checkpoint import load_checkpoint
from world_modality.precompute import embedding_pass
from world_modality.precompute_world_tokens import main, run
from world_modality.source.frame_decoding import view_blocks
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingKeyError
from world_modality.training.single import run as train

NAME = "local/tiny"
TOP, WRIST = "observation.images.image", "observation.images.image2"
NUM_FRAMES = 74
CELLS = "train_view_embeddings.fp16.npy"


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory):
    """A recording of two cameras that differ in their images' size."""
    folder = tmp_path_factory.mktemp("two_cameras") / "tiny"
    sizes = {WRIST: (36, 60)}
    return make_dataset(
        folder, num_episodes=5, num_frames=14, cameras=(TOP, WRIST), image_sizes=sizes
    )


@pytest.fixture(scope="module")
def config_of(precompute_config, two_cameras):
    """Return the command for both views in 3x3 cells of an untrained ViT, or with these flags."""

    def build(cache_dir, **flags):
        given = {
            "dataset_root": two_cameras,
            "image_key": (TOP, WRIST),
            "vision_model_name": "random-vit",
            "random_vit_image_size": 42,
            "embedding_grid": 3,
            "vq_num_tokens": 6,
            "batch_size": 8,
        }
        return precompute_config(cache_dir, **{**given, **flags})

    return build


@pytest.fixture
def config(config_of, tmp_path):
    return config_of(tmp_path / "cache")


@pytest.fixture(scope="module")
def whole(config_of, tmp_path_factory):
    """Caches of a single run: with two views in cells, with components of them, with one view."""
    folder = tmp_path_factory.mktemp("whole")
    flags = {
        "cells": {},
        "components": {"embedding_components": 7},
        "one": {"image_key": (TOP,), "embedding_grid": 1},
    }
    return {name: run(config_of(folder / name, **own)).cache for name, own in flags.items()}


def content_of(cache):
    """All that a cache is, apart from how fast it was made."""
    manifest = Cache(cache.cache_dir, cache.dataset_name).manifest
    assert manifest["compute"].pop("frames_per_s") > 0
    return manifest, {p.name: p.read_bytes() for p in cache.folder.glob("*.npy")}


def num_training_frames(cache):
    return int(np.isin(cache.load("episode_index"), cache.manifest["split"]["train"]).sum())


def assert_same(cache, expected):
    assert content_of(cache) == content_of(expected)
    assert not list(cache.folder.glob("*.partial"))
    assert not list(cache.folder.glob("*progress*"))
    assert not (cache.folder / "train_shards").exists()


@pytest.mark.parametrize("kind", ["cells", "components"])
def test_the_cells_are_those_of_the_encoder_that_the_manifest_rebuilds(whole, two_cameras, kind):
    cache = whole[kind]
    dim = {"cells": 192, "components": 7}[kind]
    assert cache.manifest["arrays"]["view_embeddings"]["shape"] == [NUM_FRAMES, 18, dim]
    assert cache.observation_shape == ObservationShape(dim, 2, 3)
    assert cache.image_keys == [TOP, WRIST]
    arrays = {name: cache.load(name) for name in cache.model_arrays}
    encoder = load_observation_encoder(cache.manifest, arrays, torch.device("cpu"))
    source = open_dataset(NAME, dataset_root=two_cameras)
    (views,) = view_blocks(source, cache.image_keys, np.arange(8), 8)
    expected = encoder.encode(views)
    stored = require_arrays(cache, ("view_embeddings", "embeddings", "world_tokens"))
    np.testing.assert_array_equal(stored["embeddings"][:8], expected.pooled.astype(np.float16))
    np.testing.assert_array_equal(stored["view_embeddings"][:8], expected.cells.astype(np.float16))


def test_a_checkpoint_carries_what_embeds_a_frame_again(whole, two_cameras, tmp_path):
    cache = whole["components"]
    trained = train(tiny_train_config(cache, tmp_path, "A", num_epochs=1, batch_size=64))
    checkpoint = load_checkpoint(trained.checkpoint, torch.device("cpu"))
    arrays = {name: array.numpy() for name, array in checkpoint.cache_arrays.items()}
    encoder = load_observation_encoder(checkpoint.manifest, arrays, torch.device("cpu"))
    assert encoder.shape == checkpoint.policy_config.frame.observation
    source = open_dataset(NAME, dataset_root=two_cameras)
    (views,) = view_blocks(source, [TOP, WRIST], np.arange(8), 8)
    stored = np.asarray(cache.load("view_embeddings"))[:8]
    np.testing.assert_array_equal(encoder.encode(views).cells.astype(np.float16), stored)


def test_the_first_views_pooled_vectors_and_tokens_are_those_of_a_cache_of_one_view(whole):
    for name in ("embeddings", "world_tokens", "codebook_centroids"):
        one = np.asarray(whole["one"].load(name))
        for kind in ("cells", "components"):
            np.testing.assert_array_equal(whole[kind].load(name), one)


def test_a_cache_of_one_vector_says_nothing_of_views(whole):
    cache = whole["one"]
    assert "observation" not in cache.manifest
    assert "image_keys" not in cache.manifest["dataset"]
    assert not (cache.folder / CELLS).exists()
    assert cache.observation_shape == ObservationShape(192)
    assert (cache.image_keys, cache.num_slots) == ([TOP], 1)


def test_the_manifest_says_what_the_cells_are(whole):
    manifest = whole["components"].manifest
    section = manifest["observation"]
    assert section["image_keys"] == manifest["dataset"]["image_keys"] == [TOP, WRIST]
    assert manifest["dataset"]["image_key"] == TOP
    assert (section["grid_size"], section["num_vectors"], section["embedding_dim"]) == (3, 18, 7)
    components = section["components"]
    assert components["num_components"] == 7
    assert 0.5 < components["explained_variance"] < 1
    assert components["fit_frames"] == num_training_frames(whole["components"])
    assert components["encoder_sha256"] == manifest["encoder"]["weights_sha256"]
    assert whole["cells"].manifest["observation"]["components"] is None


def test_the_summary_says_what_is_kept_of_a_frame(config, capsys):
    cache = run(replace(config, embedding_components=7)).cache
    printed = capsys.readouterr().out
    assert f"{TOP}, {WRIST}: 3x3 cells of M=7 each, components with" in printed
    # D and 18 cells of 7 numbers of two bytes; state, action, token, episode and task of four.
    num_bytes = 2 * (192 + 18 * 7) + 4 * (4 + 2 + 3)
    assert cache.bytes_per_frame == num_bytes
    assert f"{num_bytes} bytes a frame" in printed


def test_no_component_is_fitted_to_validation_episodes(whole, config, two_cameras, tmp_path):
    (held_out,) = whole["components"].manifest["split"]["val"]

    def spoiled(of_training):
        root = shutil.copytree(two_cameras, tmp_path / f"spoiled_{of_training}")

        def swap(rows):
            own = [(row["episode_index"] != held_out) == of_training for row in rows]
            chosen = np.flatnonzero(own)[:10]
            return [
                {**row, TOP: rows[0][TOP]} if frame in chosen else row
                for frame, row in enumerate(rows)
            ]

        change_rows(root, swap)
        flags = {"dataset_root": root, "cache_dir": tmp_path / f"cache_{of_training}"}
        return run(replace(config, embedding_components=7, **flags)).cache

    names = EmbeddingComponents.array_names
    of_validation, of_training = spoiled(of_training=False), spoiled(of_training=True)
    for name in names:
        expected = np.asarray(whole["components"].load(name))
        np.testing.assert_array_equal(of_validation.load(name), expected)
        assert (of_training.load(name) != expected).any()


def test_pixel_pca_is_fitted_to_the_images_of_all_views(config):
    flags = {"vision_model_name": "pixel-pca", "embedding_grid": 1}
    two = run(replace(config, **flags)).cache
    assert two.manifest["encoder"]["fit"]["num_frames"] == 2 * num_training_frames(two)
    assert two.load("view_embeddings").shape == (NUM_FRAMES, 2, 6)
    cells = two.load("view_embeddings")
    np.testing.assert_array_equal(cells[:, 0], two.load("embeddings"))
    assert (cells[:, 1] != cells[:, 0]).any()


def test_another_observation_is_another_cache_and_the_message_says_which(config, whole, capsys):
    cache = run(config).cache
    fingerprints = {cache.fingerprint()}
    for changes, told in (
        ({"embedding_grid": 2}, "observation.grid_size is 3 there, 2 here"),
        ({"embedding_components": 7}, "components.num_components is absent there, 7 here"),
        ({"embedding_components": 5}, "components.num_components is 7 there, 5 here"),
        ({"image_key": (WRIST, TOP)}, f'dataset.image_key is "{TOP}" there, "{WRIST}" here'),
        ({"image_key": (TOP,)}, "dataset.image_keys is"),
    ):
        capsys.readouterr()
        result = run(replace(config, **changes))
        assert result.speed.num_frames == NUM_FRAMES
        assert told in capsys.readouterr().out
        fingerprints.add(Cache(config.cache_dir, NAME).fingerprint())
    assert len(fingerprints) == 6
    result = run(config)
    assert result.speed is not None
    assert_same(result.cache, whole["cells"])


def test_one_view_again_leaves_nothing_of_several(config, whole):
    run(replace(config, embedding_components=7))
    one = run(replace(config, image_key=(TOP,), embedding_grid=1)).cache
    assert_same(one, whole["one"])
    assert one.fingerprint() == whole["one"].fingerprint()


def test_the_same_command_again_decodes_no_frame(config, monkeypatch, whole):
    flags = replace(config, embedding_grid=1, embedding_components=7)
    run(flags)
    monkeypatch.setattr(embedding_pass, "view_blocks", None)
    assert run(flags).reused == ("columns", "embeddings", "codebook")


@pytest.mark.parametrize("name", ["view_embeddings", "embeddings", "embedding_components_mean"])
def test_a_damaged_array_is_written_again(config, whole, name):
    cache = run(replace(config, embedding_components=7)).cache
    path = cache.array_path(name)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"SHA-256.*precompute_world_tokens"):
        Cache(config.cache_dir, NAME).load(name)
    run(replace(config, embedding_components=7))
    assert_same(cache, whole["components"])


# Every batch is put on the disk, so that there is one to find.
FLUSHING = """
from world_modality import precompute_world_tokens
from world_modality.precompute import embedding_pass
embedding_pass.FLUSH_INTERVAL_S = 0
precompute_world_tokens.main()
"""


@pytest.mark.slow
def test_killed_and_started_again_both_arrays_go_on_at_one_row(config, tmp_path):
    flags = replace(config, batch_size=1, embedding_components=7)
    folder = flags.cache_dir / NAME
    progress = folder / "train_embeddings_progress.json"
    rows = kill_after_first_rows([sys.executable, "-c", FLUSHING, *flags_of(flags)], progress)
    recorded = json.loads(progress.read_text("utf-8"))["rows"]
    assert 0 < rows <= recorded["embeddings"] == recorded["view_embeddings"] < NUM_FRAMES
    # Where one of the arrays is gone, both begin again.
    expected = {None: NUM_FRAMES - recorded["embeddings"]}
    expected |= dict.fromkeys(("view_embeddings", "embeddings"), NUM_FRAMES)
    single = run(replace(flags, cache_dir=tmp_path / "single")).cache
    for damaged, num_frames in expected.items():
        cache_dir = tmp_path / f"damaged_{damaged}"
        shutil.copytree(flags.cache_dir, cache_dir)
        if damaged is not None:
            (cache_dir / NAME / f"train_{damaged}.fp16.npy.partial").unlink()
        resumed = run(replace(flags, cache_dir=cache_dir))
        assert resumed.speed.num_frames == num_frames
        assert_same(resumed.cache, single)


@pytest.mark.parametrize("kind", ["cells", "components"])
def test_merged_shards_are_the_cache_of_a_single_run(config, whole, monkeypatch, kind):
    # A few rows at a time.
    monkeypatch.setattr("world_modality.precompute.shards.MERGE_BYTES", 4000)
    flags = replace(config, embedding_components=7 if kind == "components" else None)
    run(replace(flags, shard="1/3"))
    # What is fitted is fitted once, by the first that comes.
    monkeypatch.setattr(EmbeddingComponents, "fit", None)
    run(replace(flags, shard="2/3"))
    assert_same(run(flags).cache, whole[kind])
    assert run(replace(flags, shard="0/3")).reused == ("embeddings",)


def test_shards_of_another_observation_are_refused_and_the_difference_is_named(config):
    run(replace(config, shard="0/2"))
    for changes, told in (
        ({"embedding_grid": 2}, "observation.grid_size is 3 there, 2 here"),
        ({"image_key": (WRIST, TOP)}, f'image_key is "{TOP}" there, "{WRIST}" here'),
        ({"image_key": (TOP,)}, r"image_keys is .* there, absent here"),
        ({"embedding_components": 7}, "num_components is absent there, 7 here"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            run(replace(config, shard="1/2", **changes))


def test_a_damaged_shard_of_cells_is_refused_and_its_command_mends_it(config, whole):
    for shard in ("0/2", "1/2"):
        run(replace(config, shard=shard))
    path = config.cache_dir / NAME / "train_shards" / "0-of-2" / CELLS
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InvalidInputError, match=r"view_embeddings.*--shard 0/2"):
        run(config)
    run(replace(config, shard="0/2"))
    assert_same(run(config).cache, whole["cells"])


def test_the_disk_has_to_hold_both_arrays(config, monkeypatch):
    usage = shutil.disk_usage(config.dataset_root)
    pooled, cells = (
        NUM_FRAMES * width * np.dtype(ARRAYS[name].dtype).itemsize
        for name, width in (("embeddings", 192), ("view_embeddings", 18 * 192))
    )
    free = 1_000_000 + pooled + cells // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    with pytest.raises(InvalidInputError, match=r"embeddings, view_embeddings need .* GB free"):
        run(config)


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"image_key": (TOP, "observation.images.imag")}, MissingKeyError, f"there are: .*{TOP}"),
        ({"image_key": (TOP, TOP)}, InvalidInputError, f"--image_key names {TOP} 2 times"),
        ({"image_key": ()}, MissingKeyError, "2 cameras .*choose one with --image_key"),
        ({"embedding_grid": 4}, InvalidInputError, "--embedding_grid 4 must lie between 1 and 3"),
        ({"embedding_grid": 0}, InvalidInputError, "--embedding_grid 0 must be at least 1"),
        ({"embedding_components": 193}, InvalidInputError, "193 is more than the 192 dimensions"),
        ({"embedding_components": -1}, InvalidInputError, "--embedding_components -1 must be at"),
        ({"vision_model_name": "pixel-pca"}, InvalidInputError, "pixel-pca has no map to divide"),
    ],
)
def test_what_no_encoder_can_give_is_refused_before_anything_is_written(
    config, changes, error, told
):
    with pytest.raises(error, match=told):
        run(replace(config, **changes))
    assert not list(config.cache_dir.rglob("*.npy*"))


def test_more_components_than_vectors_are_refused(config):
    flags = {"vision_model_name": "pixel-pca", "embedding_grid": 1, "pixel_pca_components": 6}
    with pytest.raises(
        InvalidInputError, match="--embedding_components 7 must lie between 1 and 6"
    ):
        run(replace(config, embedding_components=7, **flags))


def test_the_command_line_takes_several_cameras(config, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "world_modality.precompute_world_tokens.run_cli", lambda kind, run: seen.append(kind)
    )
    main()
    parsed = tyro.cli(seen[0], args=flags_of(config), use_underscores=True)
    assert parsed == config
    one = tyro.cli(seen[0], args=["--dataset_name", NAME, "--image_key", TOP], use_underscores=True)
    assert one.image_key == (TOP,)
