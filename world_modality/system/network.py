"""The network: a small file from an https URL, and the proxies between this process and a host.

`HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` name a proxy, `NO_PROXY` the hosts that need none. No
message tells a proxy's or a URL's user name and password.
"""

import importlib.util
import os
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from world_modality.system.errors import InvalidInputError

# For connecting, and for every single wait after that.
WAIT_TIMEOUT_S = 10.0
# For the whole download, against a server that sends a byte now and then.
TOTAL_TIMEOUT_S = 60.0
MAX_REDIRECTS = 10
# What each client needs to speak SOCKS.
SOCKS_MODULES = {"httpx": "socksio", "requests": "socks"}


def is_url(location: str) -> bool:
    """Say whether a location is meant as a URL, whatever its protocol."""
    return "://" in location


def without_query(url: str) -> str:
    """Return a URL as it may be recorded: queries and fragments can hold access tokens."""
    return url.split("?")[0].split("#")[0]


def without_credentials(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it."""
    return re.sub(r"(?<=//)\S*@", "", text)


def download_https(url: str, *, max_bytes: int) -> bytes:
    """Fetch a file.

    Args:
        url: https only, without a user name or password; redirects stay on https, too.
        max_bytes: what is read at most, whatever size the server announces.

    Raises:
        InvalidInputError: another protocol, a host that does not answer, an HTTP error, a download
            that takes too long, is too large, or is cut short, or a proxy that cannot be used.
    """
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    found_in = ""
    for _ in range(MAX_REDIRECTS):
        _check_url(url, found_in)
        answer = _fetch(url, max_bytes, deadline)
        if isinstance(answer, bytes):
            return answer
        found_in, url = f"{without_query(url)} redirects to ", answer
    raise InvalidInputError(f"{found_in}{without_query(url)}, which is one redirect too many")


def _fetch(url: str, max_bytes: int, deadline: float) -> bytes | str:
    """Return the file, or the URL that the server redirects to."""
    import httpx  # takes a fifth of a second, and most stages download nothing

    require_proxy_support(url, "httpx")
    proxy = proxy_between(url)
    # By itself the client prepares every proxy of the environment, needed or not, and trusts other
    # certificates than the machine does.
    transport = httpx.HTTPTransport(
        verify=ssl.create_default_context(), proxy=proxy.url if proxy else None
    )
    headers = {"Accept-Encoding": "identity"}
    content = bytearray()
    try:
        with (
            httpx.Client(transport=transport, timeout=WAIT_TIMEOUT_S, headers=headers) as client,
            client.stream("GET", url) as response,
        ):
            if response.next_request is not None:
                return str(response.next_request.url)
            if not response.is_success:
                raise InvalidInputError(
                    f"{without_query(url)} answered {response.status_code} "
                    f"{response.reason_phrase}; download the file by hand and give its path"
                )
            for part in response.iter_raw():
                content += part
                if len(content) > max_bytes:
                    raise InvalidInputError(
                        f"{without_query(url)} has more than {max_bytes / 1e6:g} MB; is it the "
                        "right file?"
                    )
                if time.monotonic() > deadline:
                    raise InvalidInputError(
                        f"{without_query(url)} took more than {TOTAL_TIMEOUT_S:g} s; download the "
                        "file by hand and give its path"
                    )
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, OSError) as error:
        raise InvalidInputError(
            f"{without_query(url)} could not be read{through_proxy(url)} "
            f"({without_credentials(str(error))}); is it right, and is this machine connected? "
            "Otherwise download the file elsewhere and give its path"
        ) from error
    return bytes(content)


def _check_url(url: str, found_in: str) -> None:
    shown = found_in + without_credentials(without_query(url))
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(f"{shown} is no URL") from error
    if parts.scheme != "https":
        raise InvalidInputError(
            f"{shown}: expected https, not {parts.scheme}; give the path of a local file as it is"
        )
    if not host or parts.username is not None:
        raise InvalidInputError(
            f"{shown}: expected a URL like https://host/path, with no user name in it"
        )


@dataclass(frozen=True)
class Proxy:
    """One proxy.

    Attributes:
        variable: of the environment, that names it.
        url: with its password.
        shown: the same without user name and password.
    """

    variable: str
    url: str
    shown: str


def proxy_between(url: str) -> Proxy | None:
    """Return the proxy that requests to `url` go through, None where they go straight there.

    Raises:
        InvalidInputError: what the environment names is no address of a proxy.
    """
    target = urlsplit(url)
    proxies = getproxies()
    kind = next((kind for kind in (target.scheme, "all") if kind in proxies), None)
    if kind is None or proxy_bypass(target.hostname or ""):
        return None
    named = proxies[kind]
    names = (f"{kind}_proxy", f"{kind.upper()}_PROXY")
    variable = next((name for name in names if os.environ.get(name) == named), names[1])
    address = named if "://" in named else f"http://{named}"
    shown = without_credentials(address)
    try:
        parts = urlsplit(address)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.scheme.lower() not in ("http", "https", "socks5", "socks5h"):
        raise InvalidInputError(
            f"{variable} names the proxy {shown!r}; expected an address like http://host:3128 or "
            f"socks5://host:1080 (or put {target.hostname} into NO_PROXY)"
        )
    return Proxy(variable, address, shown)


def require_proxy_support(url: str, client: Literal["httpx", "requests"]) -> None:
    """Check that an HTTP client can go through the proxy that the environment names.

    Raises:
        InvalidInputError: it is none, or speaks SOCKS, which the client lacks a package for.
    """
    proxy = proxy_between(url)
    if proxy is None or not proxy.url.startswith("socks"):
        return
    if importlib.util.find_spec(SOCKS_MODULES[client]) is None:
        raise InvalidInputError(
            f"{proxy.variable} names the SOCKS proxy {proxy.shown} for {without_credentials(url)}; "
            f"which needs one more package: pip install '{client}[socks]' (or put "
            f"{urlsplit(url).hostname} into NO_PROXY)"
        )


def through_proxy(url: str) -> str:
    """Return what a failed connection's message says of the proxy; empty where there is none."""
    proxy = proxy_between(url)
    return f" through the proxy {proxy.shown} ({proxy.variable})" if proxy else ""


def hub_endpoint() -> str:
    """Return the hub's address."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def through_hub_proxy(model: str) -> str:
    """Return the same for a model that could not be loaded; empty where it is a local folder."""
    return "" if Path(model).exists() else through_proxy(hub_endpoint())
