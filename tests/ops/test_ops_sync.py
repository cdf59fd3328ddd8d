"""Saving through the real rclone, on folder remotes."""

import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from ops.chaos_sync import Witness
from ops.store.errors import RemoteError
from ops.store.manifest import MANIFESTS
from ops.store.rclone import CallLimits, RcloneStore, parse_remote, rclone_folder
from ops.store.uploader import AnotherRunError, Uploader
from tests.fixtures.ops import World


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
    world.restore("older", state=1)
    assert world.content("older")["sub/model_0.pt"] == "zero"
    assert stat.S_IMODE((world.path / "back" / ".sync").stat().st_mode) == 0o700


def test_the_remote_is_the_folder_and_what_was_replaced_lies_in_the_history(world):
    (world.local / "sub").mkdir()
    (world.local / "sub" / "model_0.pt").write_text("zero")
    (world.local / "latest.json").write_text("model_0")
    uploader = world.uploader()
    uploader.round()
    assert world.content("remote") == world.content("local")
    assert world.history() == []
    (world.local / "sub" / "model_1.pt").write_text("one")
    (world.local / "sub" / "model_0.pt").unlink()
    (world.local / "latest.json").write_text("model_1")
    uploader.round()
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
    (world.local / "last.pt").write_text("first!")
    (world.local / "metrics.jsonl").write_text("one\n")
    uploader = world.uploader()
    uploader.round()
    (world.local / "last.pt").write_text("second")
    (world.local / "metrics.jsonl").write_text("one\ntwo\n")

    def die(*arguments):
        raise RemoteError("the line is cut")

    monkeypatch.setattr(Uploader, "_write_manifest", die)
    for _ in range(2):
        with pytest.raises(RemoteError):
            uploader.round()
    monkeypatch.undo()
    assert (world.remote / "last.pt").read_text() == "second"
    assert world.restore().number == 1
    assert world.content() == {"last.pt": "first!", "metrics.jsonl": "one\n"}
    # Torn by the next try, on a remote that shows what is half there.
    (world.remote / "last.pt").write_text("sec")
    world.uploader().round()
    assert world.restore("newer").number == world.manifests()[0].number
    assert world.content("newer") == world.content("local")
    assert world.restore("older", state=1).number == 1
    assert world.content("older") == {"last.pt": "first!", "metrics.jsonl": "one\n"}


def test_versions_of_a_log_are_not_kept_while_a_longer_one_begins_with_them(world):
    log, states = world.local / "metrics.jsonl", []
    uploader = world.uploader()
    for number in range(3):
        with log.open("a") as file:
            file.write(f"line {number}\n" * 10)
        uploader.round()
        states.append(log.read_text())
    assert world.history() == []
    log.write_text("of a run that began again\n")
    uploader.round()
    assert world.history() == [("metrics.jsonl", states[-1])]
    for number, text in enumerate(states, start=1):
        world.restore(f"state {number}", state=number)
        assert world.content(f"state {number}") == {"metrics.jsonl": text}


def test_a_sync_that_starts_again_sends_only_what_the_remote_does_not_have(world):
    (world.local / "a").write_text("as it was")
    (world.local / "b").write_text("old")
    world.uploader().round()
    (world.local / "b").write_text("new")
    assert world.uploader().round().num_new == 1
    assert world.history() == [("b", "old")]


def test_two_machines_that_write_lose_none_of_their_states(world):
    other = world.path / "other"
    other.mkdir()
    witness = Witness(world.remote)
    here, there = world.uploader(), world.uploader(other)
    (world.local / "a").write_text("here")
    here.round()
    (other / "a").write_text("over there")
    there.round()
    (world.local / "b").write_text("x")
    here.round()  # names its own "a", which the other has moved into the history
    assert witness.losses() == []
    with pytest.raises(RemoteError, match=r"does not list all that was saved; missing: a"):
        here.confirm()
    here.round()
    here.confirm()
    assert witness.losses() == []
    assert len(witness.seen) == 4
    assert world.restore().number == 3
    assert world.content() == {"a": "here", "b": "x"}


def test_a_damaged_state_is_passed_over_and_healed_by_the_next_start(world):
    (world.local / "a").write_text("first")
    uploader = world.uploader()
    uploader.round()
    (world.local / "b").write_text("second")
    uploader.round()
    place = world.remote / "b"
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
    (world.remote / "b").unlink()
    with pytest.raises(RemoteError, match=r"does not list all that was saved; missing: b"):
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
    newest = max(world.manifest_folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    assert world.restore().number == 1
    assert world.content() == {"a": "first"}


def test_a_removal_that_was_cut_short_is_finished_by_the_next(world, monkeypatch):
    uploader = world.uploader(keep_last=1)
    (world.local / "a").write_text("0")
    uploader.round()
    delete = RcloneStore.delete

    def delete_manifests_only(store, names):
        if not all(MANIFESTS in name for name in names):
            raise RemoteError("the line is cut")
        delete(store, names)

    monkeypatch.setattr(RcloneStore, "delete", delete_manifests_only)
    (world.local / "a").write_text("1")
    assert "cut" in uploader.round().removal_problem
    assert world.history() == [("a", "0")]
    monkeypatch.undo()
    (world.local / "a").write_text("2")
    assert uploader.round().removal_problem is None
    assert world.history() == []


def test_nothing_is_removed_while_a_kept_state_cannot_be_read(world):
    (world.local / "a").write_text("0")
    world.uploader().round()
    (world.local / "a").write_text("1")
    world.uploader().round()
    newest = max(world.manifest_folder.iterdir())
    newest.write_bytes(b"torn")
    (world.local / "a").write_text("2")
    result = world.uploader(keep_last=2).round()
    assert "torn" in result.removal_problem
    assert world.history() == [("a", "0"), ("a", "1")]


def test_another_run_on_the_remote_is_not_written_over_unasked(world):
    (world.local / "a").write_text("x")
    world.uploader().round()
    fresh = world.path / "fresh"
    fresh.mkdir()
    with pytest.raises(AnotherRunError, match="resume_on_new_vm"):
        world.uploader(fresh).require_same_run()
    # What a machine that died while it wrote a manifest may leave behind.
    (world.manifest_folder / f"00000002-0123abcd-{'0' * 16}.json").write_text("torn")
    with pytest.raises(AnotherRunError, match="state 1"):
        world.uploader(fresh).require_same_run()
    world.restore("fresh")
    world.uploader(fresh).require_same_run()


@pytest.mark.slow
def test_a_remote_that_keeps_no_checksums_gets_every_change(world, tmp_path):
    """An encrypted remote: a file of the same size may be another."""
    key = "ZQmKrUb5BqHzVuvSnQTuXiDAfLPjVYn2xQ"
    crypt = f":crypt,remote='{tmp_path}/hidden',password={key},filename_encryption=off:"
    world.store = RcloneStore(parse_remote(crypt), CallLimits(30.0, nice=0))
    (world.local / "latest.json").write_text("1")
    world.uploader().round()
    (world.local / "latest.json").write_text("2")
    uploader = world.uploader()
    uploader.round()
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
