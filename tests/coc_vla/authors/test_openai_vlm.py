import base64
import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.openai_vlm import OpenAiVlm
from coc_vla.authors.vlm import VlmRequest, VlmUnavailableError
from tests.fixtures.chat_server import ChatServer, Misbehaviour, completion, serving
from tests.fixtures.tiny_models import images_for, save_qwen_vl
from world_modality.system.errors import InvalidInputError

NEEDED = ("fastapi", "uvicorn", "openai")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
REQUEST = VlmRequest(3, "push the block", images_for(0), "What happens?", seed=11)


def connected(url, **changes):
    flags = {"max_tokens": 99, "temperature": 0.5, "max_request_retries": 2, **changes}
    return OpenAiVlm(AuthorFlags(backend="openai", base_url=url, **flags))


def completed(reason, **message):
    """Return a completion with this message."""
    choice = {"message": {"role": "assistant", **message}, "finish_reason": reason}
    return Misbehaviour(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 99}}))


def streamed(*events):
    """Return the same as events that nobody asked for."""
    return Misbehaviour(200, "".join(f"data: {json.dumps(event)}\n\n" for event in events))


def asked(server, **changes):
    """Return the one answer, or what was raised."""
    with serving(server) as url:
        vlm = connected(url, **changes)
        try:
            return vlm.answer([REQUEST])[0]
        finally:
            vlm.close()


def test_a_request_holds_pictures_question_and_seed():
    server = ChatServer()
    answer = asked(server)
    (body,) = server.bodies
    assert (body["model"], body["seed"], body["max_tokens"]) == ("tiny-vl", 11, 99)
    assert body["temperature"] == 0.5
    *images, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "What happens?"}
    for sent, image in zip(images, REQUEST.images, strict=True):
        header, _, content = sent["image_url"]["url"].partition(",")
        assert header == "data:image/jpeg;base64"
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        assert decoded.shape == image.shape
        assert np.abs(decoded.astype(int) - image).mean() < 12  # of noise, as JPEG keeps it
    assert answer.error is None
    assert answer.num_tokens == len(answer.text.split())


@pytest.mark.parametrize(
    "trouble",
    [
        Misbehaviour(500, "broken"),
        Misbehaviour(503),
        Misbehaviour(529, "overloaded"),
        Misbehaviour(429, headers={"Retry-After": "0.01"}),
        Misbehaviour(429, headers={"Retry-After": "nan"}),
        Misbehaviour(200, "<html>proxy error</html>"),
        Misbehaviour(200, "[]"),
        Misbehaviour(200, '{"choices": []}'),
        Misbehaviour(200, json.dumps({"choices": [{"message": {"content": None}}]})),
    ],
)
def test_passing_trouble_is_tried_again_and_lasting_trouble_is_an_error(trouble):
    assert asked(ChatServer(trouble, num_first=2)).error is None
    lasting = ChatServer(trouble)
    answer = asked(lasting)
    assert answer.error
    assert answer.text == ""
    assert len(lasting.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "refusal"),
    [
        (completed("stop", content=None, refusal="I cannot help."), "I cannot help."),
        (completed("stop", content="", refusal="I cannot help."), "I cannot help."),
        (completed("content_filter", content=None), "content filter"),
        (completed("content_filter"), "content filter"),
        (completed("tool_calls", content=None, tool_calls=[{"id": "1"}]), "called a tool"),
        (
            streamed(
                {"choices": [{"delta": {"refusal": "I cannot"}}]},
                {"choices": [{"delta": {"refusal": " help."}, "finish_reason": "stop"}]},
            ),
            "I cannot help.",
        ),
        # The token limit ends the answer while the model thinks.
        (completed("length", content=None), None),
        (completed("length", content=None, reasoning_content="1. What: the hand"), None),
        (completed("length", content=""), None),
        (completed("length"), None),
        (completed("length", content=[{"type": "thinking", "thinking": []}]), None),
    ],
)
def test_an_answer_without_a_text_is_refused_or_cut_off_and_not_asked_for_again(reply, refusal):
    server = ChatServer(reply)
    answer = asked(server)
    assert (answer.text, answer.error, answer.is_cut_off) == ("", None, refusal is None)
    assert answer.refusal == refusal or refusal in answer.refusal
    assert len(server.bodies) == 1


def test_an_answer_in_parts_is_put_together_without_its_thoughts():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "1. What: "},
        {"type": "text", "text": "go"},
    ]
    answer = asked(ChatServer(completed("stop", content=parts)))
    assert (answer.text, answer.num_tokens) == ("1. What: go", 99)


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Misbehaviour(200, completion("late"), wait_s=6.0), "no whole answer in 0.7 s"),
        (Misbehaviour(200, pieces=[b" "] * 200, wait_s=0.05), "no whole answer in 0.7 s"),
        (Misbehaviour(200, pieces=[b" " * 2**20] * 8, wait_s=0.05), "bytes"),
    ],
    ids=["silent", "for ever", "too large"],
)
def test_a_server_that_does_not_answer_in_time_or_size_is_given_up(reply, told):
    began = time.monotonic()
    answer = asked(ChatServer(reply), timeout_s=0.7, max_request_retries=0)
    assert told in answer.error
    assert time.monotonic() - began < 5.0


