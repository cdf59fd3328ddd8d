import hashlib
import json

import pytest

from ops.errors import DamagedError
from ops.manifest import FileEntry, Manifest, ManifestName, Part, decode, newest_first, parse_name

SHA = "a" * 64


def manifest(path="model.pt", **changes):
    entry = FileEntry(path, 3, SHA, 5, (Part(SHA, 3),))
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
    assert parse_name(name.file_name) == name


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
        "../outside",
        "sub/../../outside",
        "/etc/passwd",
        "a//b",
        "./a",
        "",
        "a/",
        "a\x00b",
        "a\nb",
        "..\\outside",
        ".sync/state.json",
        ".sync-x/lock",
        "x" * 2000,
        "\udcff",
        7,
        None,
    ],
)
def test_a_hostile_path_is_refused(path):
    with pytest.raises(DamagedError, match="refused"):
        decode(*forged(files=[[path, 3, SHA, 5, [[SHA, 3]]]]))


@pytest.mark.parametrize(
    "files",
    [
        [["a", 3, SHA, 5, [[SHA, 4]]]],
        [["a", 3, "../" + SHA[3:], 5, [[SHA, 3]]]],
        [["a", 3, SHA, 5, [["/" + SHA[1:], 3]]]],
        [["a", -1, SHA, 5, [[SHA, -1]]]],
        [["a", 2**60, SHA, 5, [[SHA, 2**60]]]],
        [["a", True, SHA, 5, [[SHA, True]]]],
        [["a", 3, SHA, -5, [[SHA, 3]]]],
        [["a", 3, SHA, 5, [[SHA, 3]]]] * 2,
        [["a", 3, SHA, 5, [[SHA, 3]]], ["a/b", 3, SHA, 5, [[SHA, 3]]]],
        [["a"]],
        "text",
        [None],
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
        decode(*forged(format="ops-sync/99"))


def test_the_size_of_a_manifest_is_bounded(monkeypatch):
    name, text = manifest().encode()
    monkeypatch.setattr("ops.manifest.MAX_MANIFEST_BYTES", len(text) - 1)
    with pytest.raises(DamagedError, match="larger"):
        decode(name, text)
    with pytest.raises(DamagedError, match="at most"):
        manifest().encode()


def test_the_newest_manifest_comes_first_and_other_files_do_not_count():
    names = [manifest(number=number).encode()[0].file_name for number in (2, 10, 9)]
    assert [n.number for n in newest_first([*names, "x.json", "../1.json", "2.partial"])] == [
        10,
        9,
        2,
    ]
