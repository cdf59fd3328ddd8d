"""Embeddings made in shards, by several processes: the same cache as of one, whatever happens."""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from tests.fixtures.process import flags_of, kill_after_first_rows
from world_modality.cache.contract import Cache
from world_modality.encode.pixel_pca import PixelPCA
from world_modality.precompute.embedding_pass import EmbeddingJob
from world_modality.precompute.shards import FrameShard, ShardSet
from world_modality.precompute_world_tokens import run
from world_modality.system.errors import InvalidInputError
from world_modality.system.process_group import ProcessGroup

NAME = "local/tiny"
NUM_FRAMES = 135
ENCODERS = ("pixel-pca", "random-vit")


@pytest.fixture
def config_of(precompute_config):
    return lambda encoder, cache_dir: precompute_config(
        cache_dir, vision_model_name=encoder, batch_size=8
    )


@pytest.fixture
def config(config_of, tmp_path):
    return config_of("random-vit", tmp_path / "cache")


@pytest.fixture(scope="module")
def whole(precompute_config, tmp_path_factory):
    """The cache of a single run, for each encoder."""
    folder = tmp_path_factory.mktemp("whole")
    flags = {name: {"vision_model_name": name, "batch_size": 8} for name in ENCODERS}
    return {name: run(precompute_config(folder / name, **flags[name])).cache for name in ENCODERS}


def run_shards(config, indices, num_shards):
    for index in indices:
        run(replace(config, shard=f"{index}/{num_shards}"))


def content_of(cache):
    """All that a cache is, apart from how fast it was made."""
    manifest = Cache(cache.cache_dir, cache.dataset_name).manifest
    assert manifest["compute"].pop("frames_per_s") > 0
    files = {p.name: p.read_bytes() for p in cache.folder.glob("*.npy")}
    return manifest, files


def assert_merged(config, expected):
    cache = Cache(config.cache_dir, NAME)
    assert content_of(cache) == content_of(expected)
    assert not list(cache.folder.glob("*.partial"))
    assert not list(cache.folder.glob("*progress*"))
    assert not (cache.folder / "train_shards").exists()


