import os
import time

import pytest

import ops.snapshot
from ops.folder_scan import scan_folder
from ops.manifest import Manifest
from ops.snapshot import SnapshotOptions, SnapshotTaker
from ops.staging import FileChangedError, Staging


class Folder:
    """A local folder and the taker of its snapshots."""

    def __init__(self, tmp_path, **options):
        self.path = tmp_path / "local"
        self.path.mkdir()
        self.pauses = []
        self.on_pause = lambda: None
        self.staging = Staging(tmp_path / "state" / "staging", beat=lambda: None)
        self.taker = SnapshotTaker(self.path, self.staging, SnapshotOptions(quiet_s=0.0, **options))
        self.entries = {}
        self.present = set()

    def take(self, *, final=False):
        snapshot = self.taker.take(self.entries, self.present, final=final, pause=self._pause)
        self.staged = {path.name for path in self.staging.objects.iterdir()}
        for entry in snapshot.entries.values():
            assert {part.sha256 for part in entry.parts} <= self.staged | self.present
        self.entries = snapshot.entries
        self.present |= self.staged
        return snapshot

    def _pause(self, seconds):
        self.pauses.append(seconds)
        self.on_pause()

    def content(self, path):
        return b"".join(
            (self.staging.objects / part.sha256).read_bytes() for part in self.entries[path].parts
        )


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_unfinished_files_links_and_the_configuration_of_rclone_do_not_travel(folder, monkeypatch):
    config = folder.path / "hidden-settings"
    config.write_text('token = {"access_token":"x"}')
    monkeypatch.setenv("RCLONE_CONFIG", str(config))
    (folder.path / "model.pt").write_text("whole")
    (folder.path / "model.pt.partial").write_text("half")
    (folder.path / "rclone.conf").write_text("secret")
    (folder.path / ".sync").mkdir()
    (folder.path / ".sync" / "state.json").write_text("{}")
    (folder.path / "link").symlink_to("/etc/passwd")
    os.mkfifo(folder.path / "pipe")
    snapshot = folder.take()
    assert set(snapshot.entries) == {"model.pt"}
    assert set(snapshot.left) == {"hidden-settings", "rclone.conf", "link", "pipe"}


def test_excluded_patterns_and_a_single_file_restrict_what_travels(tmp_path):
    for name in ("a.mp4", "b.json"):
        (tmp_path / name).write_text("x")
    assert set(scan_folder(tmp_path, exclude=("*.mp4",)).files) == {"b.json"}
    assert set(scan_folder(tmp_path, only="a.mp4").files) == {"a.mp4"}


def test_an_unchanged_file_is_neither_read_nor_staged_again(folder, monkeypatch):
    (folder.path / "a").write_text("x")
    time.sleep(0.01)
    folder.take()
    monkeypatch.setattr(folder.staging, "copy", None)
    assert folder.take().entries == folder.entries
    assert not folder.staged


def test_a_file_that_changes_in_place_gets_a_new_object_and_keeps_the_old(folder):
    path = folder.path / "latest.json"
    path.write_text("1")
    first = folder.take().entries["latest.json"]
    path.write_text("2")
    second = folder.take().entries["latest.json"]
    assert first.sha256 != second.sha256
    assert folder.staged == {second.sha256}


def test_a_log_that_grows_sends_little_and_has_few_parts(folder):
    path = folder.path / "metrics.jsonl"
    line = b'{"step": 1234567890, "loss": 0.123456789}\n' * 50
    sent = 0
    for _ in range(200):
        with path.open("ab") as file:
            file.write(line)
        entry = folder.take().entries["metrics.jsonl"]
        sent += sum(p.size for p in entry.parts if p.sha256 in folder.staged)
    assert entry.size == 200 * len(line)
    assert len(entry.parts) <= 8
    assert sent < 14 * entry.size  # whole copies would be 100 times its size


