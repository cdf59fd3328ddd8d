import base64
import io
import json
import time

import numpy as np
import pytest
from PIL import Image

from coc_vla.authors.openai_vlm import OpenAiSettings, OpenAiVlm
from coc_vla.authors.vlm import VlmRequest, VlmUnavailableError
from tests.fixtures.chat_server import GOOD_ANSWER, ChatServer, Misbehaviour, completion, serving
from tests.fixtures.tiny_models import images_for
from world_modality.system.errors import InvalidInputError

REQUEST = VlmRequest(3, "push the block", images_for(0), "What happens?", seed=11)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("coc_vla.authors.openai_vlm.FIRST_WAIT_S", 0.01)


def connected(url, **changes):
    settings = {
        "base_url": url,
        "model_name": None,
        "max_tokens": 99,
        "temperature": 0.5,
        "timeout_s": 30.0,
        "max_request_retries": 2,
        "concurrency": 4,
    }
    return OpenAiVlm(OpenAiSettings(**{**settings, **changes}))


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
        Misbehaviour(200, "<html>proxy error</html>"),
        Misbehaviour(200, "[]"),
        Misbehaviour(200, '{"choices": []}'),
        Misbehaviour(200, json.dumps({"choices": [{"message": {"content": None}}]})),
    ],
)
def test_passing_trouble_is_tried_again_and_lasting_trouble_is_an_error(trouble):
    passing = ChatServer(lambda body, count: trouble if count < 2 else GOOD_ANSWER)
    assert asked(passing).text == GOOD_ANSWER
    lasting = ChatServer(lambda body, count: trouble)
    answer = asked(lasting)
    assert answer.error
    assert answer.text == ""
    assert len(lasting.bodies) == 3


def without_text(reason, **message):
    """Return a completion that has no text."""
    choice = {"message": {"role": "assistant", **message}, "finish_reason": reason}
    return Misbehaviour(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 99}}))


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (without_text("stop", content=None, refusal="I cannot help."), "I cannot help."),
        (without_text("stop", content="", refusal="I cannot help."), "I cannot help."),
        (without_text("content_filter", content=None), "content filter"),
        (without_text("content_filter"), "content filter"),
        (without_text("tool_calls", content=None, tool_calls=[{"id": "1"}]), "called a tool"),
        (
            Misbehaviour(
                200,
                'data: {"choices": [{"delta": {"refusal": "I cannot"}}]}\n\n'
                'data: {"choices": [{"delta": {"refusal": " help."}, "finish_reason": "stop"}]}\n\n'
                "data: [DONE]\n\n",
            ),
            "I cannot help.",
        ),
    ],
)
def test_a_refusal_is_an_answer_that_is_not_asked_for_again(reply, told):
    server = ChatServer(lambda body, count: reply)
    answer = asked(server)
    assert told in answer.refusal
    assert (answer.text, answer.error) == ("", None)
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    "message",
    [
        {"content": None},
        {"content": None, "reasoning_content": "1. What: the hand"},
        {"content": ""},
        {},
        {"content": [{"type": "thinking", "thinking": []}]},
    ],
)
def test_an_answer_that_ends_while_the_model_thinks_is_cut_off_and_empty(message):
    server = ChatServer(lambda body, count: without_text("length", **message))
    answer = asked(server)
    assert (answer.text, answer.error, answer.refusal) == ("", None, None)
    assert answer.is_cut_off
    assert answer.num_tokens == 99
    assert len(server.bodies) == 1


def test_an_answer_in_parts_is_put_together_without_its_thoughts():
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "1. What: "},
        {"type": "text", "text": "go"},
    ]
    answer = asked(ChatServer(lambda body, count: without_text("stop", content=parts)))
    assert answer.text == "1. What: go"


def test_a_silent_server_is_given_up_after_the_time_limit():
    slow = Misbehaviour(200, completion("late"), wait_s=6.0)
    server = ChatServer(lambda body, count: slow)
    began = time.monotonic()
    answer = asked(server, timeout_s=0.7, max_request_retries=1)
    assert "no whole answer in 0.7 s" in answer.error
    assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    ("pieces", "told"), [([b" "] * 200, "no whole answer"), ([b" " * 2**20] * 8, "bytes")]
)
def test_an_answer_that_never_ends_is_given_up(pieces, told):
    server = ChatServer(lambda body, count: Misbehaviour(200, pieces=pieces, wait_s=0.05))
    began = time.monotonic()
    answer = asked(server, timeout_s=0.8, max_request_retries=0)
    assert told in answer.error
    assert time.monotonic() - began < 5.0


