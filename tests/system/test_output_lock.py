import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from world_modality.system.errors import InvalidInputError
from world_modality.system.output_lock import OutputLock

HOLDER = """
import os, sys, time
from pathlib import Path
from world_modality.system.output_lock import OutputLock
with OutputLock(Path(sys.argv[1]), "--out_dir"):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path, with the id of a child that it has forked."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def refused(folder, message=None, **options):
    with pytest.raises(InvalidInputError, match=message):
        OutputLock(folder, "--out_dir", **options).acquire()
    return True


def is_free(folder, **options):
    with OutputLock(folder, "--out_dir", **options):
        return (folder / ".lock").exists()


def test_a_second_process_is_refused_and_told_who_writes(tmp_path, holder):
    refused(tmp_path, rf"process {holder[0].pid} on .*--out_dir")


def test_the_lock_is_free_when_its_holder_was_killed_though_a_child_lives_on(tmp_path, holder):
    process, child = holder
    process.kill()
    process.wait()
    os.kill(child, 0)  # it lives
    assert is_free(tmp_path, wait_s=20)  # it may not have closed its copy of the file yet


def test_a_second_lock_in_the_same_process_is_refused_and_leaves_the_first_in_place(tmp_path):
    with OutputLock(tmp_path, "--out_dir"):
        refused(tmp_path / ".." / tmp_path.name, "this very process")
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert pool.apply(refused, (tmp_path,))
    assert is_free(tmp_path)


def test_a_lock_file_that_its_holder_removes_keeps_nobody_out_afterwards(tmp_path, monkeypatch):
    folder, flock, removed = tmp_path / "staging", fcntl.flock, []

    def flock_what_is_removed_before(descriptor, operation):
        if not removed:
            removed.append(shutil.rmtree(folder))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock_what_is_removed_before)
    with OutputLock(folder, "--out_dir", wait_s=5):
        assert (folder / ".lock").exists()
        refused(folder, "this very process")


def test_outputs_with_names_of_their_own_do_not_disturb_each_other(tmp_path):
    labels = tmp_path / "labels.jsonl"
    with OutputLock.of_file(labels, "--output_jsonl"), OutputLock(tmp_path, "--out_dir", name="b"):
        assert (tmp_path / "labels.jsonl.lock").exists()


def test_waiting_ends_when_the_holder_does(tmp_path, holder):
    os.kill(holder[0].pid, signal.SIGSTOP)
    before = time.monotonic()
    refused(tmp_path, wait_s=0.2)
    assert time.monotonic() - before >= 0.2
    holder[0].kill()
    assert is_free(tmp_path, wait_s=10)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    refused(tmp_path, r"no locks.*local disk")


def test_a_lock_file_that_is_a_symbolic_link_is_refused(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / ".lock").symlink_to(target)
    refused(tmp_path, "cannot be written")
    assert target.read_text("utf-8") == "kept"
