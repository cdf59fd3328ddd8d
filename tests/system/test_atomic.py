import errno
import os

import pytest

from world_modality.system.atomic import LineFile


@pytest.fixture
def file(tmp_path):
    opened = LineFile(tmp_path / "lines.jsonl")
    yield opened
    opened.close()


def test_lines_are_on_the_disk_before_append_returns(file, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size) or fsync(fd))
    file.append(["one"])
    file.append(["two", "three"])
    assert file.path.read_text("utf-8") == "one\ntwo\nthree\n"
    assert synced == [4, 14], "one flush for each call"


@pytest.mark.parametrize("room", [0, 5, 50])
def test_a_full_disk_leaves_the_file_as_it_was(file, monkeypatch, room):
    file.append(["first"])
    write = os.write
    left = [room]

    def write_into_room(descriptor, content):
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(descriptor, content[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_into_room)
    with pytest.raises(OSError, match=r"No space left on device.*lines\.jsonl"):
        file.append(["second" * 20, "third"])
    monkeypatch.undo()
    assert file.path.read_text("utf-8") == "first\n"
    file.append(["second"])
    assert file.path.read_text("utf-8") == "first\nsecond\n"


def test_a_write_in_parts_is_completed(file, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:3]))
    file.append(["some words", "more words"])
    assert file.path.read_text("utf-8") == "some words\nmore words\n"


@pytest.mark.parametrize("torn", ["", "x", "x" * 200_000])
@pytest.mark.parametrize("whole", ["", "one\n", "one\n" + "y" * 70_000 + "\n"])
def test_what_follows_the_last_line_end_is_cut(tmp_path, whole, torn):
    path = tmp_path / "lines.jsonl"
    path.write_text(whole + torn)
    file = LineFile(path)
    file.cut_torn_line()
    assert path.read_text("utf-8") == whole
    file.clear()
    assert file.num_bytes == 0
    file.close()
