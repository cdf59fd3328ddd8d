"""A cache that is written in blocks is the same however often the writer was killed."""

import errno
import json
import os

import numpy as np
import pytest

from tests.fixtures.cache import SyntheticSpec, files_of, flip_bit, synthetic_arrays
from world_modality.cache.contract import ARRAYS, Cache
from world_modality.cache.writer import CacheWriter
from world_modality.system import atomic
from world_modality.system.errors import InvalidInputError, MissingFileError

BLOCK = 25
NAMES = ("embeddings", "states")
SOURCE = {name: synthetic_arrays(SyntheticSpec(num_episodes=7))[name] for name in NAMES}
OTHER = {name: (array + 1).astype(array.dtype) for name, array in SOURCE.items()}
NUM_FRAMES = len(SOURCE["states"])


class KilledError(BaseException):
    """Stands for a kill: nothing of the writer may run after it."""


class Killer:
    """Lets `calls` calls through and kills at the next one."""

    def __init__(self, calls):
        self.left = calls

    def wrap(self, function):
        def wrapped(*arguments, **named):
            if self.left == 0:
                raise KilledError
            self.left -= 1
            return function(*arguments, **named)

        return wrapped


def write_all(cache_dir, source=SOURCE, identity="a"):
    """One run of a stage: goes on where an earlier one was killed; returns the rows it wrote."""
    cache = Cache(cache_dir, "demo")
    writer = CacheWriter(cache, "encode", {"id": identity})
    shapes = {name: array.shape for name, array in source.items()}
    start = min([writer.open(name, shape) for name, shape in shapes.items()])
    num_written = 0
    while start < NUM_FRAMES:
        blocks = {name: array[start : start + BLOCK] for name, array in source.items()}
        writer.write(start, blocks)
        num_written += len(blocks["states"])
        start += BLOCK
    writer.publish({"encoder": {"name": identity}})
    return num_written


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cache_dir = tmp_path_factory.mktemp("whole")
    assert write_all(cache_dir) == NUM_FRAMES
    return files_of(cache_dir / "demo")


def kill_after(monkeypatch, calls, cache_dir, **named):
    """Run a stage whose `calls + 1`-th rename is where it is killed; say whether it was."""
    killer = Killer(calls)
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killer.wrap(os.replace))
        # A kill cleans nothing up.
        patched.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        try:
            write_all(cache_dir, **named)
        except KilledError:
            return True
    return False


def assert_refused_or_right(cache_dir, arrays):
    """What a reader sees at any moment: an error of the user's kind, or exactly the array."""
    for name, array in arrays.items():
        try:
            found = Cache(cache_dir, "demo").load(name)
        except (MissingFileError, InvalidInputError):
            continue
        np.testing.assert_array_equal(found, array)


def assert_holds(cache_dir, arrays):
    for name, array in arrays.items():
        np.testing.assert_array_equal(Cache(cache_dir, "demo").load(name), array)


def test_killed_at_any_rename_and_resumed_equals_uninterrupted(
    monkeypatch, tmp_path, uninterrupted
):
    num_kills = 0
    while kill_after(monkeypatch, num_kills, cache_dir := tmp_path / str(num_kills)):
        assert_refused_or_right(cache_dir, SOURCE)
        write_all(cache_dir)
        assert files_of(cache_dir / "demo") == uninterrupted
        num_kills += 1
    # Two openings, the blocks, the records, two arrays and the manifest.
    assert num_kills >= 2 + NUM_FRAMES // BLOCK + 4


def test_resuming_does_not_write_the_safe_rows_again(monkeypatch, tmp_path):
    # Renames: one for each opening, one for each of two blocks.
    assert kill_after(monkeypatch, 2 + 2, tmp_path)
    assert write_all(tmp_path) == NUM_FRAMES - 2 * BLOCK


