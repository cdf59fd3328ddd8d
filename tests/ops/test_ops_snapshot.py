import os
import time

import pytest

import ops.store.snapshot
from ops.store.manifest import Manifest
from ops.store.snapshot import FileChangedError, SnapshotTaker, scan_folder


class Folder:
    """A local folder and the taker of its snapshots."""

    def __init__(self, tmp_path):
        self.path = tmp_path / "local"
        self.path.mkdir()
        self.pauses = []
        self.staging = tmp_path / "state" / "staging"
        self.taker = SnapshotTaker(self.path, self.staging, self._pause, quiet_s=0.0)
        self.entries = {}

    def write(self, path, text="x"):
        place = self.path / path
        place.parent.mkdir(exist_ok=True)
        place.write_text(text)
        return place

    def take(self, *, final=False):
        snapshot = self.taker.take(self.entries, self.entries, final=final)
        staged = {p.relative_to(self.staging).as_posix() for p in self.staging.rglob("*")}
        assert {p for p in staged if (self.staging / p).is_file()} == set(snapshot.staged)
        for path, entry in snapshot.staged.items():
            assert (self.staging / path).stat().st_size == entry.size
        self.entries = snapshot.entries
        return snapshot

    def _pause(self, seconds):
        if seconds:
            self.pauses.append(seconds)

    def content(self, path):
        return (self.staging / path).read_text("utf-8")

    def copy_with(self, monkeypatch, before):
        """Call `before(path)` before each copy."""
        copy = self.taker._copy

        def copy_while_written(path, *rest, **flags):
            before(path)
            return copy(path, *rest, **flags)

        monkeypatch.setattr(self.taker, "_copy", copy_while_written)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_unfinished_files_links_and_the_configuration_of_rclone_do_not_travel(folder, monkeypatch):
    config = folder.write("hidden-settings", 'token = {"access_token":"x"}')
    monkeypatch.setenv("RCLONE_CONFIG", str(config))
    for path in ("model.pt", "model.pt.partial", "rclone.conf", ".sync/state.json", "bad\nname"):
        folder.write(path)
    folder.write("sub/ä b.pt")
    (folder.path / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder.path / "pipe")
    snapshot = folder.take()
    assert set(snapshot.entries) == {"model.pt", "sub/ä b.pt"}
    left_out = {"hidden-settings", "rclone.conf", "link", "pipe", repr("bad\nname")}
    assert set(snapshot.left_out) == left_out
    Manifest(1, "0123abcd", "now", snapshot.entries).encode()  # takes it
    assert folder.staging.stat().st_mode & 0o077 == 0


def test_excluded_patterns_and_a_single_file_restrict_what_travels(folder):
    folder.write("a.mp4")
    folder.write("b.json")
    assert set(scan_folder(folder.path, exclude=("*.mp4",)).files) == {"b.json"}
    assert set(scan_folder(folder.path, only="a.mp4").files) == {"a.mp4"}


def test_an_unchanged_file_is_neither_read_nor_staged_again(folder, monkeypatch):
    folder.write("a")
    time.sleep(0.01)
    folder.take()
    monkeypatch.setattr(folder.taker, "_copy", None)
    assert folder.take().entries == folder.entries
    assert not folder.take().staged


def test_a_file_that_was_only_touched_is_not_sent_again(folder):
    folder.write("a")
    folder.take()
    os.utime(folder.path / "a", (5, 5))
    snapshot = folder.take()
    assert set(snapshot.entries) == {"a"}
    assert not snapshot.staged


def test_a_file_that_changes_in_place_is_staged_under_its_own_name(folder):
    path = folder.write("sub/latest.json", "1")
    os.utime(path, ns=(5 * 10**9, 5 * 10**9))
    first = folder.take().entries["sub/latest.json"]
    assert (folder.staging / "sub" / "latest.json").stat().st_mtime == 5
    path.write_text("2")
    assert folder.take().entries["sub/latest.json"] != first
    assert folder.content("sub/latest.json") == "2"


def test_a_log_that_grew_is_told_from_one_that_was_rewritten(folder):
    folder.write("metrics.jsonl", "a" * 60_000 + "\n")
    assert not folder.take().extended
    folder.write("metrics.jsonl", "a" * 60_000 + "\nmore\n")
    assert folder.take().extended == {"metrics.jsonl"}
    rewritten = "b" * 60_001 + "\nmore\nand more\n"
    folder.write("metrics.jsonl", rewritten)
    assert not folder.take().extended
    assert folder.content("metrics.jsonl") == rewritten
    folder.write("metrics.jsonl", rewritten[:-9])
    assert not folder.take().extended


def test_a_line_that_is_half_written_waits_for_the_next_round(folder):
    folder.write("metrics.jsonl", "one\ntwo\nthr")
    folder.take()
    assert folder.content("metrics.jsonl") == "one\ntwo\n"
    folder.take(final=True)
    assert folder.entries["metrics.jsonl"].size == 11


def test_large_files_are_frozen_by_a_link_that_survives_their_replacement(folder, monkeypatch):
    monkeypatch.setattr(ops.store.snapshot, "_COPY_BELOW", 1)
    path = folder.write("model.pt", "old")
    folder.take()
    assert (folder.staging / "model.pt").samefile(path)
    folder.write("new.partial", "new").replace(path)
    assert folder.content("model.pt") == "old"


def test_a_large_file_written_in_place_during_the_upload_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(ops.store.snapshot, "_COPY_BELOW", 1)
    path = folder.write("array.npy", "old!")
    folder.take()
    assert not folder.taker.changed_links()
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.write(b"NEW")
    assert folder.taker.changed_links() == ["array.npy"]


def test_a_folder_that_changes_while_it_is_copied_is_copied_again(folder, monkeypatch):
    """The pointer must not name a checkpoint that the snapshot lacks."""
    folder.write("model_0.pt")
    folder.write("latest.json", "model_0.pt")

    def write(path):
        if path == "latest.json" and not (folder.path / "model_1.pt").exists():
            folder.write("model_1.pt")
            folder.write("latest.json", "model_1.pt!")

    folder.copy_with(monkeypatch, write)
    assert set(folder.take().entries) == {"model_0.pt", "model_1.pt", "latest.json"}
    assert folder.pauses


def test_a_file_that_never_stands_still_stays_what_it_was(folder, monkeypatch):
    path = folder.write("busy.bin", "0")
    folder.write("calm")
    before = folder.take().entries["busy.bin"]

    def write(name):
        if name == "busy.bin":
            path.write_text(path.read_text("utf-8") + "+")

    folder.copy_with(monkeypatch, write)
    folder.write("busy.bin", "1")
    folder.write("calm", "y")
    snapshot = folder.take()
    assert snapshot.entries["busy.bin"] == before
    assert "changed" in snapshot.left_out["busy.bin"]
    assert set(snapshot.staged) == {"calm"}


def test_a_file_that_gets_shorter_while_it_is_read_is_left(folder):
    folder.write("a.log", "long line")
    status = scan_folder(folder.path).files["a.log"]
    folder.write("a.log", "l")
    with pytest.raises(FileChangedError):
        folder.taker._copy("a.log", status, final=False)
