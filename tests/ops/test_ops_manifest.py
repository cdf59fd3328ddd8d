import hashlib
import json

import pytest

from ops.store.errors import DamagedError
from ops.store.manifest import FileEntry, Manifest, ManifestName, decode, newest_first, path_of
from ops.store.rclone import RemoteFile
from tests.ops.world import MD5, SHA


def manifest(path="model.pt", **changes):
    entry = FileEntry(path, 3, SHA, MD5, 5)
    return Manifest(
        **{"number": 7, "writer": "0123abcd", "created": "now", **changes}, files={path: entry}
    )


def forged(**changes):
    """A manifest whose name matches its bytes, as whoever can write there makes it."""
    _, text = manifest().encode()
    content = json.loads(text) | changes
    text = json.dumps(content).encode()
    return ManifestName(7, "0123abcd", hashlib.sha256(text).hexdigest()[:16]), text


def test_a_manifest_comes_back_as_it_was():
    name, text = manifest("sub/model.pt").encode()
    assert decode(name, text) == manifest("sub/model.pt")
    assert decode(name, text).files["sub/model.pt"].mtime_ns == 5
    assert newest_first([name.file_name]) == [name]


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: t.replace(b"now", b"NOW"), lambda t: b""]
)
def test_a_torn_manifest_does_not_match_its_name(damage):
    name, text = manifest().encode()
    with pytest.raises(DamagedError, match="torn"):
        decode(name, damage(text))


@pytest.mark.parametrize(
    "path",
    [
        *("../outside", "sub/../../outside", "/etc/passwd", "a//b", "./a", "", "a/", "a\x00b"),
        *("a\nb", "..\\outside", ".sync/state.json", ".sync-x/lock", "x" * 2000, "\udcff", 7, None),
    ],
)
def test_a_hostile_path_is_refused(path):
    with pytest.raises(DamagedError, match="refused"):
        decode(*forged(files=[[path, 3, SHA, MD5, 5]]))


@pytest.mark.parametrize(
    "files",
    [
        *([["a", 3, "../" + SHA[3:], MD5, 5]], [["a", 3, SHA, "/" + MD5[1:], 5]]),
        *([["a", 3, SHA, SHA, 5]], [["a", 3, SHA, MD5, -5]], [["a", 3, SHA, MD5, 5]] * 2),
        *([["a", size, SHA, MD5, 5]] for size in (-1, 2**60, True)),
        [["a", 3, SHA, MD5, 5], ["a/b", 3, SHA, MD5, 5]],
        *([["a"]], "text", [None]),
    ],
)
def test_a_malformed_entry_is_refused(files):
    with pytest.raises(DamagedError, match="refused"):
        decode(*forged(files=files))


def test_deep_nesting_is_refused_without_a_crash():
    text = b"[" * 200_000
    name = ManifestName(7, "0123abcd", hashlib.sha256(text).hexdigest()[:16])
    with pytest.raises(DamagedError, match="refused"):
        decode(name, text)


def test_a_manifest_of_another_number_or_format_is_refused():
    with pytest.raises(DamagedError, match="another"):
        decode(*forged(number=8))
    with pytest.raises(DamagedError, match="refused"):
        decode(*forged(format="ops-sync/1"))


def test_the_size_of_a_manifest_is_bounded(monkeypatch):
    name, text = manifest().encode()
    monkeypatch.setattr("ops.store.manifest.MAX_MANIFEST_BYTES", len(text) - 1)
    with pytest.raises(DamagedError, match="larger"):
        decode(name, text)
    with pytest.raises(DamagedError, match="larger"):
        manifest().encode()


def test_the_newest_manifest_comes_first_and_other_files_do_not_count():
    names = [manifest(number=number).encode()[0].file_name for number in (2, 10, 9)]
    found = newest_first([*names, "x.json", "../1.json", "2.partial"])
    assert [name.number for name in found] == [10, 9, 2]


def test_a_file_of_the_remote_is_ours_as_far_as_its_listing_tells():
    entry = FileEntry("a", 3, SHA, MD5, 5)
    known, without = RemoteFile(3, {"md5": MD5}), RemoteFile(3, {})
    assert entry.is_listed_as(RemoteFile(3, {"sha256": SHA, "md5": MD5}))
    assert entry.is_listed_as(known, needs_hash=True)
    assert entry.is_listed_as(without)
    assert not entry.is_listed_as(without, needs_hash=True)
    for other in (RemoteFile(3, {"md5": "c" * 32}), RemoteFile(4, {"sha256": SHA}), None):
        assert not entry.is_listed_as(other)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("sub/a.pt", "sub/a.pt"),
        (".sync/history/00000002-0123abcd-ffff/sub/a.pt", "sub/a.pt"),
        (".sync/history/00000002-0123abcd-ffff", None),
        (".sync/manifests/x.json", None),
    ],
)
def test_a_file_of_the_remote_is_a_version_of_one_of_the_runs(name, path):
    assert path_of(name) == path
