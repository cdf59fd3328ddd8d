"""Downloads from a real https server, and the proxies between: who uses one, and what it tells."""

import http.server
import threading
import time

import pytest

from coc_vla.authors.backends import AuthorFlags
from coc_vla.authors.openai_vlm import OpenAiVlm
from tests.fixtures.servers import https_server
from world_modality.encode.text_model_files import load_text_model, locate_text_model
from world_modality.system import network
from world_modality.system.errors import InvalidInputError, UserError
from world_modality.system.network import download_https, is_url, proxy_between, without_query

CONTENT = b'{"task_index": 0, "task": "push"}\n'
SERVER = "http://server.invalid:8000/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with https_server(tmp_path_factory.mktemp("certificate"), CONTENT) as served:
        yield served


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    find_spec = network.importlib.util.find_spec
    socks = ("socks", "socksio")
    monkeypatch.setattr(
        network.importlib.util, "find_spec", lambda name: None if name in socks else find_spec(name)
    )


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(server[1]))
    return server[0]


@pytest.fixture
def refusing_proxy():
    """A proxy that finds no server and says so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502, "no such host")

        do_CONNECT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refused(url="https://host.invalid/tasks.jsonl", message=None, max_bytes=10_000):
    """Return what a download says of its failure."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        download_https(url, max_bytes=max_bytes)
    return str(caught.value)


def asked(url=SERVER):
    """Return what a labelling run says of its server."""
    flags = AuthorFlags(backend="openai", base_url=url, timeout_s=5.0, max_request_retries=0)
    with pytest.raises(UserError) as caught:
        OpenAiVlm(flags)
    return str(caught.value)


def loaded_model():
    """Return what a text model of the hub says of its failure."""
    with pytest.raises(InvalidInputError) as caught:
        load_text_model(locate_text_model("lab/no-such-model"))
    return str(caught.value)


def test_a_file_arrives_as_it_is_through_redirects_too(address):
    assert download_https(f"{address}/tasks.jsonl", max_bytes=len(CONTENT)) == CONTENT
    redirected = f"{address}/to/{address}/tasks.jsonl"
    assert download_https(redirected, max_bytes=10_000) == CONTENT


@pytest.mark.parametrize(
    "url",
    [
        *("http://localhost/tasks.jsonl", "file:///etc/hostname", "ftp://localhost/a"),
        *("https://", "https:///etc/hostname", "https://user:word@localhost/a"),
        *("https://localhost:99999/a", "https://user:word@[half/a", "HTTP://localhost/a"),
    ],
)
def test_other_than_https_is_refused_before_anything_is_opened(url, monkeypatch):
    monkeypatch.setattr(network, "_fetch", None)
    assert "word@" not in refused(url, "expected https|expected a URL|is no URL")


@pytest.mark.parametrize(
    "target", ["http://localhost/x", "file:///etc/hostname", "https://me:word@localhost/x"]
)
def test_a_redirect_away_from_https_is_refused(address, target):
    told = refused(f"{address}/to/{target}", "redirects to .*expected")
    assert "word@" not in told.split("redirects to")[1]


def test_redirects_in_a_circle_end(address, monkeypatch):
    monkeypatch.setattr(network, "_fetch", lambda url, *_: url)
    refused(f"{address}/circle", "one redirect too many")


def test_the_size_is_bounded_whatever_the_server_announces(address):
    refused(f"{address}/endless", "more than 0.01 MB")
    refused(f"{address}/tasks.jsonl", "more than", max_bytes=len(CONTENT) - 1)
    # The limit leaves room for all of it.
    assert len(download_https(f"{address}/endless", max_bytes=100_000)) == 100_000


def test_a_server_that_stalls_does_not_hold_the_stage(address, monkeypatch):
    monkeypatch.setattr(network, "WAIT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(network, "TOTAL_TIMEOUT_S", 0.4)
    started = time.monotonic()
    refused(f"{address}/silent", "timed out")
    refused(f"{address}/drip", "took more than 0.4 s")
    assert time.monotonic() - started < 2.5


def test_what_fails_is_named(address, monkeypatch):
    assert "secret" not in refused(f"{address}/missing?token=secret", "answered 404")
    refused(f"{address}/cut", f"received {len(CONTENT)} bytes, expected {len(CONTENT) + 5}")
    refused("https://localhost:9/tasks.jsonl", "Connection refused")
    refused(f"https://{'a' * 70}.invalid/tasks.jsonl", "could not be read")
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(f"{address}/tasks.jsonl", "(?i)certificate")


def test_a_location_is_recorded_without_its_query_and_a_path_is_no_url():
    assert without_query("https://a/b?c=d#e") == "https://a/b"
    assert not is_url("meta/tasks.jsonl")
    assert not is_url("/data/https:/tasks.jsonl")
    assert is_url("http://host/tasks.jsonl")


@pytest.mark.parametrize("tried", [asked, refused])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_socks_proxy_is_told_in_a_line_with_what_it_needs(monkeypatch, tried, scheme):
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:hush@127.0.0.1:9")
    told = tried()
    assert f"ALL_PROXY names the SOCKS proxy {scheme}://127.0.0.1:9 for http" in told
    assert "pip install 'httpx[socks]'" in told
    assert "hush" not in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("variable", "tried"),
    [
        *(("HTTP_PROXY", asked), ("all_proxy", asked)),
        *(("HTTPS_PROXY", refused), ("ALL_PROXY", refused), ("HTTPS_PROXY", loaded_model)),
    ],
)
def test_a_failed_connection_names_the_proxy_between(monkeypatch, variable, tried):
    monkeypatch.setenv(variable, "http://me:hush@127.0.0.1:9")
    told = tried()
    assert f"through the proxy http://127.0.0.1:9 ({variable})" in told
    assert "hush" not in told


@pytest.mark.parametrize(("variable", "tried"), [("HTTP_PROXY", asked), ("HTTPS_PROXY", refused)])
def test_an_answer_that_the_proxy_gives_instead_of_the_server_names_it(
    monkeypatch, refusing_proxy, variable, tried
):
    monkeypatch.setenv(variable, f"me:hush@{refusing_proxy}")
    told = tried()
    assert "502" in told
    assert f"through the proxy http://{refusing_proxy} ({variable})" in told
    assert "hush" not in told


def test_a_host_in_no_proxy_is_asked_directly(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "server.invalid,host.invalid")
    assert "proxy" not in asked()
    assert "proxy" not in refused()


@pytest.mark.parametrize(
    "named",
    ["ftp://me:hush@p:21", "http://me:hush@p:port", "http://", "socks4://p:1", "me:hu/sh@p"],
)
def test_what_is_no_address_of_a_proxy_is_refused_without_its_password(monkeypatch, named):
    monkeypatch.setenv("HTTP_PROXY", named)
    told = asked()
    assert "HTTP_PROXY names the proxy" in told
    assert "expected an address like http://host:3128" in told
    assert "hush" not in told
    assert "sh@" not in told


def test_the_proxy_of_the_protocol_comes_before_the_one_for_all(monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "http://all:1")
    monkeypatch.setenv("HTTPS_PROXY", "secure:2")
    assert proxy_between("https://host/").shown == "http://secure:2"
    assert proxy_between("http://host/").shown == "http://all:1"
