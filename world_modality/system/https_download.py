"""A small file from an https URL: bounded in time and size, never over another protocol."""

import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import Any
from urllib.parse import urlsplit

from world_modality.system.errors import InvalidInputError
from world_modality.system.proxies import by_way_of, require_proxy_support

# For connecting, and for every single wait after that.
WAIT_TIMEOUT_S = 10.0
# For the whole download, against a server that sends a byte now and then.
TOTAL_TIMEOUT_S = 60.0
CHUNK_BYTES = 65_536


def is_url(location: str) -> bool:
    """Say whether a location is meant as a URL, whatever its protocol."""
    return "://" in location


def without_query(url: str) -> str:
    """Return a URL as it may be recorded: queries and fragments can hold access tokens."""
    return url.split("?")[0].split("#")[0]


def download_https(url: str, *, max_bytes: int) -> bytes:
    """Fetch a file.

    Args:
        url: https only, without a user name or password; redirects stay on https, too.
        max_bytes: what is read at most, whatever size the server announces.

    Raises:
        InvalidInputError: another protocol, a host that does not answer, an HTTP error, a download
            that takes too long, is too large, or is cut short, or a proxy that speaks no HTTP.
    """
    _check_url(url)
    require_proxy_support(url, "urllib")
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    try:
        with https_opener().open(request, timeout=WAIT_TIMEOUT_S) as response:
            return _read(response, url, max_bytes, deadline)
    except urllib.error.HTTPError as error:
        error.close()
        raise InvalidInputError(
            f"{without_query(url)} answered {error.code} {error.reason}; download the file by hand "
            "and give its path"
        ) from error
    except (OSError, HTTPException, UnicodeError) as error:
        raise InvalidInputError(
            f"{without_query(url)} could not be read{by_way_of(url)} "
            f"({getattr(error, 'reason', error)}); is it right, and is this machine connected? "
            "Otherwise download the file elsewhere and give its path"
        ) from error


def https_opener() -> urllib.request.OpenerDirector:
    """Return an opener that speaks https and nothing else; it heeds the environment's proxies."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(_https_proxy()),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _HttpsRedirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _https_proxy() -> dict[str, str]:
    """Return the proxy for https; urllib by itself overlooks `all_proxy`."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get("https") or proxies.get("all")
    return {"https": proxy} if proxy else {}


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: Any,
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_url(newurl, found_in=f"{without_query(req.full_url)} redirects to ")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_url(url: str, found_in: str = "") -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(f"{found_in}{url} is no URL ({error})") from error
    if parts.scheme != "https":
        raise InvalidInputError(
            f"{found_in}{without_query(url)}: expected https, not {parts.scheme}; give the path "
            "of a local file as it is"
        )
    if not host or parts.username is not None:
        raise InvalidInputError(
            f"{found_in}{parts.scheme}://…: expected a URL like https://host/path, with no user "
            "name in it"
        )


def _read(response: Any, url: str, max_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    # read1 returns after one wait, so that the deadline is looked at; read would gather a chunk.
    while chunk := response.read1(CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise InvalidInputError(
                f"{without_query(url)} has more than {max_bytes / 1e6:g} MB; is it the right file?"
            )
        if time.monotonic() > deadline:
            raise InvalidInputError(
                f"{without_query(url)} took more than {TOTAL_TIMEOUT_S:g} s; download the file by "
                "hand and give its path"
            )
    announced = response.headers.get("Content-Length")
    if announced is not None and announced != str(len(content)):
        raise InvalidInputError(
            f"{without_query(url)} broke off after {len(content)} of {announced} bytes; try again"
        )
    return bytes(content)