def test_no_final_name_exists_before_the_array_is_whole(monkeypatch, tmp_path):
    for calls in range(2 + NUM_FRAMES // BLOCK):
        assert kill_after(monkeypatch, calls, tmp_path / str(calls))
        finals = [p.name for p in (tmp_path / str(calls) / "demo").glob("*.npy")]
        assert finals == []


def test_two_identities_that_kill_each_other_never_mix(monkeypatch, tmp_path):
    folders = []
    for calls in range(5):
        folders.append(tmp_path / str(calls))
        assert kill_after(monkeypatch, 2 + 3, folders[-1])
        assert kill_after(monkeypatch, calls, folders[-1], source=OTHER, identity="b")
        write_all(folders[-1])
        assert_holds(folders[-1], SOURCE)


def test_a_kill_while_the_file_is_made_again_does_not_keep_old_progress(monkeypatch, tmp_path):
    assert kill_after(monkeypatch, 2 + 3, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", Killer(0).wrap(os.posix_fallocate))
        with pytest.raises(KilledError):
            write_all(tmp_path, identity="b")
    write_all(tmp_path)
    assert_holds(tmp_path, SOURCE)


def test_old_arrays_stay_readable_until_the_new_ones_are_whole(monkeypatch, tmp_path):
    write_all(tmp_path)
    assert kill_after(monkeypatch, 2 + 2, tmp_path, source=OTHER, identity="b")
    assert_holds(tmp_path, SOURCE)


def test_a_kill_between_rename_and_manifest_is_refused_by_readers(monkeypatch, tmp_path):
    write_all(tmp_path)
    blocks = -(-NUM_FRAMES // BLOCK)
    # Both arrays are renamed, the manifest is not.
    assert kill_after(monkeypatch, 2 + blocks + 1 + 2, tmp_path, source=OTHER, identity="b")
    for name in NAMES:
        with pytest.raises(InvalidInputError, match="SHA-256 differs"):
            Cache(tmp_path, "demo").load(name)
    assert write_all(tmp_path, OTHER, identity="b") == 0
    assert_holds(tmp_path, OTHER)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"null"])
def test_a_damaged_progress_file_starts_again(monkeypatch, tmp_path, content):
    assert kill_after(monkeypatch, 2 + 2, tmp_path)
    (tmp_path / "demo" / "train_encode_progress.json").write_bytes(content)
    assert write_all(tmp_path) == NUM_FRAMES


def partial_of(cache_dir, name):
    return atomic.partial_path(Cache(cache_dir, "demo").array_path(name))


@pytest.mark.parametrize("place", [3, 40, 130, 128 + 8 * BLOCK])
def test_a_byte_flipped_in_the_safe_rows_is_noticed_and_they_are_written_again(
    monkeypatch, tmp_path, uninterrupted, capsys, place
):
    assert kill_after(monkeypatch, 2 + 3, tmp_path)
    flip_bit(partial_of(tmp_path, "states"), place)
    write_all(tmp_path)
    assert "states.f32.npy.partial was changed since it was written" in capsys.readouterr().out
    assert files_of(tmp_path / "demo") == uninterrupted


def test_a_byte_flipped_while_the_rest_is_written_is_refused_and_mended_by_the_next_run(tmp_path):
    cache = Cache(tmp_path, "demo")
    writer = CacheWriter(cache, "encode", {"id": "a"})
    writer.put("embeddings", SOURCE["embeddings"])
    writer.open("states", SOURCE["states"].shape)
    writer.write(0, {"states": SOURCE["states"][:BLOCK]})
    flip_bit(partial_of(tmp_path, "states"), 200)
    writer.write(BLOCK, {"states": SOURCE["states"][BLOCK:]})
    with pytest.raises(InvalidInputError, match="is not what was written into it"):
        writer.publish({})
    assert not cache.manifest_path.exists()
    assert write_all(tmp_path) == NUM_FRAMES
    np.testing.assert_array_equal(cache.load("states"), SOURCE["states"])


def test_a_byte_flipped_between_the_record_and_the_rename_is_noticed(monkeypatch, tmp_path):
    blocks = -(-NUM_FRAMES // BLOCK)
    assert kill_after(monkeypatch, 2 + blocks + 1, tmp_path)  # the records are written
    flip_bit(partial_of(tmp_path, "embeddings"), -1)
    write_all(tmp_path)
    assert_holds(tmp_path, SOURCE)


def test_a_changed_progress_file_vouches_for_nothing(monkeypatch, tmp_path, uninterrupted):
    assert kill_after(monkeypatch, 2 + 3, tmp_path)
    path = tmp_path / "demo" / "train_encode_progress.json"
    progress = path.read_text("utf-8")
    path.write_text(progress.replace(f'"states": {3 * BLOCK}', f'"states": {2 * BLOCK}'))
    assert path.read_text("utf-8") != progress
    assert write_all(tmp_path) == NUM_FRAMES
    assert files_of(tmp_path / "demo") == uninterrupted


def test_links_under_temporary_names_are_not_written_through(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    cache = Cache(tmp_path, "demo")
    cache.folder.mkdir()
    for path in (cache.array_path("states"), cache.manifest_path):
        atomic.partial_path(path).symlink_to(precious)
    write_all(tmp_path)
    assert precious.read_text("utf-8") == "kept"
    np.testing.assert_array_equal(cache.load("states"), SOURCE["states"])


def test_a_block_that_cannot_be_written_leaves_no_final_file(tmp_path):
    cache = Cache(tmp_path, "demo")
    writer = CacheWriter(cache, "encode", {})
    writer.open("states", SOURCE["states"].shape)
    with pytest.raises(ValueError, match="broadcast"):
        writer.write(0, {"states": np.zeros((3, 99))})
    assert not cache.array_path("states").exists()
    assert not cache.manifest_path.exists()


def test_a_full_disk_is_met_before_the_work_and_names_the_file(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*states\.f32\.npy"):
        write_all(tmp_path, {"states": SOURCE["states"]})
    assert list((tmp_path / "demo").glob("*.npy*")) == []


def test_the_rows_of_an_opened_array_are_reserved_on_the_disk(tmp_path):
    writer = CacheWriter(Cache(tmp_path, "demo"), "encode", {})
    writer.open("embeddings", (4096, 64))
    path = atomic.partial_path(writer.cache.array_path("embeddings"))
    assert path.stat().st_blocks * 512 >= 4096 * 64 * 2


def test_removed_arrays_leave_the_manifest_and_the_disk(tmp_path):
    write_all(tmp_path)
    cache = Cache(tmp_path, "demo")
    writer = CacheWriter(cache, "encode", {"id": "later"})
    writer.put("states", SOURCE["states"])
    writer.publish({}, remove=("embeddings",))
    assert not cache.array_path("embeddings").exists()
    assert list(json.loads(cache.manifest_path.read_text("utf-8"))["arrays"]) == ["states"]


def test_stages_with_different_names_do_not_disturb_each_other(tmp_path):
    cache = Cache(tmp_path, "demo")
    first, second = CacheWriter(cache, "one", {}), CacheWriter(cache, "two", {})
    first.open("states", SOURCE["states"].shape)
    first.write(0, {"states": SOURCE["states"][:BLOCK]})
    second.put("embeddings", SOURCE["embeddings"])
    second.publish({})
    assert CacheWriter(cache, "one", {}).open("states", SOURCE["states"].shape) == BLOCK


def test_what_is_written_can_be_read_back_before_and_after_publishing(tmp_path):
    writer = CacheWriter(Cache(tmp_path, "demo"), "encode", {})
    writer.put("states", SOURCE["states"])
    np.testing.assert_array_equal(writer.read_back("states"), SOURCE["states"])
    writer.publish({})
    np.testing.assert_array_equal(writer.read_back("states"), SOURCE["states"])
    assert writer.read_back("states").dtype == ARRAYS["states"].dtype
