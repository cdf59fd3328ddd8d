"""Saving and restoring through the real rclone, on folder remotes."""

import json
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from ops.atomic import private_folder
from ops.errors import OpsError, RemoteError
from ops.manifest import FileEntry, Manifest, Part, decode, newest_first
from ops.rclone_store import CallLimits, RcloneStore, rclone_folder
from ops.remote_name import parse_remote
from ops.restore import RestoreOptions, Restorer
from ops.snapshot import SnapshotOptions
from ops.uploader import AnotherRunError, Uploader

SHA = "a" * 64


class World:
    """A machine with a folder, and a remote."""

    def __init__(self, path):
        self.path = path
        self.local = path / "local"
        self.local.mkdir()
        self.remote = path / "remote"
        self.store = RcloneStore(parse_remote(f":local:{self.remote}"), CallLimits(30.0, nice=0))
        self.said = []

    def uploader(self, local=None, **options):
        local = local or self.local
        state_dir = private_folder(local / ".sync")
        return Uploader(self.store, local, state_dir, SnapshotOptions(quiet_s=0.0), **options)

    def restore(self, name="back", **options):
        folder = self.path / name
        state_dir = private_folder(folder / ".sync")
        options = RestoreOptions(**({"retries": 0} | options))
        return Restorer(self.store, folder, state_dir, options, self.said.append).restore()

    def content(self, name="back"):
        folder = self.path / name
        files = [p for p in folder.rglob("*") if p.is_file()]
        paths = {p.relative_to(folder).as_posix(): p.read_text() for p in files}
        return {path: text for path, text in paths.items() if not path.startswith(".sync")}

    def manifests(self):
        names = newest_first(p.name for p in (self.remote / "manifests").iterdir())
        return [decode(n, (self.remote / "manifests" / n.file_name).read_bytes()) for n in names]

    def object_of(self, manifest, path):
        return self.remote / "objects" / manifest.files[path].parts[0].sha256

    def plant(self, files, number=99):
        """Put a manifest on the remote that this program would never write."""
        entries = {f"{i}": file for i, file in enumerate(files)}
        name, text = Manifest(number, "0123abcd", "now", entries).encode()
        (self.remote / "manifests").mkdir(parents=True, exist_ok=True)
        (self.remote / "manifests" / name.file_name).write_bytes(text)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_what_is_saved_comes_back_and_deletions_here_delete_nothing_there(world):
    (world.local / "sub").mkdir()
    (world.local / "sub" / "model_0.pt").write_text("zero")
    (world.local / "empty").write_text("")
    (world.local / "metrics.jsonl").write_text("one\n")
    uploader = world.uploader()
    assert uploader.round().number == 1
    assert uploader.round().num_new == 0
    (world.local / "sub" / "model_0.pt").unlink()
    (world.local / "sub" / "model_1.pt").write_text("one")
    with (world.local / "metrics.jsonl").open("a") as log:
        log.write("two\n")
    assert uploader.unsaved() == ["metrics.jsonl", "sub/model_1.pt"]
    assert uploader.round().number == 2
    assert uploader.unsaved() == []
    world.restore()
    assert world.content() == {
        "sub/model_1.pt": "one",
        "empty": "",
        "metrics.jsonl": "one\ntwo\n",
    }
    world.restore("older", number=1)
    assert world.content("older")["sub/model_0.pt"] == "zero"
    assert stat.S_IMODE((world.path / "back" / ".sync").stat().st_mode) == 0o700


def test_a_damaged_state_is_passed_over_and_healed_by_the_next_start(world):
    (world.local / "a").write_text("first")
    uploader = world.uploader()
    uploader.round()
    (world.local / "b").write_text("second")
    uploader.round()
    place = world.object_of(world.manifests()[0], "b")
    place.write_text("SECOND")  # the same size
    assert world.restore("damaged").number == 1
    assert "state 2 cannot be used" in world.said[-1]
    place.write_text("sec")  # cut short
    assert world.restore("cut").number == 1
    world.uploader().round()
    assert world.restore("healed").number == 3
    assert world.content("healed") == {"a": "first", "b": "second"}


