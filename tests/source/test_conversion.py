"""Datasets of format v2.1, read from what LeRobot's converter makes of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.fixtures.cache import files_of
from tests.fixtures.lerobot import make_dataset
from tests.fixtures.lerobot_v21 import take_episodes_away, write_v21
from tests.fixtures.servers import serve_hub
from tests.source.conftest import CAMERA
from world_modality.source.conversion import CONVERTERS, convert
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import InvalidInputError

NAME = "lab/tiny"
SLOW = pytest.mark.slow  # each conversion starts LeRobot's converter
COLUMNS = ["observation.state", "action", "episode_index", "task_index"]


def opened(root, **flags):
    return open_dataset(NAME, dataset_root=root, **flags)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    return make_dataset(folder / "tiny", num_episodes=3, image_size=(48, 64))


@pytest.fixture(scope="module")
def written(recorded, tmp_path_factory):
    return write_v21(recorded, tmp_path_factory.mktemp("v21") / "tiny")


@pytest.fixture
def older(written, tmp_path):
    return shutil.copytree(written, tmp_path / "with space" / "tiny")


@pytest.mark.parametrize(
    "codec",
    [None, *(pytest.param(name, marks=SLOW) for name in ("libsvtav1", "libx264", "libx265"))],
)
def test_a_conversion_holds_every_frame_and_leaves_the_dataset_alone(recorded, tmp_path, codec):
    older = write_v21(recorded, tmp_path / "tiny", codec)
    before = files_of(older)
    source, original = opened(older, convert_older=True), opened(recorded)
    assert source.root == tmp_path / "tiny_v3"
    assert files_of(older) == before
    assert source.tasks == original.tasks
    columns = original.whole_columns(COLUMNS)
    for key, found in source.whole_columns(COLUMNS).items():
        np.testing.assert_array_equal(found, columns[key])
    wanted = np.arange(source.num_frames)
    frames, expected = frames_at(source, CAMERA, wanted), frames_at(original, CAMERA, wanted)
    assert np.abs(frames.astype(int) - expected).mean() <= (0 if codec is None else 8)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["tiny", "tiny_v3"]


def test_without_the_flag_the_message_has_it_and_the_converters_command(older):
    with pytest.raises(InvalidInputError) as caught:
        opened(older)
    told = str(caught.value)
    assert f"give the same command with --convert, which writes {older.parent / 'tiny_v3'}" in told
    for module, root in zip(CONVERTERS, (older.parent, older), strict=True):
        assert f"python -m {module} --repo-id=tiny --root={root} --push-to-hub=false" in told


@SLOW
def test_a_conversion_is_made_once_and_again_only_where_the_dataset_changed(older):
    made = convert(older)
    stamp = (made / "meta" / "info.json").stat().st_mtime_ns
    assert convert(older) == made
    assert (made / "meta" / "info.json").stat().st_mtime_ns == stamp
    lines = (older / "meta" / "tasks.jsonl").read_text(encoding="utf-8")
    changed = lines.replace("push the block", "shove the block")
    (older / "meta" / "tasks.jsonl").write_text(changed, encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"another state of .* delete it"):
        convert(older)
    shutil.rmtree(made)
    assert "shove the block" in opened(older, convert_older=True).tasks.values()


def test_another_folder_of_that_name_is_not_taken_for_the_conversion(older, recorded):
    shutil.copytree(recorded, older.parent / "tiny_v3")
    with pytest.raises(InvalidInputError, match="was not made by it"):
        convert(older)


@SLOW
def test_what_a_killed_conversion_left_is_never_read(older):
    """The stage is killed while the converter runs; the next one begins again."""
    code = (
        "import sys, pathlib\n"
        "from world_modality.source.conversion import convert\n"
        "convert(pathlib.Path(sys.argv[1]))\n"
    )
    stage = subprocess.Popen([sys.executable, "-c", code, str(older)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    pattern = ".tiny_v3.partial-*/converter.log"
    while not list(older.parent.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(stage.pid, signal.SIGKILL)
    stage.wait()
    assert list(older.parent.glob(pattern))
    assert not (older.parent / "tiny_v3").exists()
    assert opened(older, convert_older=True).num_frames == 39
    assert not list(older.parent.glob(pattern))


def test_numbers_with_a_gap_are_refused_with_what_to_do(older):
    take_episodes_away(older, (1,))
    with pytest.raises(InvalidInputError, match=r"no episode 1.*fetch all episodes.*delete_"):
        convert(older)


@SLOW
def test_what_the_converter_refuses_is_told_with_its_reason(older):
    (older / "data" / "chunk-000" / "episode_000001.parquet").unlink()
    with pytest.raises(InvalidInputError, match=r"ValueError: Number of episodes.*converter\.log"):
        convert(older)
    assert not (older.parent / "tiny_v3").exists()


@pytest.mark.slow
def test_a_dataset_that_the_hub_has_in_v21_alone_is_fetched_whole_and_converted(
    written, recorded, tmp_path, monkeypatch
):
    home = tmp_path / "home"
    monkeypatch.setenv("HF_LEROBOT_HOME", str(home))
    with serve_hub(monkeypatch, {NAME: {"main": written, "v2.1": written}}) as hub:
        with pytest.raises(InvalidInputError, match=rf"--convert, which writes {home}/lab/tiny_v3"):
            open_dataset(NAME)
        assert not (home / "lab").exists()
        source = open_dataset(NAME, convert_older=True)
        assert source.root == home / "lab" / "tiny_v3"
        hub.is_down = True
        assert open_dataset(NAME, convert_older=True).root == source.root
    found, expected = (of.whole_columns(["action"])["action"] for of in (source, opened(recorded)))
    np.testing.assert_array_equal(found, expected)


def test_without_lerobot_the_error_is_one_line(older, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match="pip install lerobot") as caught:
        convert(older)
    assert "\n" not in str(caught.value)


def test_a_newer_format_is_not_converted(older):
    path = older / "meta" / "info.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**info, "codebase_version": "v4.0"}), encoding="utf-8")
    with pytest.raises(InvalidInputError, match="reads no newer format"):
        opened(older, convert_older=True)
