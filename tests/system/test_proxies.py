"""A proxy between: who goes through it, and how a failure names it without its password."""

import http.server
import threading

import pytest

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.openai_vlm import OpenAiVlm
from world_modality.encode.text_model_files import load_text_model, locate_text_model
from world_modality.system import https_download, proxies
from world_modality.system.errors import InvalidInputError, UserError
from world_modality.system.https_download import download_https
from world_modality.system.proxies import proxy_between

SERVER = "http://server.invalid:8000/v1"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    find_spec = proxies.importlib.util.find_spec
    socks = ("socks", "socksio")
    monkeypatch.setattr(
        proxies.importlib.util, "find_spec", lambda name: None if name in socks else find_spec(name)
    )


@pytest.fixture
def refusing_proxy():
    """A proxy that finds no server and says so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502, "no such host")

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def asked(url):
    """Return what a labelling run says of its server."""
    flags = AuthorFlags(backend="openai", base_url=url, timeout_s=5.0, max_request_retries=0)
    with pytest.raises(UserError) as caught:
        OpenAiVlm(flags)
    return str(caught.value)


def downloaded(url="https://host.invalid/tasks.jsonl"):
    """Return what a download says of its failure."""
    with pytest.raises(InvalidInputError) as caught:
        download_https(url, max_bytes=9)
    return str(caught.value)


def loaded_model():
    """Return what a text model of the hub says of its failure."""
    with pytest.raises(InvalidInputError) as caught:
        load_text_model(locate_text_model("lab/no-such-model"))
    return str(caught.value)


@pytest.mark.parametrize("tried", [lambda: asked(SERVER), downloaded])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_told_in_a_line_with_what_it_needs(monkeypatch, tried, scheme):
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:hush@127.0.0.1:9")
    told = tried()
    assert f"ALL_PROXY names the SOCKS proxy {scheme}://127.0.0.1:9 for http" in told
    assert "pip install 'httpx[socks]'" in told or "HTTP proxies only" in told
    assert "hush" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("variable", "tried"),
    [
        ("HTTP_PROXY", lambda: asked(SERVER)),
        ("all_proxy", lambda: asked(SERVER)),
        ("HTTPS_PROXY", downloaded),
        ("ALL_PROXY", downloaded),
        ("HTTPS_PROXY", loaded_model),
    ],
)
def test_a_failed_connection_names_the_proxy_between(monkeypatch, variable, tried):
    monkeypatch.setenv(variable, "http://me:hush@127.0.0.1:9")
    told = tried()
    assert f"through the proxy http://127.0.0.1:9 ({variable})" in told
    assert "hush" not in told


def test_an_answer_that_the_proxy_gives_in_the_servers_place_names_it(monkeypatch, refusing_proxy):
    monkeypatch.setenv("HTTP_PROXY", f"me:hush@{refusing_proxy}")
    told = asked(SERVER)
    assert "status 502" in told
    assert f"through the proxy http://{refusing_proxy} (HTTP_PROXY)" in told
    assert "hush" not in told


def test_a_host_in_no_proxy_is_asked_directly(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "server.invalid,host.invalid")
    assert "proxy" not in asked(SERVER)
    assert "proxy" not in downloaded()


@pytest.mark.parametrize(
    "named",
    ["ftp://me:hush@p:21", "http://me:hush@p:port", "http://", "socks4://p:1", "me:hu/sh@p"],
)
def test_what_is_no_address_of_a_proxy_is_refused_without_its_password(monkeypatch, named):
    monkeypatch.setenv("HTTP_PROXY", named)
    told = asked(SERVER)
    assert "HTTP_PROXY names the proxy" in told
    assert "expected an address like http://host:3128" in told
    assert "hush" not in told
    assert "sh@" not in told


def test_the_proxy_of_the_protocol_comes_before_the_one_for_all(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "secure:2")
    assert proxy_between("https://host/").shown == "http://secure:2"
    assert proxy_between("http://host/").shown == "http://all:1"
    assert https_download.https_opener().handlers  # builds with either
