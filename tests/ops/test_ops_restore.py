"""Restoring through the real rclone, from folder remotes."""

import hashlib
import os
import shutil

import pytest

from ops.store.errors import OpsError, RemoteError
from ops.store.rclone import CallLimits, RcloneStore, parse_remote
from ops.store.restore import Restorer
from ops.store.uploader import AnotherRunError
from tests.ops.world import plant_json


def test_a_restore_beside_a_sync_that_saves_looks_again(world, monkeypatch):
    uploader = world.uploader()
    world.save({"a": "old"}, uploader)
    world.write({"a": "new"})
    download, saved = Restorer._download, []

    def save_meanwhile(restorer, *arguments):
        if not saved:
            saved.append(uploader.round())
        download(restorer, *arguments)

    monkeypatch.setattr(Restorer, "_download", save_meanwhile)
    assert world.restore().number == 1
    assert "trying again" in world.said[-1]
    assert world.content() == {"a": "old"}


def test_old_states_go_only_when_asked_and_never_what_a_kept_state_names(world):
    uploader = world.uploader()
    world.save({"config.json": "kept", "model.pt": "model 0", "epoch0.pt": "0"}, uploader)
    world.save({"model.pt": "model 1", "epoch1.pt": "1", "epoch0.pt": None}, uploader)
    world.save({"model.pt": "model 2", "epoch2.pt": "2", "epoch1.pt": None}, uploader)
    assert len(world.manifests()) == 3
    world.write({"epoch9.pt": "of another machine, not yet named"}, world.remote)
    result = world.save({"model.pt": "model 3"}, world.uploader(keep_last=2))
    assert result.removal_problem is None
    assert [manifest.number for manifest in world.manifests()] == [4, 3]
    assert world.history() == [("model.pt", "model 2")]
    assert set(world.content("remote")) == {"config.json", "model.pt", "epoch2.pt", "epoch9.pt"}
    assert world.restore("old", state=3).number == 3
    wanted = {"config.json": "kept", "model.pt": "model 2", "epoch2.pt": "2"}
    assert world.content("old") == wanted


def test_restore_refuses_a_folder_that_holds_something_else(world):
    world.save({"a": "saved"})
    other = {"a": "of another run", "b": "mine"}
    world.write(other, world.path / "back")
    with pytest.raises(OpsError, match=r"a, b; restore into an empty folder, or give --overwrite"):
        world.restore()
    assert world.content() == other
    world.restore(overwrite=True)
    assert world.content() == {"a": "saved"}
    [aside] = (world.path / "back" / ".sync").glob("replaced-*")
    assert (aside / "b").read_text("utf-8") == "mine"


