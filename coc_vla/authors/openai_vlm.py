"""An author behind any server that speaks OpenAI's chat completions: vLLM, SGLang, a cloud.

Requests may be made from many threads at once.
"""

import json
import math
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.server_connection import (
    API_KEY_VARIABLE,
    NoConnectionError,
    Reply,
    ServerConnection,
    ServerError,
)
from coc_vla.authors.vlm import VlmAnswer, VlmRequest, VlmUnavailableError, image_url
from world_modality.system.errors import InvalidInputError, UserError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# What a server that has too much to do answers with; one that restarts, with 500 or more.
_BUSY_STATUS = frozenset({408, 409, 425, 429})
_SERVER_ERRORS = 500
_PROXY_REFUSES = 407
_OK = 200
_REFUSED_STATUS = {
    401: f"the key in {API_KEY_VARIABLE} is missing or wrong",
    403: f"the key in {API_KEY_VARIABLE} may not use this model",
    404: "the model or the address is unknown to it; is --base_url right (it ends in /v1), and "
    "--model_name what the server calls the model?",
}
_HOW_TO_SERVE = (
    "start one with, for example, vllm serve Qwen/Qwen3-VL-8B-Instruct, and give its --base_url, "
    "as in http://localhost:8000/v1; with --resume a run goes on where it was"
)
_NO_COMPLETION = "the server's answer is no completion: "
# Why a finished completion has no text, where the server does not say it in words.
_NO_TEXT = {
    "content_filter": "the server's content filter keeps the answer back",
    "tool_calls": "the model called a tool instead of writing",
    "function_call": "the model called a function instead of writing",
}


