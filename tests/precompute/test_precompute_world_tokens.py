"""The stage that writes the cache: its arrays, reuse, resumption, leakage, and what it refuses."""

import functools
import io
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tqdm import tqdm

from tests.fixtures.cache import files_of
from tests.fixtures.lerobot import make_dataset
from tests.fixtures.process import flags_of, kill_after_first_rows
from world_modality.cache.contract import ARRAYS, CHANGE_ARRAYS, Cache, require_arrays
from world_modality.encode.observation_encoder import to_float16
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.precompute import embedding_pass
from world_modality.precompute.embedding_pass import prefetch
from world_modality.precompute_world_tokens import main, run
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError, MissingKeyError
from world_modality.tokens.codebook import load_quantiser

CAMERA = "observation.image"
NAME = "local/tiny"
EMBEDDINGS = "train_embeddings.fp16.npy"
# What precompute_world_tokens writes of one view.
ONE_VIEW_ARRAYS = sorted(
    ARRAYS.keys() - {"instruction_embeddings", "view_embeddings", *CHANGE_ARRAYS}
)


@pytest.fixture
def config(precompute_config, tmp_path):
    return precompute_config(tmp_path / "cache")


def arrays_of(cache):
    return files_of(cache.folder, "*.npy")


def refused(config, message, error=InvalidInputError, **changes):
    with pytest.raises(error, match=message):
        run(replace(config, **changes))
    assert not list(config.cache_dir.glob("**/*embeddings*.npy"))


