import importlib.util
import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from coc_vla.authors.openai_vlm import OpenAiSettings, OpenAiVlm
from coc_vla.authors.vlm import VlmRequest
from tests.fixtures.tiny_models import images_for, save_qwen_vl

NEEDED = ("fastapi", "uvicorn", "openai")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"transformers serve needs {', '.join(MISSING)}")
def test_transformers_serve_answers_with_a_tiny_model(tmp_path):
    folder = save_qwen_vl(tmp_path / "qwen3", "qwen3-vl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.commands.transformers_cli", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        wait_for(url, process)
        vlm = OpenAiVlm(OpenAiSettings(url, str(folder), 6, 0.0, 120.0, 1, 1))
        requests = [VlmRequest(i, "push", images_for(i), "What happens?", i) for i in range(2)]
        answers = vlm.answer([*requests, requests[0]])
        vlm.close()
    finally:
        process.kill()
        process.wait()
    assert [answer.error for answer in answers] == [None] * 3, (tmp_path / "log").read_text()[
        -2000:
    ]
    assert answers[0].text == answers[2].text
    assert answers[0].text


def wait_for(url, process):
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/models", timeout=5)
        except httpx.TransportError:
            time.sleep(0.5)
        else:
            return
    raise AssertionError("transformers serve did not start")