def test_a_log_that_was_rewritten_is_not_taken_for_one_that_grew(folder):
    path = folder.path / "metrics.jsonl"
    path.write_bytes(b"a" * 60_000 + b"\n")
    folder.take()
    path.write_bytes(b"b" * 60_001 + b"\nmore\n")
    folder.take()
    assert folder.content("metrics.jsonl") == path.read_bytes()


def test_a_line_that_is_half_written_waits_for_the_next_round(folder):
    path = folder.path / "metrics.jsonl"
    path.write_bytes(b"one\ntwo\nthr")
    folder.take()
    assert folder.content("metrics.jsonl") == b"one\ntwo\n"
    folder.take(final=True)
    assert folder.entries["metrics.jsonl"].size == 11


def test_large_files_are_frozen_by_a_link_that_survives_their_replacement(folder, monkeypatch):
    monkeypatch.setattr(ops.snapshot, "_COPY_BELOW", 1)
    path = folder.path / "model.pt"
    path.write_bytes(b"old")
    folder.take()
    new = folder.path / "new.partial"
    new.write_bytes(b"new")
    new.replace(path)
    assert folder.content("model.pt") == b"old"


def test_a_large_file_written_in_place_during_the_upload_is_noticed(folder, monkeypatch):
    monkeypatch.setattr(ops.snapshot, "_COPY_BELOW", 1)
    path = folder.path / "array.npy"
    path.write_bytes(b"old!")
    folder.take()
    assert not folder.staging.changed_links()
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.write(b"NEW")
    assert [p.name for p in folder.staging.changed_links()] == [*folder.staged]


def test_a_folder_that_changes_while_it_is_copied_is_copied_again(folder, monkeypatch):
    """The pointer must not name a checkpoint that the snapshot lacks."""
    (folder.path / "model_0.pt").write_text("0")
    (folder.path / "latest.json").write_text("model_0.pt")
    copy = folder.staging.copy

    def copy_while_written(source, *rest):
        if source.name == "latest.json" and not (folder.path / "model_1.pt").exists():
            (folder.path / "model_1.pt").write_text("1")
            (folder.path / "latest.json").write_text("model_1.pt!")
        return copy(source, *rest)

    monkeypatch.setattr(folder.staging, "copy", copy_while_written)
    snapshot = folder.take()
    assert set(snapshot.entries) == {"model_0.pt", "model_1.pt", "latest.json"}
    assert folder.pauses


def test_a_file_that_never_stands_still_stays_what_it_was(folder, monkeypatch):
    path = folder.path / "busy.bin"
    path.write_text("0")
    (folder.path / "calm").write_text("x")
    before = folder.take().entries["busy.bin"]
    copy = folder.staging.copy

    def copy_while_written(source, *rest):
        if source == path:
            path.write_text(path.read_text() + "+")
        return copy(source, *rest)

    monkeypatch.setattr(folder.staging, "copy", copy_while_written)
    path.write_text("1")
    snapshot = folder.take()
    assert snapshot.entries["busy.bin"] == before
    assert "changed" in snapshot.left["busy.bin"]
    assert "calm" in snapshot.entries


def test_a_file_that_gets_shorter_while_it_is_read_is_left(folder):
    path = folder.path / "a.log"
    path.write_text("long line")
    status = scan_folder(folder.path).files["a.log"]
    path.write_text("l")
    with pytest.raises(FileChangedError):
        folder.staging.copy(path, "a.log", status, status.size, None)


def test_staged_copies_are_for_this_user_only(folder):
    (folder.path / "a").write_text("x")
    folder.take()
    assert folder.staging.folder.stat().st_mode & 0o077 == 0
    assert folder.staging.objects.stat().st_mode & 0o077 == 0


def test_what_is_taken_fits_a_manifest(folder):
    (folder.path / "sub").mkdir()
    (folder.path / "sub" / "ä b.pt").write_text("x")
    (folder.path / "bad\nname").write_text("x")
    snapshot = folder.take()
    Manifest(1, "0123abcd", "now", snapshot.entries).encode()
    assert list(snapshot.entries) == ["sub/ä b.pt"]
    assert "control" in next(iter(snapshot.left.values()))
