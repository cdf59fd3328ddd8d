"""An upload, against a stand-in of the hub's HTTP interface."""

import pytest

from tests.fixtures.exported import exported
from tests.fixtures.servers import UploadHandler, Uploads, point_client, serve
from world_modality.system.errors import InvalidInputError

REPO = "lab/arm-c"


@pytest.fixture
def uploads(monkeypatch):
    received = Uploads(REPO)
    with serve(UploadHandler, uploads=received) as port:
        received.address = f"http://127.0.0.1:{port}"
        point_client(monkeypatch, received.address)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        yield received


def test_an_upload_is_what_lerobot_loads_and_nothing_of_this_machine(home, tmp_path, uploads):
    folder = exported(home.checkpoints["C"], tmp_path / "out", push_to_hub=REPO, private=True)
    (created,) = uploads.created
    assert created["name"] == "arm-c"
    # As release 0 of the client says it, and release 1.
    assert created.get("private") is True or created.get("visibility") == "private"
    assert set(uploads.files) == {
        *("config.json", "model.safetensors", "README.md"),
        *("policy_preprocessor.json", "policy_postprocessor.json"),
    }
    for name, content in uploads.files.items():
        assert content == (folder / name).read_bytes()
        assert str(tmp_path / "out").encode() not in content
    assert f"--policy.path={REPO}".encode() in uploads.files["README.md"]


def test_a_refusal_is_one_line_and_the_folder_stays(home, tmp_path, uploads):
    uploads.refuses = True
    with pytest.raises(InvalidInputError, match="did not take it") as caught:
        exported(home.checkpoints["C"], tmp_path / "out", push_to_hub=REPO)
    assert "\n" not in str(caught.value)
    assert "hf_of_nobody" not in str(caught.value)
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("repo_id", [REPO, "not a name"])
def test_without_network_the_error_is_one_line(home, tmp_path, repo_id):
    with pytest.raises(InvalidInputError, match="--push_to_hub") as caught:
        exported(home.checkpoints["C"], tmp_path / "out", push_to_hub=repo_id)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "model.safetensors").exists()