def test_a_wait_that_is_no_number_is_not_taken_for_one():
    busy = Misbehaviour(429, headers={"Retry-After": "nan"})
    server = ChatServer(lambda body, count: busy if count == 0 else GOOD_ANSWER)
    assert asked(server).text == GOOD_ANSWER


def test_a_server_that_says_when_to_come_back_is_obeyed():
    busy = Misbehaviour(429, headers={"Retry-After": "0.4"})
    server = ChatServer(lambda body, count: busy if count == 0 else GOOD_ANSWER)
    asked(server)
    assert server.times[1] - server.times[0] >= 0.4


def test_waits_between_tries_grow(monkeypatch):
    monkeypatch.setattr("coc_vla.authors.openai_vlm.FIRST_WAIT_S", 0.1)
    server = ChatServer(lambda body, count: Misbehaviour(500))
    asked(server, max_request_retries=3)
    waits = np.diff(server.times)
    assert waits[0] >= 0.05
    assert waits[2] >= 0.2


def test_a_wrong_request_is_not_tried_again():
    server = ChatServer(lambda body, count: Misbehaviour(400, "tiny-vl is not a multimodal model"))
    answer = asked(server)
    assert "not a multimodal model" in answer.error
    assert len(server.bodies) == 1


@pytest.mark.parametrize(("status", "told"), [(401, "OPENAI_API_KEY"), (404, "--model_name")])
def test_what_fails_for_every_episode_ends_the_run(status, told):
    with pytest.raises(VlmUnavailableError, match=told):
        asked(ChatServer(lambda body, count: Misbehaviour(status, "no")))


def test_a_server_that_is_not_there_is_an_error_at_once():
    with serving(ChatServer()) as url:
        pass
    with pytest.raises(VlmUnavailableError, match=r"no connection.*vllm serve.*--base_url"):
        connected(url)


def test_a_server_that_goes_away_ends_the_run():
    with serving(ChatServer()) as url:
        vlm = connected(url, max_request_retries=1)
    with pytest.raises(VlmUnavailableError, match="no connection"):
        vlm.answer([REQUEST])
    vlm.close()


def test_the_key_comes_from_the_environment_and_shows_nowhere(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = ChatServer(lambda body, count: Misbehaviour(401, "no"))
    with pytest.raises(VlmUnavailableError) as caught:
        asked(server)
    assert server.keys == ["Bearer sk-secret"]
    assert "sk-secret" not in str(caught.value) + "".join(capsys.readouterr())


@pytest.mark.parametrize("status", [400, 401, 500])
def test_a_server_that_repeats_the_key_does_not_bring_it_into_the_labels(monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = ChatServer(lambda body, count: Misbehaviour(status, "wrong key sk-secret!"))
    try:
        told = asked(server, max_request_retries=0).error
    except VlmUnavailableError as error:
        told = str(error)
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


def test_a_cut_off_answer_says_so():
    cut_off = Misbehaviour(200, completion("1. What: Move", "length"))
    assert asked(ChatServer(lambda body, count: cut_off)).is_cut_off


def test_a_stream_that_nobody_asked_for_is_put_together():
    deltas = [{"role": "assistant"}, {"content": "1. What:"}, {"content": " Push"}]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    end = {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": {"completion_tokens": 5}}
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in [*events, end])
    whole = asked(ChatServer(lambda b, count: Misbehaviour(200, body + "data: [DONE]\n\n")))
    assert (whole.text, whole.num_tokens, whole.is_cut_off) == ("1. What: Push", 5, True)
    cut = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    assert asked(ChatServer(lambda b, count: Misbehaviour(200, cut))).error


def test_closing_ends_the_waits_between_tries(monkeypatch):
    monkeypatch.setattr("coc_vla.authors.openai_vlm.FIRST_WAIT_S", 30.0)
    with serving(ChatServer(lambda body, count: Misbehaviour(500))) as url:
        vlm = connected(url)
        vlm._closed.set()
        began = time.monotonic()
        assert vlm.answer([REQUEST])[0].error
        assert time.monotonic() - began < 5
