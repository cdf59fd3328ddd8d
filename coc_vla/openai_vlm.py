"""An author behind any server that speaks OpenAI's chat completions: vLLM, SGLang, a cloud.

Requests may be made from many threads at once.
"""

import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from coc_vla.chat_completion import (
    NonsenseError,
    message_content,
    read_completion,
    read_model_names,
)
from coc_vla.vlm import VlmAnswer, VlmRequest, VlmUnavailableError
from world_modality.errors import InvalidInputError

API_KEY_VARIABLE = "OPENAI_API_KEY"
CONNECT_TIMEOUT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# What a server that restarts, or has too much to do, answers with.
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED_STATUS = {
    401: f"the key in {API_KEY_VARIABLE} is missing or wrong",
    403: f"the key in {API_KEY_VARIABLE} may not use this model",
    404: "the model or the address is unknown to it; is --base_url right (it ends in /v1), and "
    "--model_name what the server calls the model?",
}


@dataclass(frozen=True)
class OpenAiSettings:
    """How a server is asked.

    Attributes:
        base_url: ends in `/v1`.
        model_name: what the server calls the model; None takes the only one it has.
        max_tokens: of an answer.
        temperature: 0 is greedy.
        timeout_s: how long the server may be silent; one answer has to come in that time.
        max_request_retries: further tries of a request that failed.
        concurrency: connections at most.
    """

    base_url: str
    model_name: str | None
    max_tokens: int
    temperature: float
    timeout_s: float
    max_request_retries: int
    concurrency: int


class OpenAiVlm:
    """Asks a server; see `Vlm`.

    Transient failures (no connection, silence, 429, 5xx, an answer that is no completion) are tried
    again after 0.5 s, 1 s, 2 s … with jitter, or after what the server's Retry-After says. What
    still fails is that episode's error, except where it would fail for every other, too.
    """

    needs_images = True
    needs_motion = False

    def __init__(self, settings: OpenAiSettings) -> None:
        """Connect, and find out the model where none is named.

        Raises:
            InvalidInputError: the address is none, holds a password, or the model is not clear.
            VlmUnavailableError: nobody answers there, or the key is refused.
        """
        self._settings = settings
        url = _checked_url(settings.base_url)
        key = os.environ.get(API_KEY_VARIABLE) or "none"
        limit = settings.concurrency
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(settings.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
        )
        self._closed = threading.Event()
        self._jitter = random.Random()
        self.num_request_retries = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._model_name = self._find_model()

    @property
    def model_name(self) -> str:
        """What the server calls the model."""
        return self._model_name

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
                self._client.close()

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
        body = {
            "model": self._model_name,
            "messages": [{"role": "user", "content": message_content(request)}],
            "max_tokens": self._settings.max_tokens,
            "temperature": self._settings.temperature,
            "seed": request.seed,
            "stream": False,
        }
        began = time.monotonic()
        error = "not tried"
        for tries in range(self._settings.max_request_retries + 1):
            retry_after: str | None = None
            try:
                response = self._client.post("chat/completions", json=body)
                retry_after = response.headers.get("Retry-After")
                if response.status_code == 200:
                    return read_completion(response.content, time.monotonic() - began)
                error = _status_error(response)
                if response.status_code in _REFUSED_STATUS:
                    raise VlmUnavailableError(self._unavailable(response.status_code, error))
                if response.status_code not in _TRANSIENT_STATUS:
                    break
            except (httpx.TransportError, httpx.DecodingError, NonsenseError) as failure:
                error = _transport_error(failure, self._settings)
            is_last = tries == self._settings.max_request_retries
            if is_last or self._closed.wait(self._wait_s(tries, retry_after)):
                break
            with self._lock:
                self.num_request_retries += 1
        if error.startswith(_NO_CONNECTION):
            raise VlmUnavailableError(f"{error}; {self._how_to_serve}")
        return VlmAnswer("", None, time.monotonic() - began, error=error)

    def _wait_s(self, tries: int, retry_after: str | None) -> float:
        """Return how long to wait; exponential back-off with full jitter above its half."""
        try:
            told = float(retry_after) if retry_after else 0.0
        except ValueError:
            told = 0.0  # an HTTP date; no inference server sends one
        wait = min(FIRST_WAIT_S * 2**tries, LONGEST_WAIT_S)
        return max(min(told, 4 * LONGEST_WAIT_S), wait * self._jitter.uniform(0.5, 1.0))

    def _find_model(self) -> str:
        """Ask for the server's models; where one is named, only to see whether it is there."""
        try:
            response = self._client.get("models")
        except httpx.TransportError as error:
            reason = _transport_error(error, self._settings)
            self.close()
            raise VlmUnavailableError(f"{reason}; {self._how_to_serve}") from error
        if response.status_code in (401, 403):
            self.close()
            raise VlmUnavailableError(
                self._unavailable(response.status_code, _status_error(response))
            )
        if self._settings.model_name is not None:
            return self._settings.model_name
        names = read_model_names(response.content)
        if len(names) != 1:
            self.close()
            raise InvalidInputError(
                f"--base_url {self._settings.base_url} offers {len(names)} models "
                f"({', '.join(names[:10]) or 'none listed'}); choose one with --model_name"
            )
        return names[0]

    def _unavailable(self, status: int, error: str) -> str:
        return (
            f"{self._settings.base_url} refuses model {self._settings.model_name}: {error}; "
            f"{_REFUSED_STATUS[status]}"
        )

    @property
    def _how_to_serve(self) -> str:
        return (
            "start one with, for example, vllm serve Qwen/Qwen3-VL-8B-Instruct, and give its "
            "--base_url, as in http://localhost:8000/v1; with --resume a run goes on where it was"
        )


_NO_CONNECTION = "no connection"


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise InvalidInputError(f"--base_url {base_url!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInputError(
            f"--base_url {base_url!r}: expected http:// or https://, as in http://localhost:8000/v1"
        )
    if url.userinfo:
        raise InvalidInputError(
            f"--base_url holds a password, which would be written down; give it in "
            f"{API_KEY_VARIABLE}"
        )
    return url


def _status_error(response: httpx.Response) -> str:
    return f"status {response.status_code} {' '.join(response.text.split())[:300]}".rstrip()


def _transport_error(failure: Exception, settings: OpenAiSettings) -> str:
    if isinstance(failure, NonsenseError):
        return f"the server's answer is no completion: {failure}"
    if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout):
        return f"{_NO_CONNECTION} to {settings.base_url} ({failure})"
    if isinstance(failure, httpx.TimeoutException):
        return f"the server was silent for {settings.timeout_s:g} s (--timeout_s)"
    return f"{type(failure).__name__} {failure}".rstrip()
