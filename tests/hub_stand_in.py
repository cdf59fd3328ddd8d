"""A hub on this machine: folders as datasets, over the HTTP that the hub's client speaks."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class HubStandIn:
    """What the stand-in serves, and what it was asked for.

    Attributes:
        datasets: repository id → branch or tag → folder with the files of that commit.
        fetched: paths of the files that were fetched.
        broken: paths of which half is sent; nothing is served any more after the first.
    """

    datasets: dict[str, dict[str, Path]]
    address: str = ""
    fetched: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    is_down: bool = False


def commit_of(folder: Path) -> str:
    """Return the commit of a folder: the same for the same files."""
    digest = hashlib.sha1()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubStandIn

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.hub.is_down:
            return self._send(503, b"down")
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        parts = parts[1:] if parts[0] == "api" else parts
        name, request = "/".join(parts[1:3]), parts[3:]
        revisions = self.hub.datasets.get(name)
        if revisions is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if request == ["refs"]:
            return self._json(self._refs(revisions))
        folders = {**revisions, **{commit_of(folder): folder for folder in revisions.values()}}
        folder = folders.get(request[1])
        if folder is None:
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {str(path.relative_to(folder)): path for path in files}
        if request[0] == "resolve":
            return self._file(names.get("/".join(request[2:])), "/".join(request[2:]), folder)
        if request[0] == "tree":
            return self._json(
                [
                    {"type": "file", "path": key, "size": path.stat().st_size, "oid": "0" * 40}
                    for key, path in names.items()
                ]
            )
        siblings = [{"rfilename": key} for key in names]
        return self._json({"id": name, "sha": commit_of(folder), "siblings": siblings})

    def _refs(self, revisions: dict[str, Path]) -> dict[str, list[dict[str, str]]]:
        refs = {
            key: {"name": key, "ref": f"refs/{key}", "targetCommit": commit_of(folder)}
            for key, folder in revisions.items()
        }
        tags = [ref for key, ref in refs.items() if key != "main"]
        return {"branches": [refs["main"]], "tags": tags, "converts": []}

    def _file(self, path: Path | None, key: str, folder: Path) -> None:
        if path is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit_of(folder),
        }
        if self.command == "GET":
            self.hub.fetched.append(key)
            if key in self.hub.broken:
                self.hub.is_down = True
                return self._send(200, content, headers, num_sent=len(content) // 2)
        return self._send(200, content, headers)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        num_sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:num_sent])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve_hub(
    monkeypatch: pytest.MonkeyPatch, datasets: dict[str, dict[str, Path]]
) -> Iterator[HubStandIn]:
    """Serve datasets, and point the hub's client of this process there."""
    hub = HubStandIn(datasets)
    handler = type("_BoundHandler", (_Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    point_client(monkeypatch, hub.address)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def point_client(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let the hub's client of this process ask at an address, as HF_ENDPOINT does for a new one."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    # Release 0 keeps a session for each thread, release 1 one client.
    name = "reset_sessions" if hasattr(_http, "reset_sessions") else "close_session"
    getattr(_http, name)()
