"""Saving through the real rclone, on folder remotes."""

import json
import os
import stat
import subprocess

import pytest

from ops.chaos_sync import Witness
from ops.store.errors import RemoteError
from ops.store.manifest import MANIFESTS
from ops.store.rclone import CallLimits, RcloneStore, parse_remote, rclone_folder
from ops.store.uploader import AnotherRunError, Uploader
from tests.fixtures.process import has_ended, wait_for


def test_what_is_saved_comes_back_and_deletions_here_delete_nothing_there(world):
    first = {"sub/model_0.pt": "zero", "empty": "", "metrics.jsonl": "one\n"}
    uploader = world.uploader()
    assert world.save(first, uploader).number == 1
    assert not uploader.round().sent
    world.write({"sub/model_0.pt": None, "sub/model_1.pt": "one", "metrics.jsonl": "one\ntwo\n"})
    assert uploader.unsaved() == ["metrics.jsonl", "sub/model_1.pt"]
    assert uploader.round().number == 2
    assert uploader.unsaved() == []
    world.restore()
    assert world.content() == world.content("local")
    world.restore("older", state=1)
    assert world.content("older") == first
    assert stat.S_IMODE((world.path / "back" / ".sync").stat().st_mode) == 0o700


def test_the_remote_is_the_folder_and_what_was_replaced_lies_in_the_history(world):
    uploader = world.uploader()
    world.save({"sub/model_0.pt": "zero", "latest.json": "model_0"}, uploader)
    assert world.content("remote") == world.content("local")
    assert world.history() == []
    changes = {"sub/model_1.pt": "one", "sub/model_0.pt": None, "latest.json": "model_1"}
    world.save(changes, uploader)
    kept = {"sub/model_0.pt": "zero"}
    assert world.content("remote") == world.content("local") | kept
    assert world.history() == [("latest.json", "model_0")]
    plain = world.path / "plain"
    rclone = rclone_folder() / "rclone"
    subprocess.run([rclone, "copy", world.store.remote.text, plain], check=True)
    assert world.content("plain") == world.content("local") | kept
    assert (plain / "latest.json").stat().st_mtime_ns == (
        (world.local / "latest.json").stat().st_mtime_ns
    )


def test_a_state_comes_back_although_a_newer_one_was_sent_half(world, monkeypatch):
    """The files of the same name and size are the newer ones; the older lie in the history."""
    first = {"last.pt": "first!", "metrics.jsonl": "one\n"}
    uploader = world.uploader()
    world.save(first, uploader)
    world.write({"last.pt": "second", "metrics.jsonl": "one\ntwo\n"})

    def die(*arguments):
        raise RemoteError("the line is cut")

    monkeypatch.setattr(Uploader, "_write_manifest", die)
    for _ in range(2):
        with pytest.raises(RemoteError):
            uploader.round()
    monkeypatch.undo()
    assert (world.remote / "last.pt").read_text("utf-8") == "second"
    assert world.restore().number == 1
    assert world.content() == first
    # Torn by the next try, on a remote that shows what is half there.
    world.write({"last.pt": "sec"}, world.remote)
    world.uploader().round()
    assert world.restore("newer").number == world.manifests()[0].number
    assert world.content("newer") == world.content("local")
    assert world.restore("older", state=1).number == 1
    assert world.content("older") == first


def test_versions_of_a_log_are_not_kept_while_a_longer_one_begins_with_them(world):
    states, uploader = [], world.uploader()
    for number in range(3):
        states.append("".join([*states[-1:], f"line {number}\n" * 10]))
        world.save({"metrics.jsonl": states[-1]}, uploader)
    assert world.history() == []
    world.save({"metrics.jsonl": "of a run that began again\n"}, uploader)
    assert world.history() == [("metrics.jsonl", states[-1])]
    for number, text in enumerate(states, start=1):
        world.restore(f"state {number}", state=number)
        assert world.content(f"state {number}") == {"metrics.jsonl": text}


def test_a_sync_that_starts_again_sends_only_what_the_remote_does_not_have(world):
    world.save({"a": "as it was", "b": "old"})
    assert set(world.save({"b": "new"}).sent) == {"b"}
    assert world.history() == [("b", "old")]


def test_two_machines_that_write_lose_none_of_their_states(world):
    other = world.path / "other"
    world.write({"a": "over there"}, other)
    witness = Witness(world.remote)
    here, there = world.uploader(), world.uploader(other)
    world.save({"a": "here"}, here)
    there.round()
    world.save({"b": "x"}, here)  # names its own "a", which the other has moved into the history
    assert witness.losses() == []
    with pytest.raises(RemoteError, match=r"does not list all that was saved; missing: a"):
        here.confirm()
    here.round()
    here.confirm()
    assert witness.losses() == []
    assert len(witness.seen) == 4
    assert world.restore().number == 3
    assert world.content() == {"a": "here", "b": "x"}


