"""A connection to an inference server: bounded answers, and a key that shows nowhere."""

import os
import time
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from world_modality.system.errors import InvalidInputError
from world_modality.system.network import proxy_between, require_proxy_support, through_proxy

API_KEY_VARIABLE = "OPENAI_API_KEY"
CONNECT_TIMEOUT_S = 10.0
# An answer has kilobytes. What goes on beyond this is none, and would fill the memory.
MAX_REPLY_BYTES = 4 * 2**20


class ServerError(Exception):
    """No answer came, or none that could be taken."""


class NoConnectionError(ServerError):
    """Nobody answers at the address."""


@dataclass(frozen=True)
class Reply:
    """What a server answered, whole: at most `MAX_REPLY_BYTES`."""

    status: int
    retry_after: str | None
    content: bytes


class ServerConnection:
    """Exchanges JSON with a server; may be used from many threads at once.

    Attributes:
        way: the proxy between, for an error's reader; empty where there is none.
    """

    def __init__(self, base_url: str, timeout_s: float, concurrency: int) -> None:
        """Prepare this many connections to an address that ends in `/v1`; none is made yet.

        Raises:
            InvalidInputError: the address is none or holds a secret, the key cannot be sent, or
                the environment names a proxy that cannot be used.
        """
        self._base_url = base_url
        self._timeout_s = timeout_s
        url = _checked_url(base_url)
        require_proxy_support(base_url, "httpx")
        self.way = through_proxy(base_url)
        proxy = proxy_between(base_url)
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._key = _key_of_environment()
        self._client = httpx.Client(
            base_url=url,
            headers={
                "Authorization": f"Bearer {self._key or 'none'}",
                "Content-Type": "application/json",
            },
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            # By itself the client prepares every proxy of the environment, needed or not.
            transport=httpx.HTTPTransport(proxy=proxy.url if proxy else None, limits=limits),
        )

    def without_key(self, text: str) -> str:
        """Return a text in which the server may have repeated the key, without it."""
        return text.replace(self._key, "***") if self._key else text

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Reply:
        """Send JSON (POST), or nothing (GET), and return the whole answer, of whatever status.

        Raises:
            NoConnectionError: nobody is there.
            ServerError: the answer did not come in time, broke off, or is too large.
        """
        try:
            return self._read(path, body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise NoConnectionError(
                f"no connection to {self._base_url}{self.way} ({error})"
            ) from error
        except httpx.TimeoutException as error:
            raise self._too_slow() from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = f"{type(error).__name__} {error}".rstrip() + self.way
            raise ServerError(self.without_key(reason)) from error

    def _read(self, path: str, body: dict[str, Any] | None) -> Reply:
        latest = time.monotonic() + self._timeout_s
        content = bytearray()
        # An episode's pictures are hundreds of kilobytes of text, which the standard library's JSON
        # takes half of the request's processor time to look through.
        method, sent = ("GET", None) if body is None else ("POST", orjson.dumps(body))
        with self._client.stream(method, path, content=sent) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > MAX_REPLY_BYTES:
                    raise ServerError(f"the answer has more than {MAX_REPLY_BYTES} bytes")
                # The client's own limit is on silence: a byte a second would pass it for ever.
                if time.monotonic() > latest:
                    raise self._too_slow()
            retry_after = response.headers.get("Retry-After")
            return Reply(response.status_code, retry_after, bytes(content))

    def _too_slow(self) -> ServerError:
        return ServerError(
            f"the server gave no whole answer in {self._timeout_s:g} s (--timeout_s)"
        )


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise InvalidInputError(f"--base_url {base_url!r} is no address: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInputError(
            f"--base_url {base_url!r}: expected http:// or https://, as in http://localhost:8000/v1"
        )
    if url.userinfo or url.query or url.fragment:
        raise InvalidInputError(
            "--base_url holds a password, or a part behind ? or #, which would be written down; "
            f"give the address up to /v1, and a key in {API_KEY_VARIABLE}"
        )
    return url


def _key_of_environment() -> str:
    """Return the server's key, empty where there is none.

    Raises:
        InvalidInputError: it cannot stand in a header; the key itself is not told.
    """
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidInputError(
            f"{API_KEY_VARIABLE} holds a line break or other characters that no key has"
        )
    return key
