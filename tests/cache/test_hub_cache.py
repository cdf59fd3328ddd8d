"""A cache goes to the hub and comes back, against stand-ins of the hub's HTTP interface."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants, scan_cache_dir, snapshot_download

from tests.fixtures.cache import (
    DATASET_NAME,
    SyntheticSpec,
    flip_bit,
    synthetic_arrays,
    write_synthetic_cache,
)
from tests.fixtures.policy import tiny_train_config
from tests.fixtures.servers import (
    UploadHandler,
    Uploads,
    commit_of,
    point_client,
    serve,
    serve_folders,
    serve_hub,
)
from world_modality.analyze_world_tokens import AnalyzeConfig
from world_modality.analyze_world_tokens import run as analyze
from world_modality.cache import hub_cache
from world_modality.cache.contract import Cache, with_checksum
from world_modality.cache.hub_cache import HubCache
from world_modality.eval_offline import EvalOfflineConfig
from world_modality.eval_offline import run as eval_offline
from world_modality.push_cache import PushCacheConfig
from world_modality.push_cache import run as push
from world_modality.system.cli import TOP
from world_modality.system.errors import InvalidInputError, MissingFileError
from world_modality.training.single import run as train

REPO = "lab/tokens"
TOKEN = "hf_of_nobody"
SPEC = SyntheticSpec(instruction_dim=5, num_views=2, grid_size=2, cell_dim=3)
MANIFEST = "train_manifest.json"


@pytest.fixture
def cache(tmp_path):
    return write_synthetic_cache(tmp_path / "cache", SPEC)


@pytest.fixture
def uploads(monkeypatch):
    received = Uploads(REPO)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serve(UploadHandler, uploads=received) as port:
        received.address = f"http://127.0.0.1:{port}"
        point_client(monkeypatch, received.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield received


@pytest.fixture
def hub(cache, tmp_path, monkeypatch):
    """A hub with one repository that holds the cache, and an empty folder of its client."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client's pause before another try
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
    hub_cache._fetched.cache_clear()
    folder = tmp_path / "repository"
    folder.mkdir()
    for path in (cache.manifest_path, *cache.folder.glob("*.npy")):
        shutil.copy(path, folder)
    with serve_hub(monkeypatch, {REPO: {"main": folder}}) as served:
        yield served
    hub_cache._fetched.cache_clear()


def pushed(cache, **flags):
    return push(
        PushCacheConfig(dataset_name=DATASET_NAME, cache_dir=cache.cache_dir, repo_id=REPO, **flags)
    )


def repository(hub):
    return hub.datasets[REPO]["main"]


def rewrite_manifest(folder, change):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest.pop("checksum")
    change(manifest)
    path.write_text(json.dumps(with_checksum(manifest)), encoding="utf-8")


@pytest.mark.parametrize("large", [".none", ".npy"])
def test_an_upload_is_the_arrays_the_manifest_and_a_card_in_one_commit(
    cache, uploads, capsys, large
):
    uploads.large = large
    (cache.folder / "train_precompute_world_tokens_config.json").write_text("{}", encoding="utf-8")
    done = pushed(cache, private=True, license="apache-2.0")
    (created,) = uploads.created
    assert created["type"] == "dataset"
    assert created.get("private") is True or created.get("visibility") == "private"
    arrays = {cache.array_path(name).name for name in cache.manifest["arrays"]}
    assert set(uploads.files) == {*arrays, MANIFEST, "README.md"}
    for name in (*arrays, MANIFEST):
        assert uploads.files[name] == (cache.folder / name).read_bytes()
    assert len(uploads.sent) == (len(arrays) if large == ".npy" else 0)
    assert uploads.commits == 1
    assert done.commit == "1"
    told = capsys.readouterr().out
    assert f"--cache_repo {REPO}@1" in told
    assert TOKEN not in told


def test_the_card_says_what_the_arrays_are_and_its_code_reads_them(
    cache, uploads, tmp_path, monkeypatch
):
    pushed(cache)
    card = uploads.files["README.md"].decode()
    _, metadata, text = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["task_categories"] == ["robotics"]
    for shown in (
        *(DATASET_NAME, "synthetic-encoder", "0" * 64, "synthetic-text", "8 codes"),
        *(cache.fingerprint(with_language=True), f"--cache_repo {REPO}"),
        *(record["sha256"][:16] for record in cache.manifest["arrays"].values()),
    ):
        assert shown in text, shown
    assert str(tmp_path) not in card
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cache.folder))
    found = {}
    exec(code, found)
    arrays = synthetic_arrays(SPEC)
    np.testing.assert_array_equal(found["tokens"], arrays["world_tokens"])
    held_out = np.isin(arrays["episode_index"], cache.manifest["split"]["val"])
    np.testing.assert_array_equal(found["held_out"], held_out)
    assert held_out.any()


