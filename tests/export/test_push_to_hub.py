"""An upload, against a stand-in of the hub's HTTP interface."""

import base64
import json
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.fixtures.exported import exported
from tests.fixtures.servers import QuietHandler, point_client, serve
from world_modality.system.errors import InvalidInputError

REPO = "lab/arm-c"


@dataclass
class Uploads:
    """What the stand-in received: repositories as they were asked for, and files by path."""

    address: str = ""
    created: list[dict] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False


class _UploadHandler(QuietHandler):
    uploads: Uploads

    def do_GET(self) -> None:
        self._json({"id": REPO, "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = urlsplit(self.path).path
        if self.uploads.refuses:
            return self.send(403, b"", {"X-Error-Message": "no write access to lab"})
        if path == "/api/repos/create":
            self.uploads.created.append(json.loads(body))
            return self._json({"url": f"{self.uploads.address}/{REPO}", "id": REPO})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            settings = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self._json({"files": [{"path": one["path"], **settings} for one in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.uploads.files[line["value"]["path"]] = content
        return self._json({"commitUrl": f"{self.uploads.address}/{REPO}/commit/1", "commitOid": "1"})

    def _json(self, content: object) -> None:
        self.send(200, json.dumps(content), {"Content-Type": "application/json"})


@pytest.fixture
def uploads(monkeypatch):
    received = Uploads()
    with serve(_UploadHandler, uploads=received) as port:
        received.address = f"http://127.0.0.1:{port}"
        point_client(monkeypatch, received.address)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        yield received


def test_an_upload_is_what_lerobot_loads_and_nothing_of_this_machine(home, tmp_path, uploads):
    folder = exported(home.checkpoints["C"], tmp_path / "out", push_to_hub=REPO, private=True)
    assert [(one["name"], one["private"]) for one in uploads.created] == [("arm-c", True)]
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