def test_a_server_that_says_when_to_come_back_is_obeyed():
    busy = Misbehaviour(429, headers={"Retry-After": "0.4"})
    server = ChatServer(busy, num_first=1)
    asked(server)
    assert server.times[1] - server.times[0] >= 0.4


def test_waits_between_tries_grow(monkeypatch):
    monkeypatch.setattr("coc_vla.authors.openai_vlm.FIRST_WAIT_S", 0.1)
    server = ChatServer(Misbehaviour(500))
    asked(server, max_request_retries=3)
    waits = np.diff(server.times)
    assert waits[0] >= 0.05
    assert waits[2] >= 0.2


def test_a_wrong_request_is_not_tried_again():
    server = ChatServer(Misbehaviour(400, "tiny-vl is not a multimodal model"))
    answer = asked(server)
    assert "not a multimodal model" in answer.error
    assert len(server.bodies) == 1


@pytest.mark.parametrize(("status", "told"), [(401, "OPENAI_API_KEY"), (404, "--model_name")])
def test_what_fails_for_every_episode_ends_the_run(status, told):
    with pytest.raises(VlmUnavailableError, match=told):
        asked(ChatServer(Misbehaviour(status, "no")))


def test_a_server_that_goes_away_ends_the_run():
    with serving(ChatServer()) as url:
        vlm = connected(url, max_request_retries=1)
    with pytest.raises(VlmUnavailableError, match="no connection"):
        vlm.answer([REQUEST])
    vlm.close()
    with pytest.raises(VlmUnavailableError, match=r"no connection.*vllm serve.*--base_url"):
        connected(url)


@pytest.mark.parametrize("status", [400, 401, 500])
def test_the_key_of_the_environment_is_sent_and_not_told_even_where_the_server_repeats_it(
    monkeypatch, status
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = ChatServer(Misbehaviour(status, "wrong key sk-secret!"))
    try:
        told = asked(server, max_request_retries=0).error
    except VlmUnavailableError as error:
        told = str(error)
    assert server.keys == ["Bearer sk-secret"]
    assert "wrong key ***!" in told
    assert "sk-secret" not in told


@pytest.mark.parametrize("key", ["sk-se\ncret", "sk-sécret"])
def test_a_key_that_no_header_can_hold_is_refused_untold(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InvalidInputError, match="OPENAI_API_KEY") as caught:
        asked(ChatServer())
    assert "cret" not in str(caught.value)


def test_a_server_that_cannot_list_its_models_is_used_where_one_is_named():
    server = ChatServer()
    server.models_status = 503
    with pytest.raises(VlmUnavailableError, match="to list its models: status 503"):
        asked(server)
    assert asked(server, model_name="tiny-vl").error is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8000/v1", "expected http"),
        ("ftp://host/v1", "expected http"),
        ("http://me:secret@host/v1", "OPENAI_API_KEY"),
        ("http://host/v1?api_key=secret@", "OPENAI_API_KEY"),
        ("", "expected http"),
    ],
)
def test_an_address_that_is_none_is_refused(url, told):
    with pytest.raises(InvalidInputError, match=told) as caught:
        connected(url)
    assert "secret@" not in str(caught.value)


def test_of_several_models_one_has_to_be_named():
    server = ChatServer()
    server.models = ["a-vl", "b-vl"]
    with pytest.raises(InvalidInputError, match=r"2 models \(a-vl, b-vl\).*--model_name"):
        asked(server)
    assert asked(server, model_name="b-vl").error is None
    assert server.bodies[0]["model"] == "b-vl"


def test_a_stream_that_nobody_asked_for_is_put_together():
    deltas = [{"role": "assistant"}, {"content": "1. What:"}, {"content": " Push"}]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    end = {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"completion_tokens": 5}}
    reply = streamed(*events, end)
    reply.body += "data: [DONE]\n\n"
    whole = asked(ChatServer(reply))
    assert (whole.text, whole.num_tokens, whole.is_cut_off) == ("1. What: Push", 5, True)
    assert asked(ChatServer(streamed(*events))).error, "it has no end"


def test_closing_ends_the_waits_between_tries(monkeypatch):
    monkeypatch.setattr("coc_vla.authors.openai_vlm.FIRST_WAIT_S", 30.0)
    server = ChatServer(Misbehaviour(500))
    with serving(server) as url:
        vlm = connected(url)
        threading.Timer(0.5, vlm.close).start()
        began = time.monotonic()
        assert vlm.answer([REQUEST])[0].error
        assert time.monotonic() - began < 5
    assert len(server.bodies) == 1


def answers(url):
    try:
        httpx.get(f"{url}/models", timeout=5)
    except httpx.TransportError:
        return False
    return True


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
        deadline = time.monotonic() + 240
        while not answers(url):
            assert time.monotonic() < deadline, "transformers serve did not start"
            assert process.poll() is None
            time.sleep(0.5)
        vlm = connected(url, model_name=str(folder), max_tokens=6, temperature=0.0)
        requests = [VlmRequest(i, "push", images_for(i), "What happens?", i) for i in range(2)]
        given = vlm.answer([*requests, requests[0]])
        vlm.close()
    finally:
        process.kill()
        process.wait()
    assert [answer.error for answer in given] == [None] * 3, (tmp_path / "log").read_text("utf-8")
    assert given[0].text == given[2].text
    assert given[0].text