def test_an_interrupted_restore_continues(world, monkeypatch):
    uploader = world.uploader()
    world.save({name: name for name in "abc"}, uploader)
    publish, placed = os.replace, []

    def die_at_the_second(source, target):
        if target.parent == world.path / "back":
            placed.append(target)
            if len(placed) == 2:
                raise KeyboardInterrupt
        publish(source, target)

    monkeypatch.setattr("ops.store.atomic.os.replace", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        world.restore()
    monkeypatch.undo()
    assert world.content() == {"a": "a"}
    world.save({"a": "newer", "d": "d"}, uploader)
    world.restore(keep_local=True)
    assert world.content() == {"a": "newer", "b": "b", "c": "c", "d": "d"}


def test_a_machine_that_kept_its_disk_goes_on_with_what_it_has(world):
    world.save({"a": "saved"})
    newer = {"a": "newer, not yet saved"}
    world.write(newer)
    assert world.restore("local", keep_local=True) is None
    assert world.content("local") == newer
    shutil.rmtree(world.remote)
    assert world.restore("local", keep_local=True) is None


@pytest.mark.slow
def test_a_machine_that_was_left_behind_is_noticed(world):
    world.save({"a": "old machine"})
    world.restore("newer")
    world.write({"a": "new machine"}, world.path / "newer")
    world.uploader(world.path / "newer").round()
    with pytest.raises(OpsError, match="is newer, or of another run"):
        world.restore("local", keep_local=True)


def test_an_empty_remote_restores_nothing_and_one_that_is_down_is_an_error(world):
    assert world.restore() is None
    world.store = RcloneStore(parse_remote("nowhere:x"), CallLimits(30.0, nice=0))
    with pytest.raises(RemoteError, match="didn't find section"):
        world.restore()


def test_a_link_in_the_local_folder_leads_nowhere(world):
    world.save({"sub/a": "x"})
    outside = world.path / "outside"
    outside.mkdir()
    (world.path / "back").mkdir()
    (world.path / "back" / "sub").symlink_to(outside)
    for overwrite in (False, True):
        with pytest.raises(OpsError, match="no folder but a link"):
            world.restore(overwrite=overwrite)
    assert not list(outside.iterdir())


def test_a_hostile_manifest_writes_nothing_outside(world):
    world.save({"a": "good"})
    for number, path in enumerate(["../escaped", f"{world.path}/escaped", ".sync/lock"], start=90):
        world.plant([path], number)
    assert world.restore().number == 1
    assert sum("refused" in line for line in world.said) == 3
    assert not (world.path / "escaped").exists()


def test_a_file_with_another_checksum_than_the_manifest_says_is_refused(world):
    world.save({"a": "good"})
    world.plant(["a"], size=4)
    assert world.restore().number == 1
    assert "are missing or damaged (a)" in world.said[-1]


def test_a_state_larger_than_the_disk_is_refused_before_it_is_downloaded(world):
    world.plant(["a"], size=2**42)
    with (world.remote / "a").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(OpsError, match="are free"):
        world.restore()


def old_remote(folder, states):
    """Write a remote as it was laid out before: objects, and manifests of the parts of files."""
    (folder / "objects").mkdir(parents=True)
    for number, files in enumerate(states, start=1):
        entries = []
        for path, parts in files.items():
            digests = [hashlib.sha256(part.encode()).hexdigest() for part in parts]
            for digest, part in zip(digests, parts, strict=True):
                (folder / "objects" / digest).write_text(part)
            whole = "".join(parts)
            items = [[digest, len(part)] for digest, part in zip(digests, parts, strict=True)]
            digest = hashlib.sha256(whole.encode()).hexdigest()
            entries.append([path, len(whole), digest, 5 * 10**9, items])
        content = {"format": "ops-sync/1", "number": number, "writer": "0123abcd"}
        plant_json(folder / "manifests", content | {"created": "now", "files": entries})


def test_a_remote_of_the_old_layout_comes_back_and_the_run_goes_on(world):
    first = {"metrics.jsonl": ["one\n"], "model.pt": ["old"], "empty": [""]}
    second = {"metrics.jsonl": ["one\n", "two\n"], "model.pt": ["new"], "same.pt": ["new"]}
    old_remote(world.remote, [first, second])
    with pytest.raises(AnotherRunError, match="state 2"):
        world.uploader().require_same_run()
    world.restore("older", state=1)
    assert world.content("older") == {"metrics.jsonl": "one\n", "model.pt": "old", "empty": ""}
    assert world.restore().number == 2
    assert world.content() == {path: "".join(parts) for path, parts in second.items()}
    assert (world.path / "back" / "model.pt").stat().st_mtime == 5
    uploader = world.uploader(world.path / "back", keep_last=1)
    uploader.require_same_run()
    assert uploader.round().number == 3
    assert (world.remote / "model.pt").read_text("utf-8") == "new"
    assert world.restore("newest").number == 3
    assert world.restore("oldest", state=1).number == 1


def test_an_old_state_with_a_damaged_object_is_passed_over(world):
    old_remote(world.remote, [{"a": ["first"]}, {"a": ["other"]}])
    (world.remote / "objects" / hashlib.sha256(b"other").hexdigest()).write_text("OTHER")
    assert world.restore().number == 1
    assert world.content() == {"a": "first"}