def test_a_damaged_cache_is_not_uploaded(cache, uploads):
    path = cache.array_path("actions")
    flip_bit(path, -1)
    with pytest.raises(InvalidInputError, match="SHA-256 differs"):
        pushed(cache)
    assert not uploads.created


def test_a_refused_upload_is_one_line_without_the_token(cache, uploads):
    uploads.refuses = True
    with pytest.raises(InvalidInputError, match=r"did not take it.*hf auth login") as caught:
        pushed(cache)
    assert "no write access to lab for Bearer …" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("repo_id", [REPO, "not a name"])
def test_without_network_the_error_is_one_line(cache, repo_id, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "client"))
    hub_cache._fetched.cache_clear()
    config = PushCacheConfig(dataset_name=DATASET_NAME, cache_dir=cache.cache_dir, repo_id=repo_id)
    with pytest.raises(InvalidInputError, match="--repo_id") as caught:
        push(config)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingFileError, match=f"--cache_repo {repo_id}") as caught:
        HubCache(repo_id)
    assert "\n" not in str(caught.value)


def test_a_stage_reads_from_the_hub_what_it_reads_from_the_disk(cache, hub, tmp_path):
    local = tiny_train_config(cache, tmp_path / "local", "C", num_epochs=1, use_language=True)
    empty = tmp_path / "empty"
    remote = dataclasses.replace(
        local, cache_dir=empty, cache_repo=REPO, log_dir=tmp_path / "remote"
    )
    metrics = [train(config).metrics for config in (local, remote)]
    assert metrics[0] == metrics[1]
    checkpoint = tmp_path / "remote" / "model_C_epoch0.pt"
    flags = {"dataset_name": DATASET_NAME, "cache_dir": empty, "cache_repo": REPO}
    report = eval_offline(EvalOfflineConfig(checkpoint=checkpoint, **flags))
    of_disk = {**flags, "cache_dir": cache.cache_dir, "cache_repo": None}
    out = {"out_dir": tmp_path / "of_disk"}
    assert report == eval_offline(EvalOfflineConfig(checkpoint=checkpoint, **of_disk, **out))
    found = analyze(AnalyzeConfig(**flags, max_k=2))
    assert found.json_path == empty / DATASET_NAME / "analysis" / "analysis.json"
    hub_cache._fetched.cache_clear()
    num_fetched = len(hub.fetched)
    hub.is_down = True
    eval_offline(EvalOfflineConfig(checkpoint=checkpoint, **flags))  # as it was fetched before
    assert len(hub.fetched) == num_fetched


def test_only_the_files_of_the_manifest_are_fetched(cache, hub):
    for name in ("model.pkl", "train_evil.f32.npy", "setup.py", "other_manifest.json"):
        (repository(hub) / name).write_bytes(b"x" * 100)
    found = HubCache(REPO)
    expected = {cache.array_path(name).name for name in cache.manifest["arrays"]} | {MANIFEST}
    assert set(hub.fetched) == expected
    for name in cache.manifest["arrays"]:
        np.testing.assert_array_equal(found.load(name), cache.load(name))
    assert found.fingerprint(with_language=True) == cache.fingerprint(with_language=True)


def test_a_revision_is_pinned(cache, hub, tmp_path):
    first = commit_of(repository(hub))
    later = shutil.copytree(repository(hub), tmp_path / "later")
    rewrite_manifest(later, lambda manifest: manifest["split"].update(seed=7))
    hub.datasets[REPO] = {"main": later, "v1": repository(hub)}
    assert HubCache(REPO).manifest["split"]["seed"] == 7
    for revision in ("v1", first):
        assert HubCache(f"{REPO}@{revision}").manifest == cache.manifest
    with pytest.raises(MissingFileError, match="did not give it"):
        HubCache(f"{REPO}@elsewhere")


def test_an_array_of_another_size_than_the_manifest_says_is_not_fetched(hub):
    path = repository(hub) / "train_actions.f32.npy"
    path.write_bytes(path.read_bytes() + b"x" * 5000)
    with pytest.raises(InvalidInputError, match=r"train_actions\.f32\.npy of \d+ bytes, but"):
        HubCache(REPO)
    assert hub.fetched == [MANIFEST]