def test_shards_cover_all_frames_once_and_begin_where_a_batch_does():
    for num_frames in (1, 7, 8, 64, 135, 1000):
        for batch_size in (1, 8, 64):
            num_batches = -(-num_frames // batch_size)
            for num_shards in range(1, min(num_batches, 20) + 1):
                ranges = [
                    FrameShard(i, num_shards).frames(num_frames, batch_size)
                    for i in range(num_shards)
                ]
                assert [f for r in ranges for f in r] == list(range(num_frames))
                assert all(r.start % batch_size == 0 for r in ranges)
                sizes = [-(-len(r) // batch_size) for r in ranges]
                assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["3", "4/4", "-1/4", "0/0", "a/b", "1/4/2", ""])
def test_a_shard_that_is_none_is_refused(config, text):
    with pytest.raises(InvalidInputError, match=r"--shard .* is not i/N"):
        run(replace(config, shard=text))


def test_more_shards_than_batches_are_refused(config):
    with pytest.raises(InvalidInputError, match="17 batches of 8, too few for 18 shards"):
        run(replace(config, shard="0/18"))
    assert not list(config.cache_dir.rglob("*.json"))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_merged_shards_are_the_cache_of_a_single_run(
    encoder, config_of, tmp_path, whole, monkeypatch
):
    # A few rows at a time.
    monkeypatch.setattr("world_modality.precompute.shards.MERGE_BYTES", 4000)
    config = config_of(encoder, tmp_path / "cache")
    run_shards(config, (2, 0, 1), 3)
    cache = Cache(config.cache_dir, NAME)
    assert not cache.manifest_path.exists()
    result = run(config)
    assert result.speed.num_frames == NUM_FRAMES
    assert_merged(config, whole[encoder])
    # Nothing is left to do, for a shard neither.
    assert run(config).reused == ("columns", "embeddings", "codebook")
    assert run(replace(config, shard="1/3")).reused == ("embeddings",)
    assert_merged(config, whole[encoder])


def test_pixel_pca_is_fitted_once_for_all_shards(config_of, tmp_path, monkeypatch, whole):
    config = config_of("pixel-pca", tmp_path / "cache")
    run_shards(config, (1,), 3)
    monkeypatch.setattr(PixelPCA, "fit", None)
    run_shards(config, (0, 2), 3)
    run(config)
    assert_merged(config, whole["pixel-pca"])


def test_a_missing_shard_is_named_with_its_command_and_written(config, capsys, whole):
    run_shards(config, (0, 2), 4)
    capsys.readouterr()
    run(config)
    printed = capsys.readouterr().out
    for index in (1, 3):
        assert f"shard {index}/4 is missing; run python -m" in printed
        assert (
            f"--dataset_name {NAME} --cache_dir {config.cache_dir} … --shard {index}/4" in printed
        )
    assert "shard 0/4" not in printed
    assert "writing 2 of 4 shards here" in printed
    assert_merged(config, whole["random-vit"])


def test_other_flags_are_refused_and_the_difference_is_named(config):
    run_shards(config, (0,), 3)
    for changes, difference in (
        ({"seed": 1}, "identity.encoder.seed is 0 there, 1 here"),
        ({"embedding_pooling": "mean"}, 'pooling is "cls" there, "mean" here'),
        ({"batch_size": 16}, "batch_size is 8 there, 16 here"),
    ):
        for shard in ("1/3", None):
            with pytest.raises(InvalidInputError, match=difference) as refused:
                run(replace(config, shard=shard, **changes))
            assert "train_shards" in str(refused.value)
    with pytest.raises(InvalidInputError, match="num_shards is 3 there, 4 here"):
        run(replace(config, shard="1/4"))
    with pytest.raises(InvalidInputError, match='kind is "random-vit" there, "pixel-pca" here'):
        run(replace(config, vision_model_name="pixel-pca"))


def test_a_shard_from_elsewhere_that_was_made_otherwise_is_refused(config, tmp_path):
    other = replace(config, cache_dir=tmp_path / "other", seed=1)
    run_shards(config, (0,), 2)
    run_shards(other, (1,), 2)
    shards = [c.cache_dir / NAME / "train_shards" for c in (other, config)]
    (shards[0] / "1-of-2").rename(shards[1] / "1-of-2")
    with pytest.raises(InvalidInputError, match=r"encoder\.seed is 0 there, 1 here"):
        run(config)
    assert not list((config.cache_dir / NAME).glob("*embeddings*.npy"))


def test_shards_of_a_gpu_merge_anywhere_but_the_rest_needs_one(config, monkeypatch, capsys):
    run_shards(config, (0,), 2)
    elsewhere = property(lambda job: {"device": "cuda", "dtype": "float16"})
    with monkeypatch.context() as patched:
        patched.setattr(EmbeddingJob, "compute", elsewhere)
        for shard in ("1/2", None):
            with pytest.raises(InvalidInputError, match='device is "cpu" there, "cuda" here'):
                run(replace(config, shard=shard))
        assert "shard 1/2 is missing; run python" in capsys.readouterr().out
    run_shards(config, (1,), 2)
    monkeypatch.setattr(EmbeddingJob, "compute", elsewhere)
    assert run(config).cache.manifest["compute"]["device"] == "cpu"


def test_a_damaged_shard_is_refused_and_its_command_mends_it(config, whole):
    run_shards(config, (0, 1), 2)
    path = config.cache_dir / NAME / "train_shards" / "1-of-2" / "train_embeddings.fp16.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"SHA-256.*--shard 1/2"):
        run(config)
    assert run(replace(config, shard="1/2")).speed.num_frames == NUM_FRAMES - 64
    run(config)
    assert_merged(config, whole["random-vit"])


def test_a_shard_that_is_being_written_has_one_writer(config):
    run_shards(config, (0, 1), 2)
    shards = ShardSet.find(Cache(config.cache_dir, NAME))
    with shards.lock(1):
        for shard in ("1/2", None):
            with pytest.raises(InvalidInputError, match=r"1-of-2 is being written by"):
                run(replace(config, shard=shard))
        run_shards(config, (0,), 2)
    run(config)


@pytest.mark.parametrize("step", ["_copy", "remove"])
def test_a_merge_that_was_killed_goes_on(config, monkeypatch, whole, step):
    run_shards(config, (0, 1, 2), 3)
    calls = []

    def killed(original):
        def call(*arguments):
            calls.append(arguments)
            if step == "remove" or len(calls) == 3:
                raise KeyboardInterrupt
            return original(*arguments)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(ShardSet, step, killed(getattr(ShardSet, step)))
        with pytest.raises(KeyboardInterrupt):
            run(config)
    run(config)
    assert_merged(config, whole["random-vit"])


def test_a_single_run_that_was_begun_is_kept_by_the_merge(config, monkeypatch, whole):
    monkeypatch.setattr("world_modality.precompute.embedding_pass.FLUSH_INTERVAL_S", 0)
    encoded = []

    def killed(array, first):
        encoded.append(first)
        if len(encoded) == 5:
            raise KeyboardInterrupt
        return array.astype("float16")

    with monkeypatch.context() as patched:
        patched.setattr("world_modality.encode.observation_encoder.to_float16", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    run_shards(config, (0, 1), 2)
    run(config)
    assert_merged(config, whole["random-vit"])


# Every batch is put on the disk, so that there is one to find.
FLUSHING = """
from world_modality import precompute_world_tokens
from world_modality.precompute import embedding_pass
embedding_pass.FLUSH_INTERVAL_S = 0
precompute_world_tokens.main()
"""


@pytest.mark.slow
def test_a_shard_that_was_killed_goes_on_where_it_stopped(config, tmp_path):
    shard = replace(config, batch_size=1, shard="1/2")
    progress = config.cache_dir / NAME / "train_shards/1-of-2/train_embeddings_progress.json"
    command = [sys.executable, "-c", FLUSHING, *flags_of(shard)]
    rows = kill_after_first_rows(command, progress)
    num_frames = len(FrameShard(1, 2).frames(NUM_FRAMES, 1))
    assert 0 < rows < num_frames
    assert 0 < run(shard).speed.num_frames <= num_frames - rows
    run(replace(shard, shard="0/2"))
    run(replace(shard, shard=None))
    single = replace(shard, shard=None, cache_dir=tmp_path / "single")
    assert_merged(shard, run(single).cache)


def test_each_process_of_a_launch_takes_a_shard_and_the_first_merges(config, monkeypatch, whole):
    manifest = Cache(config.cache_dir, NAME).manifest_path
    waited = []
    monkeypatch.setattr(
        ProcessGroup, "wait", lambda group: waited.append((group.index, manifest.exists()))
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for index in (1, 0):
        monkeypatch.setenv("LOCAL_RANK", str(index))
        group = ProcessGroup(torch.device("cpu"), index, 2)
        monkeypatch.setattr(ProcessGroup, "independent", lambda _, g=group: nullcontext(g))
        with pytest.raises(InvalidInputError, match="leave --shard out"):
            run(replace(config, shard="0/2"))
        run(config)
        assert manifest.exists() == (index == 0)
    assert waited == [(1, False), (0, False)], "all have their shards before the first merges"
    assert_merged(config, whole["random-vit"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        {"vision_model_name": "pixel-pca"},
        {"vision_model_name": "random-vit"},
        {"vision_model_name": "random-vit", "embedding_grid": 2, "embedding_components": 5},
    ],
    ids=["pixel-pca", "random-vit", "cells"],
)
def test_two_processes_of_accelerate_launch_write_the_cache_of_one(
    flags, precompute_config, tmp_path
):
    # pixel-pca's fit depends on the number of threads, which accelerate sets to one.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    caches = []
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m"]  # any free one
    for name, before in (("one", []), ("two", launch)):
        config = precompute_config(tmp_path / name, batch_size=8, **flags)
        words = ["-m", *before, "world_modality.precompute_world_tokens", *flags_of(config)]
        command = [sys.executable, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        caches.append(config)
    assert "shard 0/2: 64 frames" in done.stdout
    assert "shard 1/2: 71 frames" in done.stdout
    assert_merged(caches[1], Cache(caches[0].cache_dir, NAME))
