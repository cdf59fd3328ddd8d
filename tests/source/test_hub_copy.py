"""A hub dataset's copy: what a stage needs is there, whole, and nothing else was fetched."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from coc_vla.coc_generation import CocGenerationConfig
from coc_vla.coc_generation import run as generate
from tests.fixtures.lerobot import change_info, make_dataset
from tests.fixtures.servers import commit_of, point_client, serve_hub
from world_modality.source.frame_decoding import frames_at
from world_modality.source.lerobot_adapter import open_dataset
from world_modality.system.errors import (
    InvalidInputError,
    MissingFileError,
    MissingKeyError,
    UserError,
)

NAME = "lab/tiny"
TOP, WRIST = "observation.top", "observation.wrist"
SECOND_FILE = "data/chunk-000/file-001.parquet"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = make_dataset(
        tmp_path_factory.mktemp("hub") / "tiny",
        camera_dtype="video",
        cameras=(TOP, WRIST),
        num_episodes=3,
    )
    path = next(root.glob("data/*/*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.slice(0, 20), path)
    pq.write_table(table.slice(20), root / SECOND_FILE)
    return root


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's pause before another try
    return tmp_path / "home"


@pytest.fixture
def hub(original, home, monkeypatch):
    with serve_hub(monkeypatch, {NAME: {"main": original, "v3.0": original}}) as served:
        yield served


def versioned(original, tmp_path, version):
    """A copy of the dataset that says it is of another format version."""
    folder = shutil.copytree(original, tmp_path / version)
    change_info(folder, codebase_version=version)
    return folder


def opened(camera=TOP, **settings):
    return open_dataset(
        NAME, image_keys=() if camera is None else (camera,), needs_images=True, **settings
    )


def fetched(hub, part):
    return sorted({path for path in hub.fetched if path.startswith(part)})


def test_a_copy_equals_the_hubs_dataset_and_is_used_without_the_hub(hub, home, original):
    source = opened()
    assert source.root == home / NAME
    local = open_dataset(NAME, dataset_root=original)
    wanted = np.arange(source.num_frames)
    np.testing.assert_array_equal(frames_at(source, TOP, wanted), frames_at(local, TOP, wanted))
    hub.is_down = True
    again = opened()
    assert again.describe([TOP]) == source.describe([TOP]) == local.describe([TOP])


@pytest.mark.parametrize("path", ["meta/tasks.parquet", SECOND_FILE])
def test_an_interrupted_download_goes_on_and_fetches_only_the_rest(hub, home, path):
    hub.broken = {path}
    with pytest.raises(MissingFileError, match=r"did not give it|does not answer"):
        opened()
    whole = {str(p.relative_to(home / NAME)) for p in (home / NAME).glob("[!.]*/**/*.*")}
    assert "meta/info.json" in whole or path.startswith("meta/")
    hub.broken, hub.is_down = set(), False
    hub.fetched.clear()
    source = opened()
    assert not whole & set(hub.fetched)
    assert path in hub.fetched
    assert sum(len(block["action"]) for block in source.columns(["action"])) == 39


def test_only_the_camera_that_is_needed_is_fetched_and_the_other_later(hub, original):
    first = opened()
    identity = first.describe([TOP])["content_sha256"]
    assert fetched(hub, "videos/") == [f"videos/{TOP}/chunk-000/file-000.mp4"]
    second = opened(WRIST)
    frames = frames_at(second, WRIST, np.arange(3))
    local = open_dataset(NAME, dataset_root=original)
    np.testing.assert_array_equal(frames, frames_at(local, WRIST, np.arange(3)))
    # What is fetched later makes no other dataset of it.
    assert open_dataset(NAME).describe([TOP])["content_sha256"] == identity


@pytest.mark.parametrize("key", ["observation.tpo", None])
def test_a_wrong_camera_is_told_before_anything_large_is_fetched(hub, key):
    with pytest.raises(MissingKeyError, match=rf"{TOP}, {WRIST}"):
        opened(key)
    assert not fetched(hub, "data/")
    assert not fetched(hub, "videos/")


def test_labels_by_rule_fetch_no_video(hub, tmp_path):
    output = tmp_path / "labels.jsonl"
    dims = {"position_dims": (0, 1, 2), "gripper_dim": "none"}
    generate(CocGenerationConfig(dataset_name=NAME, backend="rules", output_jsonl=output, **dims))
    assert not fetched(hub, "videos/")
    assert len(output.read_text("utf-8").splitlines()) == 3


def test_a_file_of_another_size_is_refused_and_not_overwritten(hub, home):
    open_dataset(NAME)
    path = home / NAME / SECOND_FILE
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InvalidInputError, match=rf"file-001.* {size - 7} bytes, on the hub {size}"):
        open_dataset(NAME)
    assert path.stat().st_size == size - 7


def test_a_copy_that_another_program_left_half_is_made_whole(hub, home):
    """LeRobot's own download leaves the client's notes, and no list of files."""
    open_dataset(NAME)
    (home / NAME / ".cache" / "hub_copy.json").unlink()
    (home / NAME / SECOND_FILE).unlink()
    hub.fetched.clear()
    open_dataset(NAME)
    assert set(hub.fetched) == {SECOND_FILE}
    (home / NAME / SECOND_FILE).unlink()
    hub.is_down = True
    with pytest.raises(MissingFileError, match=r"file-001\.parquet is missing, and the hub"):
        open_dataset(NAME)


def test_a_copy_of_one_commit_is_not_mixed_with_another(hub, home, original, tmp_path):
    other = shutil.copytree(original, tmp_path / "other")
    (other / "meta" / "stats.json").write_text("{}")
    hub.datasets[NAME]["later"] = other
    open_dataset(NAME, revision="later")
    assert (home / NAME / "meta" / "stats.json").read_text("utf-8") == "{}"
    with pytest.raises(InvalidInputError, match=rf"commit {commit_of(other)}.*--revision v3\.0 is"):
        open_dataset(NAME, revision="v3.0")
    hub.is_down = True
    assert open_dataset(NAME, revision=commit_of(other)).revision == commit_of(other)
    with pytest.raises(MissingFileError, match="did not give it"):
        open_dataset(NAME, revision="elsewhere")


def test_a_recording_is_not_taken_for_the_hubs_dataset_of_the_same_name(hub, home, original):
    shutil.copytree(original, home / NAME)
    assert open_dataset(NAME).root == home / NAME
    with pytest.raises(InvalidInputError, match=r"unknown revision, --revision asks for v3\.0"):
        open_dataset(NAME, revision="v3.0")
    assert not hub.fetched


@pytest.mark.parametrize(
    ("version", "tag"), [("v2.1", "v2.1"), ("v2.1", None), ("v1.6", "v1.6"), ("v4.0", "v4.0")]
)
def test_another_format_gets_the_same_message_on_the_hub_and_on_the_disk(
    hub, home, original, tmp_path, version, tag
):
    folder = versioned(original, tmp_path, version)
    shutil.copytree(folder, tmp_path / "hub" / NAME)
    if version == "v1.6":
        (folder / "meta").rename(folder / "meta_data")
    hub.datasets[NAME] = {"main": folder, **({tag: folder} if tag else {})}
    with pytest.raises(InvalidInputError) as on_hub:
        open_dataset(NAME)
    with pytest.raises(InvalidInputError) as on_disk:
        open_dataset(NAME, dataset_root=tmp_path / "hub" / NAME)
    told, told_of_disk = (str(e.value).split(" has codebase_version ") for e in (on_hub, on_disk))
    assert told[1] == told_of_disk[1].replace(str(tmp_path / "hub"), str(home))
    assert told[1].startswith(f"{version}, expected v3.x; ")
    assert not (home / NAME).exists()  # the converter would take it for the whole dataset
    for module, root in (("datasets.v30", home), ("scripts", home / NAME)):
        command = (
            f"python -m lerobot.{module}.convert_dataset_v21_to_v30 --repo-id=lab/tiny "
            f"--root={root} --push-to-hub=false (lerobot 0."
        )
        assert (command in told[1]) == (version != "v4.0")


def test_the_latest_revision_of_format_v3_is_taken_where_main_is_newer(hub, original, tmp_path):
    newer = versioned(original, tmp_path, "v4.0")
    hub.datasets[NAME] = {"main": newer, "v4.0": newer, "v2.1": newer, "v3.0": original}
    assert open_dataset(NAME).info["codebase_version"] == "v3.0"


@pytest.mark.parametrize("name", ["lab/absent", "a/b/c", "lab/a b"])
def test_what_the_hub_lacks_is_told_in_a_line(hub, name):
    with pytest.raises(UserError, match=f"no dataset {name} in .*did not give it"):
        open_dataset(name)


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("http://me:hush@127.0.0.1:9", r"the hub through the proxy http://127\.0\.0\.1:9 \(HTTP"),
        ("socks5://me:hush@127.0.0.1:9", r"SOCKS proxy socks5://127\.0\.0\.1:9.*\[socks\]"),
        ("ftp://me:hush@127.0.0.1:9", r"names the proxy 'ftp://127\.0\.0\.1:9'; expected"),
    ],
)
def test_a_proxy_that_gives_nothing_is_named_without_its_password(
    home, monkeypatch, proxy, message
):
    point_client(monkeypatch, "http://hub.invalid")
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(NAME)
    assert "hush" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not Path(home / NAME).exists()
