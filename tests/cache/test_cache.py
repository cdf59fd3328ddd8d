"""The disk contract: by round trip, and by every kind of damage."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.cache import (
    DATASET_NAME,
    SyntheticSpec,
    flip_bit,
    replace_arrays,
    synthetic_arrays,
    write_synthetic_cache,
)
from world_modality.cache.contract import (
    ARRAYS,
    Cache,
    cache_folder,
    require_arrays,
)
from world_modality.cache.writer import update_manifest
from world_modality.system import atomic
from world_modality.system.errors import InvalidInputError, MissingFileError, MissingKeyError

SPEC = SyntheticSpec(environment_dim=3, instruction_dim=5)
PUBLIC_FILES = {
    "train_embeddings.fp16.npy": ("float16", 2),
    "train_world_tokens.int.npy": ("int32", 1),
    "train_codebook_centroids.f32.npy": ("float32", 2),
    "train_states.f32.npy": ("float32", 2),
    "train_actions.f32.npy": ("float32", 2),
    "train_episode_index.i32.npy": ("int32", 1),
    "train_task_index.i32.npy": ("int32", 1),
    "train_instruction_embeddings.fp16.npy": ("float16", 2),
}
PRECOMPUTE = "run python -m world_modality.precompute_world_tokens --dataset_name synthetic/demo"


@pytest.fixture
def cache(tmp_path):
    return write_synthetic_cache(tmp_path / "cache", SPEC)


def reopened(cache):
    return Cache(cache.cache_dir, cache.dataset_name)


def test_everything_written_is_read_back_unchanged(cache):
    written = synthetic_arrays(SPEC)
    read = require_arrays(reopened(cache), written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype == ARRAYS[name].dtype
        np.testing.assert_array_equal(read[name], array)


def test_public_files_are_plain_numpy_with_the_documented_names_types_and_lengths(cache):
    num_frames = len(synthetic_arrays(SPEC)["world_tokens"])
    for name, (dtype, num_axes) in PUBLIC_FILES.items():
        array = np.load(cache.folder / name)
        assert (array.dtype, array.ndim) == (dtype, num_axes)
        rows = SPEC.num_tokens if "codebook" in name else num_frames
        assert len(array) == rows
    assert np.load(cache.folder / "train_embeddings.fp16.npy").shape[1] == SPEC.embedding_dim


def test_loaded_arrays_are_read_only_maps(cache):
    array = reopened(cache).load("embeddings")
    assert isinstance(array, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 0


def rewrite(path: Path, array: np.ndarray) -> None:
    np.save(path, array)


def foreign(path: Path) -> None:
    rng = np.random.default_rng(1)
    rewrite(path, rng.normal(size=np.load(path).shape).astype(np.float16))


DAMAGE = {
    "missing": (lambda path: path.unlink(), "is missing"),
    "empty": (lambda path: path.write_bytes(b""), "truncated or no array"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-7]), "truncated or no array"),
    "no_array": (lambda path: path.write_text("PK\x03\x04 nothing"), "truncated or no array"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04" + b"\0" * 300), "truncated or no array"),
    "pickle": (
        lambda path: np.save(path, np.array([{}]), allow_pickle=True),
        "truncated or no array",
    ),
    "dtype": (lambda path: rewrite(path, np.load(path).astype(np.float32)), "holds float32"),
    "length": (lambda path: rewrite(path, np.load(path)[:-1]), "says float16"),
    "axes": (lambda path: rewrite(path, np.load(path)[:, 0]), "says float16"),
    "flipped_byte": (lambda path: flip_bit(path, -1), "SHA-256 differs"),
    "foreign": (foreign, "SHA-256 differs"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_array_is_refused_with_the_mending_command(cache, kind):
    damage, message = DAMAGE[kind]
    path = cache.array_path("embeddings")
    damage(path)
    expected = MissingFileError if kind == "missing" else InvalidInputError
    with pytest.raises(expected) as raised:
        reopened(cache).load("embeddings")
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert f"{PRECOMPUTE} --cache_dir {cache.cache_dir}" in str(raised.value)


def test_any_flipped_byte_of_the_header_is_refused(cache):
    path = cache.array_path("world_tokens")
    content = path.read_bytes()
    for place in range(128):
        for bit in (1, 8, 64):
            damaged = bytearray(content)
            damaged[place] ^= bit
            path.write_bytes(bytes(damaged))
            with pytest.raises(InvalidInputError, match="world_tokens"):
                cache.load("world_tokens")


def test_instruction_embeddings_are_mended_by_their_own_stage(cache):
    cache.array_path("instruction_embeddings").unlink()
    with pytest.raises(MissingFileError, match="precompute_instruction_embeddings --dataset_name"):
        cache.load("instruction_embeddings")


def test_a_stale_manifest_is_refused(cache):
    manifest = cache.manifest_path.read_text("utf-8")
    arrays = synthetic_arrays(SPEC)
    replace_arrays(cache, {"world_tokens": arrays["world_tokens"][::-1].copy()})
    cache.manifest_path.write_text(manifest)
    with pytest.raises(InvalidInputError, match="SHA-256 differs"):
        reopened(cache).load("world_tokens")


def manifest_with(steps=None, **arrays):
    content = {"format": "world-modality-cache/1", "steps": steps, "arrays": arrays}
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", "has format 'list'"),
        (b'{"format": "other/9", "arrays": {}}', "has format 'other/9'"),
        (b'{"format": "world-modality-cache/1"}', "lists no arrays"),
        (b"[" * 100_000, "is not JSON"),
        (manifest_with(states={"file": "../../../etc/passwd"}), r"expected the file train_states"),
        (manifest_with(states={"file": "/etc/passwd"}), r"expected the file train_states"),
        (manifest_with(states=7), r"describes 'states' by 7"),
        (manifest_with(**{"../x": {"file": "../x"}}), r"describes '\.\./x'"),
        (manifest_with(steps=[], states=None), r"has steps \[\], expected an object"),
    ],
)
def test_an_unreadable_manifest_is_refused_and_the_named_stage_mends_it(cache, content, message):
    cache.manifest_path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=message) as raised:
        reopened(cache).load("states")
    assert PRECOMPUTE in str(raised.value)
    replace_arrays(reopened(cache), {"states": synthetic_arrays(SPEC)["states"]})
    assert len(reopened(cache).load("states")) > 0


def test_a_missing_cache_names_the_folder_and_the_command(tmp_path):
    with pytest.raises(MissingFileError, match=r"no cache at .*precompute_world_tokens"):
        Cache(tmp_path, "nobody/nothing").load("states")


def test_an_unknown_array_lists_the_known_ones(cache):
    with pytest.raises(MissingKeyError, match="there are: world_tokens"):
        cache.load("world_token")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../../x", "a/../b", "/etc", "./", "{root}/demo"]
)
def test_a_dataset_name_outside_the_cache_folder_is_refused(tmp_path, name):
    with pytest.raises(InvalidInputError, match="--dataset_name"):
        cache_folder(tmp_path, name.replace("{root}", str(tmp_path)))


def test_a_symbolic_link_out_of_the_cache_folder_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache" / "link").symlink_to(tmp_path / "outside")
    for name in ("link", "link/demo"):
        with pytest.raises(InvalidInputError, match="--dataset_name"):
            cache_folder(tmp_path / "cache", name)


def test_a_cache_folder_that_is_itself_a_link_is_fine(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    assert cache_folder(tmp_path / "cache", "a/b") == (tmp_path / "disk" / "a" / "b").resolve()


@pytest.mark.parametrize("split", ["", "../train", "a/b", "/train"])
def test_a_split_that_is_no_plain_name_is_refused(tmp_path, split):
    with pytest.raises(InvalidInputError, match="--split"):
        Cache(tmp_path, DATASET_NAME, split)


def test_arrays_of_different_lengths_are_refused(cache):
    replace_arrays(cache, {"states": synthetic_arrays(SPEC)["states"][:-2]})
    with pytest.raises(InvalidInputError, match=r"states has N=\d+ but embeddings has N=\d+"):
        require_arrays(reopened(cache), ["embeddings", "states"])


def test_tokens_outside_the_codebook_are_refused(cache):
    replace_arrays(cache, {"codebook_centroids": synthetic_arrays(SPEC)["codebook_centroids"][:5]})
    with pytest.raises(InvalidInputError, match=r"centroids has V=5 but the .* has V=8"):
        require_arrays(reopened(cache), ["world_tokens"])
    update_manifest(cache, {"codebook": {"num_tokens": 5}}, {})
    with pytest.raises(InvalidInputError, match=r"values in \[0, 7\] but the codebook has V=5"):
        require_arrays(reopened(cache), ["world_tokens"])
    update_manifest(cache, {"codebook": None}, {})
    with pytest.raises(InvalidInputError, match="a codebook of None tokens"):
        require_arrays(reopened(cache), ["world_tokens"])


def test_an_array_of_one_encoder_or_quantiser_is_declared_by_the_manifest(cache):
    own = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    replace_arrays(cache, {"some_weights": own})
    again = reopened(cache)
    assert again.array_path("some_weights").name == "train_some_weights.f64.npy"
    assert again.model_arrays == ("codebook_centroids", "some_weights")
    np.testing.assert_array_equal(again.load("some_weights"), own)
    again.array_path("some_weights").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="truncated"):
        require_arrays(again, ["world_tokens"])
    record, intact = (
        again.manifest["arrays"]["some_weights"],
        again.manifest_path.read_text("utf-8"),
    )
    for name, dtype in (("../weights", "float64"), ("some_weights", "object"), ("other", "int32")):
        update_manifest(again, {}, {"some_weights": None, name: {**record, "dtype": dtype}})
        with pytest.raises(InvalidInputError, match="expected the file"):
            reopened(cache).load("states")
        again.manifest_path.write_text(intact)


def test_an_embedding_dim_that_differs_from_the_codebook_is_refused(cache):
    centroids = synthetic_arrays(SPEC)["codebook_centroids"][:, :-1]
    replace_arrays(cache, {"codebook_centroids": np.ascontiguousarray(centroids)})
    with pytest.raises(
        InvalidInputError, match="codebook_centroids has D=5 but embeddings has D=6"
    ):
        require_arrays(reopened(cache), ["embeddings", "codebook_centroids"])


def test_the_fingerprint_follows_the_content_and_the_language_only_where_it_is_read(cache):
    before = cache.fingerprint(), cache.fingerprint(with_language=True)
    assert reopened(cache).fingerprint() == before[0]
    changed = synthetic_arrays(SPEC)["instruction_embeddings"] + 1
    replace_arrays(cache, {"instruction_embeddings": changed})
    assert cache.fingerprint() == before[0]
    assert cache.fingerprint(with_language=True) != before[1]
    replace_arrays(cache, {"actions": synthetic_arrays(SPEC)["actions"] + 1})
    assert cache.fingerprint() != before[0]


def test_a_stage_keeps_what_another_wrote_to_the_manifest_meanwhile(cache):
    slow, quick = reopened(cache), reopened(cache)
    assert slow.manifest == quick.manifest
    update_manifest(quick, {"text": {"name": "new"}}, {"environment_states": None})
    update_manifest(slow, {"encoder": {"name": "newer"}}, {})
    manifest = json.loads(cache.manifest_path.read_text("utf-8"))
    assert manifest["text"] == {"name": "new"}
    assert manifest["encoder"] == {"name": "newer"}
    assert "environment_states" not in manifest["arrays"]
    assert "actions" in manifest["arrays"]


def test_stages_that_finish_side_by_side_both_count_as_done(cache):
    slow, quick = reopened(cache), reopened(cache)
    assert slow.manifest == quick.manifest
    update_manifest(quick, {"steps": {"text": "1"}}, {})
    update_manifest(slow, {"steps": {"columns": "2", "codebook": "3"}}, {})
    update_manifest(slow, {"steps": {"codebook": None}}, {})
    assert reopened(cache).manifest["steps"] == {"text": "1", "columns": "2"}


def test_a_manifest_that_is_being_written_is_waited_for(cache, monkeypatch):
    monkeypatch.setattr("world_modality.cache.writer.MANIFEST_WAIT_S", 0.1)
    with (
        cache.lock("manifest"),
        pytest.raises(InvalidInputError, match=r"--cache_dir: .* is being written by"),
    ):
        update_manifest(cache, {"text": {"name": "new"}}, {})
    update_manifest(cache, {"text": {"name": "new"}}, {})


def test_an_array_that_is_a_link_out_of_the_cache_folder_is_refused(cache, tmp_path):
    path = cache.array_path("states")
    path.rename(tmp_path / "elsewhere.npy")
    path.symlink_to(tmp_path / "elsewhere.npy")
    with pytest.raises(InvalidInputError, match="symbolic link out of --cache_dir"):
        reopened(cache).load("states")


def test_a_write_that_raises_leaves_the_old_file_and_no_partial_one(tmp_path):
    path = tmp_path / "out" / "result.json"
    atomic.write_json(path, {"a": 1})

    def fail_halfway():
        with atomic.replacing(path) as partial:
            partial.write_text("half")
            assert json.loads(path.read_text("utf-8")) == {"a": 1}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert json.loads(path.read_text("utf-8")) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(path, float("nan"))
    assert json.loads(path.read_text("utf-8")) == {"a": 1}


@pytest.mark.parametrize(
    ("num_views", "grid_size", "num_components"),
    [(1, 1, None), (2, 1, None), (2, 4, None), (2, 4, 64)],
)
def test_the_documented_size_of_a_frame_is_the_contracts(
    tmp_path, num_views, grid_size, num_components
):
    num_frames, dim, num_tokens = 273_465, 768, 1024
    shapes = {
        "embeddings": [num_frames, dim],
        "world_tokens": [num_frames],
        "codebook_centroids": [num_tokens, dim],
        "states": [num_frames, 8],
        "actions": [num_frames, 7],
        "episode_index": [num_frames],
        "task_index": [num_frames],
    }
    if num_views * grid_size > 1:
        shapes["view_embeddings"] = [num_frames, num_views * grid_size**2, num_components or dim]
    records = {
        name: {"shape": shape, "dtype": ARRAYS[name].dtype} for name, shape in shapes.items()
    }
    cache = Cache(tmp_path, "HuggingFaceVLA/libero")
    update_manifest(cache, {}, records)
    num_bytes = cache.bytes_per_frame
    views = f"{num_views}, {f'{grid_size} × {grid_size}' if grid_size > 1 else 'pooled'}"
    shown = f"{num_bytes:,} | {num_bytes * num_frames / 1e9:.2f} GB"
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    assert f"| {views} | {num_components or ''} | {shown} |".replace("|  |", "| |") in page