def read_completion(reply: bytes, seconds: float) -> VlmAnswer:
    """Read a completion, the body of a reply.

    A server that streams although it was not asked to (`transformers serve` of release 4 does)
    gives events instead; they are put together. A completion without a text is an answer, too: one
    that the token limit ended while the model thought is cut off and empty, one that was refused
    says why in `refusal`.

    Raises:
        ServerError: it is neither.
    """
    try:
        content = json.loads(_joined_events(reply) if reply.startswith(b"data:") else reply)
        choice = content["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        text, refusal = _text_of(message.get("content")), message.get("refusal")
        usage = content.get("usage") or {}
        num_tokens = usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ServerError(_NO_COMPLETION + reply[:120].decode(errors="replace")) from error
    if not text.strip() and not refusal:
        if reason in _NO_TEXT:
            refusal = _NO_TEXT[reason]
        elif message.get("content") is None and reason not in ("stop", "length"):
            raise ServerError(_NO_COMPLETION + f"no content, and finish_reason {reason!r}"[:120])
    return VlmAnswer(
        text,
        num_tokens if type(num_tokens) is int else None,
        seconds,
        is_cut_off=reason == "length",
        refusal=str(refusal) if refusal and not text.strip() else None,
    )


def _text_of(content: Any) -> str:
    """Return a message's text; some servers give it in parts, thoughts among them."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    if content is not None and not isinstance(content, str):
        raise TypeError
    return content or ""


def _joined_events(reply: bytes) -> str:
    """Return the completion that a stream of events makes up; it has to have come to its end."""
    lines = [line.removeprefix(b"data:").strip() for line in reply.splitlines() if line.strip()]
    events = [json.loads(line) for line in lines if line != b"[DONE]"]
    choices = [event["choices"][0] for event in events if event.get("choices")]
    message = {
        name: "".join(choice["delta"].get(name) or "" for choice in choices)
        for name in ("content", "refusal")
    }
    reasons = [c["finish_reason"] for c in choices if c.get("finish_reason")]
    if not reasons:
        raise ValueError("the stream has no end")
    choice = {"message": message, "finish_reason": reasons[-1]}
    usages = [event["usage"] for event in events if event.get("usage")]
    return json.dumps({"choices": [choice], "usage": usages[-1] if usages else None})


class OpenAiVlm:
    """Asks a server; see `Vlm`.

    Transient failures (no connection, silence, 429, 5xx, an answer that is no completion) are tried
    again after 0.5 s, 1 s, 2 s … with jitter, or after what the server's Retry-After says. What
    still fails is that episode's error, except where it would fail for every other, too.
    """

    def __init__(self, flags: AuthorFlags) -> None:
        """Connect, and find out the model where none is named.

        Raises:
            InvalidInputError: the address is none, holds a password, the key cannot be sent, or
                the model is not clear.
            VlmUnavailableError: nobody answers there, or the key is refused.
        """
        assert flags.base_url is not None
        self._flags = flags
        self._base_url = flags.base_url
        self._connection = ServerConnection(self._base_url, flags.timeout_s, flags.concurrency)
        self._closed = threading.Event()
        self._jitter = random.Random()
        self._lock = threading.Lock()
        self._in_flight = self.num_request_retries = 0
        try:
            self.model_name = self._find_model()
        except UserError:
            self.close()
            raise

    def answer(self, requests: Sequence[VlmRequest]) -> list[VlmAnswer]:
        """Answer each request, one after the other.

        Raises:
            VlmUnavailableError: the server cannot be reached, or refuses the key or the model.
        """
        return [self._answer(request) for request in requests]

    def close(self) -> None:
        """End the waits between tries; a request under way ends by itself, at its time limit."""
        self._closed.set()
        with self._lock:
            if self._in_flight == 0:
                self._connection.close()

    def _answer(self, request: VlmRequest) -> VlmAnswer:
        with self._lock:
            if self._closed.is_set():
                return VlmAnswer("", None, 0.0, error="the run ended before it was asked")
            self._in_flight += 1
        try:
            return self._tried(request)
        finally:
            with self._lock:
                self._in_flight -= 1

    def _tried(self, request: VlmRequest) -> VlmAnswer:
        # The pictures in order, then the question.
        content: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": image_url(image)}}
            for image in request.images
        ]
        content.append({"type": "text", "text": request.prompt})
        body = {
            "model": self.model_name,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._flags.max_tokens,
            "temperature": self._flags.temperature,
            "seed": request.seed,
            "stream": False,
        }
        began = time.monotonic()
        error: str | ServerError = "not tried"
        for tries in range(self._flags.max_request_retries + 1):
            retry_after: str | None = None
            try:
                reply = self._connection.ask("chat/completions", body)
                retry_after = reply.retry_after
                if reply.status == _OK:
                    return read_completion(reply.content, time.monotonic() - began)
                error = self._status_error(reply)
                if reply.status in _REFUSED_STATUS:
                    raise VlmUnavailableError(self._unavailable(reply.status, str(error)))
                if reply.status not in _BUSY_STATUS and reply.status < _SERVER_ERRORS:
                    break
            except ServerError as failure:
                error = failure
            is_last = tries == self._flags.max_request_retries
            if is_last or self._closed.wait(self._wait_s(tries, retry_after)):
                break
            with self._lock:
                self.num_request_retries += 1
        if isinstance(error, NoConnectionError):
            raise VlmUnavailableError(f"{error}; {_HOW_TO_SERVE}")
        told = self._connection.without_key(str(error))
        return VlmAnswer("", None, time.monotonic() - began, error=told)

    def _wait_s(self, tries: int, retry_after: str | None) -> float:
        """Return exponential back-off with jitter above its half, or what the server asks for."""
        try:
            told = float(retry_after) if retry_after else 0.0
        except ValueError:
            told = 0.0  # an HTTP date; no inference server sends one
        told = 0.0 if math.isnan(told) else told
        wait = min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S)
        return max(min(told, 4 * LONGEST_WAIT_S), wait * self._jitter.uniform(0.5, 1.0))

    def _find_model(self) -> str:
        """Ask for the server's models; where one is named, only to see whether it is there."""
        try:
            reply = self._connection.ask("models")
        except ServerError as error:
            raise VlmUnavailableError(f"{error}; {_HOW_TO_SERVE}") from error
        # Not every server lists its models to everybody; one that is named is tried.
        is_needed = self._flags.model_name is None
        if reply.status in (401, 403) or (is_needed and reply.status != _OK):
            raise VlmUnavailableError(self._unavailable(reply.status, self._status_error(reply)))
        if self._flags.model_name is not None:
            return self._flags.model_name
        try:
            names = [str(model["id"]) for model in json.loads(reply.content)["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            names = []
        if len(names) != 1:
            raise InvalidInputError(
                f"--base_url {self._base_url} offers {len(names)} models "
                f"({', '.join(names[:10]) or 'none listed'}); choose one with --model_name"
            )
        return names[0]

    def _status_error(self, reply: Reply) -> str:
        text = self._connection.without_key(reply.content.decode(errors="replace"))
        told = f"status {reply.status} {' '.join(text.split())[:300]}".rstrip()
        # A proxy that finds no server answers in its place.
        is_of_proxy = reply.status == _PROXY_REFUSES or reply.status >= _SERVER_ERRORS
        return told + self._connection.way if is_of_proxy else told

    def _unavailable(self, status: int, error: str) -> str:
        model = self._flags.model_name
        asked = "to list its models" if model is None else f"model {model}"
        hint = _REFUSED_STATUS.get(status, "is it a server of chat completions, and ready?")
        return f"{self._base_url} refuses {asked}: {error}; {hint}"
