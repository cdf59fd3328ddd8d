"""Downloads from a real https server on this machine, which is bounded in all it can do."""

import time

import pytest

from tests.fixtures.servers import https_server
from world_modality.system import https_download
from world_modality.system.errors import InvalidInputError
from world_modality.system.https_download import download_https, is_url, without_query

CONTENT = b'{"task_index": 0, "task": "push"}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with https_server(tmp_path_factory.mktemp("certificate"), CONTENT) as served:
        yield served


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(server[1]))
    monkeypatch.setenv("no_proxy", "localhost")
    return server[0]


def refused(url, message, max_bytes=10_000):
    with pytest.raises(InvalidInputError, match=message) as caught:
        download_https(url, max_bytes=max_bytes)
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
        *("https://localhost:99999/a", "https://[half/a", "HTTP://localhost/a"),
    ],
)
def test_other_than_https_is_refused_before_anything_is_opened(url, monkeypatch):
    monkeypatch.setattr(https_download, "https_opener", None)
    assert "word@" not in refused(url, "expected https|expected a URL|is no URL")


@pytest.mark.parametrize("target", ["http://localhost/x", "file:///etc/hostname"])
def test_a_redirect_away_from_https_is_refused(address, target):
    refused(f"{address}/to/{target}", "redirect|302")


def test_the_size_is_bounded_whatever_the_server_announces(address):
    refused(f"{address}/endless", "more than 0.01 MB")
    refused(f"{address}/tasks.jsonl", "more than", max_bytes=len(CONTENT) - 1)
    # The limit leaves room for all of it.
    assert len(download_https(f"{address}/endless", max_bytes=100_000)) == 100_000


def test_a_server_that_stalls_does_not_hold_the_stage(address, monkeypatch):
    monkeypatch.setattr(https_download, "WAIT_TIMEOUT_S", 0.3)
    monkeypatch.setattr(https_download, "TOTAL_TIMEOUT_S", 0.4)
    started = time.monotonic()
    refused(f"{address}/silent", "timed out")
    refused(f"{address}/drip", "took more than 0.4 s")
    assert time.monotonic() - started < 2.5


def test_what_fails_is_named(address, server, monkeypatch):
    refused(f"{address}/missing", "answered 404")
    refused(f"{address}/cut", f"broke off after {len(CONTENT)} of {len(CONTENT) + 5} bytes")
    refused("https://localhost:9/tasks.jsonl", "Connection refused")
    refused(f"{address}/mäßig", "could not be read")
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(f"{address}/tasks.jsonl", "(?i)certificate")


def test_a_token_in_the_query_is_not_repeated(address):
    assert "secret" not in refused(f"{address}/missing?token=secret", "answered 404")
    assert without_query("https://a/b?c=d#e") == "https://a/b"


def test_a_path_is_no_url():
    assert not is_url("meta/tasks.jsonl")
    assert not is_url("/data/https:/tasks.jsonl")
    assert is_url("http://host/tasks.jsonl")