def repaint(root, frames, color):
    """Replace the images of some frames by one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 48), color).save(buffer, "png")
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    rows = table.column(CAMERA).to_pylist()
    for frame in frames:
        rows[frame] = {**rows[frame], "bytes": buffer.getvalue()}
    column = table.schema.get_field_index(CAMERA)
    pq.write_table(
        table.set_column(column, CAMERA, pa.array(rows, table.schema.field(CAMERA).type)), path
    )


def test_every_array_of_the_contract_agrees_with_the_dataset(config):
    cache = run(config).cache
    names = [*ONE_VIEW_ARRAYS, *PixelPCA.array_names]
    assert sorted(cache.manifest["arrays"]) == sorted(names)
    arrays = require_arrays(cache, names)
    source = open_dataset(NAME, dataset_root=config.dataset_root)
    keys = {
        "states": "observation.state",
        "actions": "action",
        "episode_index": "episode_index",
        "task_index": "task_index",
        "environment_states": "observation.environment_state",
    }
    (block,) = source.columns(list(keys.values()))
    for name, key in keys.items():
        np.testing.assert_array_equal(arrays[name], block[key])
    encoder = PixelPCA.load(cache.manifest["encoder"], arrays)
    frames = np.arange(0, source.num_frames, 7)
    expected = encoder.encode(frames_at(source, CAMERA, frames))
    np.testing.assert_allclose(arrays["embeddings"][frames], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("l2_normalize", [False, True])
@pytest.mark.parametrize("backend", ["faiss", "sklearn", "torch"])
def test_tokens_follow_from_the_stored_arrays(config, l2_normalize, backend):
    # Chosen so that tokens assigned in the wrong space differ.
    settings = {"l2_normalize": l2_normalize, "vq_backend": backend}
    settings |= {"pixel_pca_components": 3, "vq_num_tokens": 10}
    cache = run(replace(config, **settings)).cache
    stored, centroids = cache.load("embeddings"), cache.load("codebook_centroids")
    assert cache.manifest["codebook"]["l2_normalize"] is l2_normalize
    tokens = np.asarray(cache.load("world_tokens"))
    quantiser = load_quantiser(cache.manifest["codebook"], {"codebook_centroids": centroids})
    np.testing.assert_array_equal(quantiser.encode(stored), tokens)
    vectors = stored.astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) if l2_normalize else 1
    distances = ((vectors[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(distances.argmin(axis=1), tokens)
    if l2_normalize:
        assert np.linalg.norm(centroids, axis=1).max() <= 1 + 1e-5


def test_the_manifest_says_what_the_arrays_are_made_of(config):
    manifest = run(config).cache.manifest
    dataset = manifest["dataset"]
    assert (dataset["num_frames"], dataset["num_episodes"], dataset["num_tasks"]) == (135, 9, 3)
    assert dataset["recording"] == {"simulator": "drawn", "seed": 0}
    assert dataset["tasks"]["2"] == "open the drawer"
    assert dataset["state_names"] == ["x", "y", "z", "speed"]
    assert (dataset["image_key"], dataset["state_key"]) == (CAMERA, "observation.state")
    assert sorted(manifest["split"]["train"] + manifest["split"]["val"]) == list(range(9))
    assert len(manifest["split"]["val"]) == 1
    assert "never a DINOv2 result" in manifest["encoder"]["note"]
    assert manifest["codebook"]["num_used"] <= 12
    assert manifest["versions"]["numpy"] == np.__version__


def test_nothing_is_fitted_on_validation_episodes(config, tmp_path):
    cache = run(config).cache
    (held_out,) = cache.manifest["split"]["val"]
    episode_index = np.asarray(cache.load("episode_index"))
    frames = np.flatnonzero(episode_index == held_out)
    other = shutil.copytree(config.dataset_root, tmp_path / "other")
    repaint(other, frames, (255, 0, 255))
    spoiled = run(replace(config, dataset_root=other, cache_dir=tmp_path / "other_cache")).cache
    assert spoiled.manifest["split"] == cache.manifest["split"]
    for name in ("pixel_pca_components", "pixel_pca_mean", "codebook_centroids"):
        np.testing.assert_array_equal(spoiled.load(name), cache.load(name))
    differs = (spoiled.load("embeddings") != cache.load("embeddings")).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(differs), frames)
    # A training frame does count.
    repaint(other, np.flatnonzero(episode_index != held_out)[:20], (255, 0, 255))
    again = run(replace(config, dataset_root=other, cache_dir=tmp_path / "third_cache")).cache
    assert (again.load("codebook_centroids") != cache.load("codebook_centroids")).any()
    assert (again.load("pixel_pca_mean") != cache.load("pixel_pca_mean")).any()


def test_the_same_command_gives_the_same_bytes(config, tmp_path):
    first = run(config).cache
    second = run(replace(config, cache_dir=tmp_path / "again")).cache
    assert arrays_of(first) == arrays_of(second)
    assert first.fingerprint() == second.fingerprint()
    other = run(replace(config, cache_dir=tmp_path / "seed", seed=1)).cache
    assert arrays_of(other) != arrays_of(first)


def test_a_second_run_reuses_everything(config, monkeypatch):
    first = run(config)
    assert (first.reused, first.speed.num_frames) == ((), 135)
    fingerprint, before = first.cache.fingerprint(), arrays_of(first.cache)
    monkeypatch.setattr(embedding_pass, "view_blocks", None)  # no frame may be decoded
    second = run(config)
    assert second.reused == ("columns", "embeddings", "codebook")
    assert arrays_of(second.cache) == before
    assert Cache(config.cache_dir, NAME).fingerprint() == fingerprint


def test_another_codebook_keeps_the_embeddings(config, monkeypatch):
    before = arrays_of(run(config).cache)
    monkeypatch.setattr(embedding_pass, "view_blocks", None)
    result = run(replace(config, vq_num_tokens=5, l2_normalize=True))
    assert result.reused == ("columns", "embeddings")
    assert result.cache.load("codebook_centroids").shape == (5, 6)
    assert arrays_of(result.cache)[EMBEDDINGS] == before[EMBEDDINGS]

    # And back again gives the first one.
    run(config)
    assert arrays_of(result.cache) == before


@pytest.mark.parametrize("name", ["states", "embeddings", "world_tokens", "pixel_pca_mean"])
def test_a_damaged_array_is_written_again(config, name):
    cache = run(config).cache
    before = arrays_of(cache)
    path = cache.array_path(name)
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    assert arrays_of(cache) != before
    run(config)
    assert arrays_of(cache) == before
    names = [*ONE_VIEW_ARRAYS, *PixelPCA.array_names]
    require_arrays(Cache(config.cache_dir, NAME), names)


def test_another_encoder_leaves_nothing_of_the_first(config):
    cache = run(config).cache
    result = run(replace(config, vision_model_name="random-vit"))
    assert result.reused == ("columns",)
    assert not list(cache.folder.glob("*pixel_pca*"))
    assert "pixel_pca_mean" not in result.cache.manifest["arrays"]
    assert result.cache.load("embeddings").shape == (135, 192)
    require_arrays(result.cache, ("embeddings", "world_tokens"))
    again = run(replace(config, vision_model_name="random-vit", batch_size=7))
    assert again.reused == ("columns", "embeddings", "codebook")


def test_another_dataset_under_the_name_leaves_nothing_of_the_first(config, tmp_path):
    run(config)
    stale = np.lib.format.open_memmap(
        config.cache_dir / NAME / "train_instruction_embeddings.fp16.npy",
        mode="w+",
        dtype="float16",
        shape=(135, 4),
    )
    stale.flush()
    other = make_dataset(tmp_path / "other", num_episodes=5, seed=3)
    result = run(replace(config, dataset_root=other))
    assert result.reused == ()
    names = {p.name for p in result.cache.folder.glob("*.npy")}
    assert "train_instruction_embeddings.fp16.npy" not in names
    assert "train_environment_states.f32.npy" not in names
    assert result.cache.load("embeddings").shape[0] == result.cache.load("states").shape[0] == 64


def stage(config):
    """Give the command line that stands for a config."""
    return [sys.executable, "-m", "world_modality.precompute_world_tokens", *flags_of(config)]


def test_killed_and_started_again_it_writes_the_same_arrays(config, tmp_path):
    long = make_dataset(tmp_path / "long", num_episodes=8, num_frames=40)
    vit = replace(
        config,
        dataset_root=long,
        vision_model_name="random-vit",
        random_vit_image_size=112,
        batch_size=4,
    )
    folder = vit.cache_dir / NAME
    rows = kill_after_first_rows(stage(vit), folder / "train_embeddings_progress.json")
    assert 0 < rows < 327
    assert not (folder / "train_embeddings.fp16.npy").exists()
    resumed = run(vit)
    # It went on instead of starting again, and left nothing behind.
    assert 0 < resumed.speed.num_frames <= 327 - rows
    assert not list(folder.glob("*.partial"))
    assert not list(folder.glob("*progress*"))
    whole = run(replace(vit, cache_dir=tmp_path / "whole")).cache
    assert arrays_of(resumed.cache) == arrays_of(whole)
    assert resumed.cache.fingerprint() == whole.fingerprint()


def test_rows_are_counted_with_the_progress_bar_switched_off(config, tmp_path, monkeypatch):
    with_bar = run(replace(config, cache_dir=tmp_path / "with_bar", batch_size=4)).cache
    monkeypatch.setattr(embedding_pass, "tqdm", functools.partial(tqdm, disable=True))
    monkeypatch.setattr(embedding_pass, "FLUSH_INTERVAL_S", 0)
    without = run(replace(config, batch_size=4)).cache
    assert arrays_of(without) == arrays_of(with_bar)


def test_the_command_line_works_and_says_what_the_encoder_is(config):
    done = subprocess.run(stage(config), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "never a DINOv2 result" in done.stdout
    assert "D=6" in done.stdout
    assert "V=12" in done.stdout
    saved = json.loads(
        (config.cache_dir / NAME / "train_precompute_world_tokens_config.json").read_text("utf-8")
    )
    assert saved["vision_model_name"] == "pixel-pca"


def test_the_documented_command_parses(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    command = (
        "--dataset_name HuggingFaceVLA/libero --split train "
        "--image_key observation.images.image --vision_model_name facebook/dinov2-base "
        f"--vq_num_tokens 1024 --l2_normalize --cache_dir {tmp_path}/cache"
    )
    monkeypatch.setattr(sys, "argv", ["precompute_world_tokens", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert "no dataset HuggingFaceVLA/libero" in capsys.readouterr().err


def test_bad_settings_are_refused(config):
    refused(config, "--split val: LeRobot datasets have one split", split="val")
    refused(config, r"--vq_num_tokens 500 is more than the \d+ training frames", vq_num_tokens=500)
    refused(config, "--vq_fit_frames is 10", vq_fit_frames=10)
    refused(config, "observation.imag", MissingKeyError, image_key=("observation.imag",))
    refused(config, "no column 'actions'.*there are: action", MissingKeyError, action_key="actions")
    refused(config, "no column 'state'", MissingKeyError, proprio_key="action+state")
    refused(config, "--val_fraction", val_fraction=1.5)
    refused(config, "--batch_size", batch_size=0)
    refused(config, "--pixel_pca_size 64", pixel_pca_size=64)


def test_a_full_disk_is_noticed_before_anything_is_written(config, monkeypatch):
    usage = shutil.disk_usage(config.dataset_root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(config, r"need 0\.00 GB .*0\.00 GB free.*--cache_dir")


def test_embeddings_that_float16_cannot_hold_are_refused():
    embeddings = np.ones((4, 3), dtype=np.float32)
    np.testing.assert_array_equal(to_float16(embeddings, 0), embeddings)
    embeddings[2, 1] = 1e5
    with pytest.raises(InvalidInputError, match="frame 12 overflows float16"):
        to_float16(embeddings, 10)
    embeddings[1, 1] = np.nan
    with pytest.raises(InvalidInputError, match="frame 11 is not finite"):
        to_float16(embeddings, 10)


def test_decoding_runs_ahead_but_not_far_and_its_errors_arrive():
    made = []

    def blocks():
        for i in range(100):
            made.append(i)
            yield np.array([i])
        raise InvalidInputError("the last block is damaged")

    ahead = prefetch(blocks(), depth=3)
    assert next(ahead).tolist() == [0]
    time.sleep(0.1)
    assert 3 <= len(made) <= 5
    ahead.close()
    with pytest.raises(InvalidInputError, match="damaged"):
        list(prefetch(blocks(), depth=3))


def test_joined_state_columns_stand_one_behind_the_other(config):
    own, simulator = "observation.state", "observation.environment_state"
    run(replace(config, proprio_key=f"{own}+{simulator}"))
    cache = Cache(config.cache_dir, NAME, "train")
    columns = pq.read_table(sorted(config.dataset_root.glob("data/*/*.parquet"))).to_pydict()
    expected = np.hstack([np.array(columns[own]), np.array(columns[simulator])])
    np.testing.assert_array_equal(cache.load("states"), expected.astype(np.float32))
    section = cache.manifest["dataset"]
    assert section["state_key"] == f"{own}+{simulator}"
    assert len(section["state_names"] or expected[0]) == expected.shape[1]