@pytest.mark.parametrize("damaged", ["SECOND", "sec"], ids=["of the same size", "cut short"])
def test_a_damaged_state_is_passed_over_and_healed_by_the_next_start(world, damaged):
    uploader = world.uploader()
    world.save({"a": "first"}, uploader)
    world.save({"b": "second"}, uploader)
    world.write({"b": damaged}, world.remote)
    assert world.restore("damaged").number == 1
    assert "state 2 cannot be used" in world.said[-1]
    world.uploader().round()
    assert world.restore("healed").number == 3
    assert world.content("healed") == {"a": "first", "b": "second"}


def test_what_vanished_from_the_remote_is_not_confirmed_and_is_sent_again(world):
    uploader = world.uploader()
    world.save({"a": "first", "b": "second"}, uploader)
    uploader.confirm()
    (world.remote / "b").unlink()
    with pytest.raises(RemoteError, match=r"does not list all that was saved; missing: b"):
        uploader.confirm()
    assert uploader.unsaved() == ["a", "b"]
    uploader.round()
    uploader.confirm()
    assert uploader.unsaved() == []
    assert world.restore().number == 2


def test_a_torn_manifest_names_nothing_and_nothing_is_removed_while_a_kept_one_is_torn(world):
    world.save({"a": "0"})
    world.save({"a": "1"})
    newest = max(world.manifest_folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    assert world.restore().number == 1
    assert world.content() == {"a": "0"}
    result = world.save({"a": "2"}, world.uploader(keep_last=2))
    assert "torn" in result.removal_problem
    assert world.history() == [("a", "0"), ("a", "1")]


def test_a_removal_that_was_cut_short_is_finished_by_the_next(world, monkeypatch):
    uploader = world.uploader(keep_last=1)
    world.save({"a": "0"}, uploader)
    delete = RcloneStore.delete

    def delete_manifests_only(store, names):
        if not all(MANIFESTS in name for name in names):
            raise RemoteError("the line is cut")
        delete(store, names)

    monkeypatch.setattr(RcloneStore, "delete", delete_manifests_only)
    assert "cut" in world.save({"a": "1"}, uploader).removal_problem
    assert world.history() == [("a", "0")]
    monkeypatch.undo()
    assert world.save({"a": "2"}, uploader).removal_problem is None
    assert world.history() == []


def test_another_run_on_the_remote_is_not_written_over_unasked(world):
    world.save({"a": "x"})
    fresh = world.path / "fresh"
    fresh.mkdir()
    # What a machine that died while it wrote a manifest may leave behind.
    (world.manifest_folder / f"00000002-0123abcd-{'0' * 16}.json").write_text("torn")
    with pytest.raises(AnotherRunError, match=r"state 1.*resume_on_new_vm"):
        world.uploader(fresh).require_same_run()
    world.restore("fresh")
    world.uploader(fresh).require_same_run()


@pytest.mark.slow
def test_a_remote_that_keeps_no_checksums_gets_every_change(world, tmp_path):
    """An encrypted remote: a file of the same size may be another."""
    key = "ZQmKrUb5BqHzVuvSnQTuXiDAfLPjVYn2xQ"
    crypt = f":crypt,remote='{tmp_path}/hidden',password={key},filename_encryption=off:"
    world.store = RcloneStore(parse_remote(crypt), CallLimits(30.0, nice=0))
    world.save({"latest.json": "1"})
    uploader = world.uploader()
    world.save({"latest.json": "2"}, uploader)
    uploader.confirm()
    world.restore()
    assert world.content() == {"latest.json": "2"}
    assert world.restore("older", state=1).number == 1
    assert world.content("older") == {"latest.json": "1"}


def test_a_call_that_does_not_answer_is_ended_with_all_its_processes(world, monkeypatch, tmp_path):
    marker = tmp_path / "pid"
    program = tmp_path / "bin" / "rclone"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $$ > {marker}\nsleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    store = RcloneStore(world.store.remote, CallLimits(2.0, nice=0))
    with pytest.raises(RemoteError, match="no answer"):
        store.list_files(MANIFESTS)
    wait_for(lambda: has_ended(int(marker.read_text("utf-8"))), 10)


def test_rclone_is_found_where_the_system_has_none(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(rclone_folder() / "rclone", os.X_OK)


def test_the_state_file_that_says_what_the_folder_follows_from_may_be_damaged(world):
    world.save({"a": "x"})
    world.write({".sync/state.json": json.dumps({"writer": None})})
    assert world.save({"a": "y"}).number == 2