def test_an_array_of_other_content_than_the_manifest_says_is_not_used(hub):
    path = repository(hub) / "train_actions.f32.npy"
    flip_bit(path, -1)
    with pytest.raises(InvalidInputError, match=r"SHA-256 differs.*delete .*lab--tokens to fetch"):
        HubCache(REPO).load("actions")


def test_a_manifest_that_names_other_files_or_shapes_is_refused(hub):
    def other_file(manifest):
        manifest["arrays"]["actions"]["file"] = "../../evil.npy"

    def other_shape(manifest):
        manifest["arrays"]["actions"]["shape"] = [-1, 3]

    original = (repository(hub) / MANIFEST).read_bytes()
    for change, told in ((other_file, "expected the file"), (other_shape, "the shape")):
        (repository(hub) / MANIFEST).write_bytes(original)
        rewrite_manifest(repository(hub), change)
        with pytest.raises(InvalidInputError, match=told):
            HubCache(REPO)
        assert set(hub.fetched) == {MANIFEST}


def test_a_repository_without_a_cache_and_a_missing_one_are_told_in_a_line(hub):
    (repository(hub) / MANIFEST).unlink()
    with pytest.raises(InvalidInputError, match="holds no cache: expected train_manifest"):
        HubCache(REPO)
    with pytest.raises(MissingFileError, match=r"lab/absent.*hf auth login") as caught:
        HubCache("lab/absent")
    assert "\n" not in str(caught.value)


def test_the_cache_of_another_dataset_is_refused(hub, cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "run", "A", cache_repo=REPO)
    with pytest.raises(InvalidInputError, match=f"holds the cache of {DATASET_NAME}, expected"):
        train(dataclasses.replace(config, dataset_name="lab/other"))


def test_a_download_that_broke_off_goes_on(hub, cache):
    hub.broken = {"train_view_embeddings.fp16.npy"}
    with pytest.raises(MissingFileError, match="did not give it"):
        HubCache(REPO)
    hub.broken, hub.is_down = set(), False
    hub_cache._fetched.cache_clear()
    assert HubCache(REPO).load("view_embeddings").shape == cache.load("view_embeddings").shape


def test_a_local_cache_is_read_without_the_hub(cache, tmp_path):
    config = tiny_train_config(cache, tmp_path / "run", "A")
    assert type(hub_cache.open_cache(config)) is Cache


def test_the_clients_own_tools_see_a_whole_dataset(cache, hub, tmp_path):
    found = HubCache(REPO)
    commit = commit_of(repository(hub))
    hub.is_down = True
    scanned = scan_cache_dir(tmp_path / "client")
    (repo,) = scanned.repos
    assert not scanned.warnings
    assert (repo.repo_id, repo.repo_type) == (REPO, "dataset")
    assert {revision.commit_hash for revision in repo.revisions} == {commit}
    local = {"repo_type": "dataset", "local_files_only": True}
    assert Path(snapshot_download(REPO, revision=commit, **local)) == found.folder
    tokens = np.load(found.array_path("world_tokens"), mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(tokens, cache.load("world_tokens"))


@pytest.mark.slow
def test_the_command_lines_push_a_cache_and_train_on_it(cache, tmp_path):
    """In processes of their own, which find the hub by HF_ENDPOINT as a user's would."""
    received = Uploads(REPO, large=".npy")
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_DEBUG": "1"}

    def ran(address, *arguments):
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**environment, "HF_ENDPOINT": address},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout

    named = ["--dataset_name", DATASET_NAME]
    module = ["-m", "world_modality.push_cache", "--cache_dir", str(cache.cache_dir)]
    with serve(UploadHandler, uploads=received) as port:
        received.address = f"http://127.0.0.1:{port}"
        told = ran(received.address, *module, *named, "--repo_id", REPO)
    assert f"read it with --cache_repo {REPO}@1" in told
    folder = tmp_path / "received"
    folder.mkdir()
    for name, content in received.files.items():
        (folder / name).write_bytes(content)
    with serve_folders({REPO: {"main": folder}}) as hub:
        flags = ["--log_dir", str(tmp_path / "run"), "--device", "cpu", "--num_epochs", "1"]
        flags += ["--d_model", "32", "--n_layers", "1", "--n_heads", "2", "--chunk_size", "4"]
        flags += ["--cache_repo", f"{REPO}@{commit_of(folder)}", "--future_offset", "2"]
        ran(hub.address, str(TOP / "train_model_c.py"), *named, *flags)
    assert (tmp_path / "run" / "model_C_epoch0.pt").exists()
    assert TOKEN not in (tmp_path / "run" / "config.json").read_text(encoding="utf-8")
