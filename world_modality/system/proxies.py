"""The proxy that the environment puts between this process and an address.

Its user name and password are told nowhere. `HTTPS_PROXY`, `HTTP_PROXY` and `ALL_PROXY` name one,
`NO_PROXY` the hosts that need none.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from world_modality.system.errors import InvalidInputError

# What each client needs to speak SOCKS; urllib does not at all.
SOCKS_MODULES = {"httpx": "socksio", "requests": "socks"}


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

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS instead of HTTP."""
        return self.url.startswith("socks")


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


def require_proxy_support(url: str, client: Literal["httpx", "requests", "urllib"]) -> None:
    """Check that an HTTP client can go through the proxy that the environment names.

    Raises:
        InvalidInputError: it is none, or speaks SOCKS, which the client lacks a package for.
    """
    proxy = proxy_between(url)
    if proxy is None or not proxy.is_socks:
        return
    module = SOCKS_MODULES.get(client)
    if module is not None and importlib.util.find_spec(module) is not None:
        return
    cure = "this download goes through HTTP proxies only; name one in HTTPS_PROXY"
    if module is not None:
        cure = f"which needs one more package: pip install '{client}[socks]'"
    raise InvalidInputError(
        f"{proxy.variable} names the SOCKS proxy {proxy.shown} for {without_credentials(url)}; "
        f"{cure} (or put {urlsplit(url).hostname} into NO_PROXY)"
    )


def by_way_of(url: str) -> str:
    """Return what a failed connection's message says of the proxy; empty where there is none."""
    proxy = proxy_between(url)
    return f" through the proxy {proxy.shown} ({proxy.variable})" if proxy else ""


def hub_endpoint() -> str:
    """Return the hub's address."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def by_way_of_hub(model: str) -> str:
    """Return the same for a model that could not be loaded; empty where it is a local folder."""
    return "" if Path(model).exists() else by_way_of(hub_endpoint())


def without_credentials(text: str) -> str:
    """Return a text without the user names and passwords of the URLs in it."""
    return re.sub(r"(?<=//)\S*@", "", text)