def test_what_vanished_from_the_remote_is_not_confirmed_and_is_sent_again(world):
    (world.local / "a").write_text("first")
    (world.local / "b").write_text("second")
    uploader = world.uploader()
    uploader.round()
    uploader.confirm()
    world.object_of(world.manifests()[0], "b").unlink()
    with pytest.raises(RemoteError, match=r"does not list all of state 1: b is missing"):
        uploader.confirm()
    assert uploader.unsaved() == ["a", "b"]
    uploader.round()
    uploader.confirm()
    assert uploader.unsaved() == []
    assert world.restore().number == 2


def test_a_torn_manifest_names_nothing(world):
    (world.local / "a").write_text("first")
    uploader = world.uploader()
    uploader.round()
    (world.local / "a").write_text("second")
    uploader.round()
    newest = max((world.remote / "manifests").iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    assert world.restore().number == 1
    assert world.content() == {"a": "first"}


def test_old_states_go_only_when_asked_and_never_what_a_kept_state_names(world):
    (world.local / "config.json").write_text("kept")
    uploader = world.uploader()
    for number in range(4):
        (world.local / "model.pt").write_text(f"model {number}")
        uploader.round()
    assert len(world.manifests()) == 4
    stranger = world.remote / "objects" / SHA
    stranger.write_text("of another machine, not yet named")
    (world.local / "model.pt").write_text("model 4")
    assert world.uploader(keep_last=2).round().retention_problem is None
    kept = world.manifests()
    assert [manifest.number for manifest in kept] == [5, 4]
    named = {name for manifest in kept for name in manifest.objects}
    assert {path.name for path in stranger.parent.iterdir()} == named | {SHA}
    assert world.restore("old", number=4).number == 4
    assert world.content("old") == {"config.json": "kept", "model.pt": "model 3"}


def test_nothing_is_removed_while_a_kept_state_cannot_be_read(world):
    (world.local / "a").write_text("0")
    world.uploader().round()
    (world.local / "a").write_text("1")
    world.uploader().round()
    newest = max((world.remote / "manifests").iterdir())
    newest.write_bytes(b"torn")
    (world.local / "a").write_text("2")
    result = world.uploader(keep_last=2).round()
    assert "torn" in result.retention_problem
    assert len(list((world.remote / "objects").iterdir())) == 3


def test_another_run_on_the_remote_is_not_written_over_unasked(world):
    (world.local / "a").write_text("x")
    world.uploader().round()
    fresh = world.path / "fresh"
    fresh.mkdir()
    with pytest.raises(AnotherRunError, match="resume_on_new_vm"):
        world.uploader(fresh).require_same_run()
    # What a machine that died while it wrote a manifest may leave behind.
    (world.remote / "manifests" / f"00000002-0123abcd-{'0' * 16}.json").write_text("torn")
    with pytest.raises(AnotherRunError, match="state 1"):
        world.uploader(fresh).require_same_run()
    world.restore("fresh")
    world.uploader(fresh).require_same_run()


def test_restore_refuses_a_folder_that_holds_something_else(world):
    (world.local / "a").write_text("saved")
    world.uploader().round()
    back = world.path / "back"
    back.mkdir()
    (back / "a").write_text("of another run")
    (back / "b").write_text("mine")
    with pytest.raises(OpsError, match=r"a, b; restore into an empty folder, or give --overwrite"):
        world.restore()
    assert world.content() == {"a": "of another run", "b": "mine"}
    world.restore(overwrite=True)
    assert world.content() == {"a": "saved"}
    [aside] = (back / ".sync").glob("replaced-*")
    assert (aside / "b").read_text() == "mine"


def test_an_interrupted_restore_is_gone_on_with(world, monkeypatch):
    for name in "abc":
        (world.local / name).write_text(name)
    uploader = world.uploader()
    uploader.round()
    publish, placed = os.replace, []

    def die_at_the_second(source, target):
        if target.parent == world.path / "back":
            placed.append(target)
            if len(placed) == 2:
                raise KeyboardInterrupt
        publish(source, target)

    monkeypatch.setattr("ops.atomic.os.replace", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        world.restore()
    monkeypatch.undo()
    assert world.content() == {"a": "a"}
    (world.local / "a").write_text("newer")
    (world.local / "d").write_text("d")
    uploader.round()
    world.restore(keep_local=True)
    assert world.content() == {"a": "newer", "b": "b", "c": "c", "d": "d"}


def test_a_machine_that_kept_its_disk_goes_on_with_what_it_has(world):
    (world.local / "a").write_text("saved")
    world.uploader().round()
    (world.local / "a").write_text("newer, not yet saved")
    assert world.restore("local", keep_local=True) is None
    assert world.content("local") == {"a": "newer, not yet saved"}
    shutil.rmtree(world.remote)
    assert world.restore("local", keep_local=True) is None


@pytest.mark.slow
def test_a_machine_that_was_left_behind_is_noticed(world):
    (world.local / "a").write_text("old machine")
    world.uploader().round()
    world.restore("newer")
    (world.path / "newer" / "a").write_text("new machine")
    world.uploader(world.path / "newer").round()
    with pytest.raises(OpsError, match="is newer, or of another run"):
        world.restore("local", keep_local=True)


def test_an_empty_remote_restores_nothing_and_one_that_is_down_is_an_error(world):
    assert world.restore() is None
    world.store = RcloneStore(parse_remote("nowhere:x"), CallLimits(30.0, nice=0))
    with pytest.raises(RemoteError, match="didn't find section"):
        world.restore()


def test_a_link_in_the_local_folder_leads_nowhere(world):
    (world.local / "sub").mkdir()
    (world.local / "sub" / "a").write_text("x")
    world.uploader().round()
    outside = world.path / "outside"
    outside.mkdir()
    (world.path / "back").mkdir()
    (world.path / "back" / "sub").symlink_to(outside)
    for overwrite in (False, True):
        with pytest.raises(OpsError, match="no folder but a link"):
            world.restore(overwrite=overwrite)
    assert not list(outside.iterdir())


def test_a_hostile_manifest_writes_nothing_outside(world):
    (world.local / "a").write_text("good")
    world.uploader().round()
    for number, path in enumerate(["../escaped", f"{world.path}/escaped", ".sync/lock"], start=90):
        world.plant([FileEntry(path, 0, SHA, 0, ())], number)
    assert world.restore().number == 1
    assert sum("refused" in line for line in world.said) == 3
    assert not (world.path / "escaped").exists()


def test_a_file_whose_parts_do_not_make_up_its_checksum_is_refused(world):
    (world.local / "a").write_text("good")
    world.uploader().round()
    good = world.manifests()[0].files["a"]
    world.plant([FileEntry("a", good.size, SHA, 0, good.parts)])
    assert world.restore().number == 1
    assert "do not make up its checksum" in world.said[-1]


def test_a_state_larger_than_the_disk_is_refused_before_it_is_downloaded(world):
    part = Part(SHA, 2**42)
    world.plant([FileEntry("a", 2**42, SHA, 0, (part,))])
    (world.remote / "objects").mkdir()
    with (world.remote / "objects" / SHA).open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(OpsError, match="are free"):
        world.restore()


def test_a_call_that_does_not_answer_is_ended_with_all_its_processes(world, monkeypatch, tmp_path):
    marker = tmp_path / "pid"
    program = tmp_path / "bin" / "rclone"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ > {marker}\nsleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    store = RcloneStore(world.store.remote, CallLimits(2.0, nice=0))
    with pytest.raises(RemoteError, match="no answer"):
        store.list_files("manifests")
    stat_file = Path(f"/proc/{marker.read_text().strip()}/stat")
    for _ in range(100):
        # Killed; whether its new parent has noticed is a matter of time.
        if not stat_file.exists() or stat_file.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("it is still running")


def test_rclone_is_found_where_the_system_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(rclone_folder() / "rclone", os.X_OK)


def test_the_state_file_that_says_what_the_folder_follows_from_may_be_damaged(world):
    (world.local / "a").write_text("x")
    world.uploader().round()
    (world.local / ".sync" / "state.json").write_text(json.dumps({"writer": None}))
    (world.local / "a").write_text("y")
    assert world.uploader().round().number == 2
