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


def test_a_second_process_is_refused_and_told_who_writes(tmp_path, holder):
    with pytest.raises(InvalidInputError, match=rf"process {holder[0].pid} on .*--out_dir"):
        OutputLock(tmp_path, "--out_dir").acquire()


def test_the_lock_is_free_when_its_holder_was_killed_though_a_child_lives_on(tmp_path, holder):
    process, child = holder
    process.kill()
    process.wait()
    os.kill(child, 0)  # it lives
    with OutputLock(tmp_path, "--out_dir"):
        pass


def test_a_second_lock_in_the_same_process_is_refused_and_leaves_the_first_in_place(tmp_path):
    with OutputLock(tmp_path, "--out_dir"):
        with pytest.raises(InvalidInputError, match="this very process"):
            OutputLock(tmp_path / ".." / tmp_path.name, "--out_dir").acquire()
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            assert pool.apply(_refused, (tmp_path,))
    with OutputLock(tmp_path, "--out_dir"):
        pass


def _refused(folder):
    try:
        OutputLock(folder, "--out_dir").acquire()
    except InvalidInputError:
        return True
    return False


def test_a_lock_file_that_its_holder_removes_keeps_nobody_out_afterwards(tmp_path, monkeypatch):
    folder = tmp_path / "staging"
    OutputLock(folder, "--out_dir").acquire()
    monkeypatch.setattr("world_modality.system.output_lock._held", {})  # as in another process
    opened = OutputLock._open

    def open_what_is_removed_then(lock):
        monkeypatch.setattr(OutputLock, "_open", opened)
        descriptor = opened(lock)
        shutil.rmtree(folder)
        return descriptor

    monkeypatch.setattr(OutputLock, "_open", open_what_is_removed_then)
    with OutputLock(folder, "--out_dir", wait_s=5):
        assert (folder / ".lock").exists()


def test_outputs_with_names_of_their_own_do_not_disturb_each_other(tmp_path):
    labels = tmp_path / "labels.jsonl"
    with OutputLock.of_file(labels, "--output_jsonl"), OutputLock(tmp_path, "--out_dir", name="b"):
        assert (tmp_path / "labels.jsonl.lock").exists()


def test_waiting_ends_when_the_holder_does(tmp_path, holder):
    os.kill(holder[0].pid, signal.SIGSTOP)
    before = time.monotonic()
    with pytest.raises(InvalidInputError):
        OutputLock(tmp_path, "--out_dir", wait_s=0.2).acquire()
    assert time.monotonic() - before >= 0.2
    holder[0].kill()
    with OutputLock(tmp_path, "--out_dir", wait_s=10):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(InvalidInputError, match=r"no locks.*local disk"):
        OutputLock(tmp_path, "--out_dir").acquire()


def test_a_lock_file_that_is_a_symbolic_link_is_refused(tmp_path):
    target = tmp_path / "precious"
    target.write_text("kept")
    (tmp_path / ".lock").symlink_to(target)
    with pytest.raises(InvalidInputError, match="cannot be written"):
        OutputLock(tmp_path, "--out_dir").acquire()
    assert target.read_text() == "kept"
