"""Documents of issuers come within bounds, from the host that was asked."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trustme

from scheduler.identity.fetching import MAX_BYTES, FetchError, fetch_json
from tests.support.oidc import web


def test_a_document_is_read() -> None:
    with web(lambda path, fields: (200, b'{"a": 1}')) as url:
        assert fetch_json(f"{url}/x?y=z") == {"a": 1}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{" + b" " * MAX_BYTES + b"}", "larger than"),
        (b"[" * 100_000, "Error"),
        (b"[]", "not a JSON object"),
        (b"<html>", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
    ],
    ids=["huge", "deep", "list", "page", "bytes"],
)
def test_what_is_no_document_is_refused(body: bytes, words: str) -> None:
    with web(lambda path, fields: (200, body)) as url, pytest.raises(FetchError, match=words):
        fetch_json(url)


@pytest.mark.parametrize("status", [301, 302, 307, 404, 500])
def test_redirects_and_failures_are_not_followed(status: int) -> None:
    with web(lambda path, fields: (status, b"{}")) as url, pytest.raises(FetchError, match=str(status)):
        fetch_json(url)


@pytest.mark.parametrize("url", ["http://id.example/keys", "file:///etc/passwd", "https:///x", "ftp://127.0.0.1/"])
def test_plain_text_is_for_this_machine_only(url: str) -> None:
    with pytest.raises(FetchError, match="ValueError"):
        fetch_json(url)


@contextmanager
def dripping() -> Iterator[str]:
    """A server that gives a byte of its header at a time, each well within a socket's timeout."""
    done = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not done.wait(0.02):
                    connection.sendall(b"x")
            except OSError:
                pass

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            done.set()
            thread.join()


def test_a_slow_answer_ends_however_it_is_dripped() -> None:
    begin = time.monotonic()
    with dripping() as url, pytest.raises(FetchError):
        fetch_json(url, timeout_s=0.3)
    assert time.monotonic() - begin < 5


def test_a_certificate_of_a_stranger_is_refused(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.issue_cert("127.0.0.1").configure_cert(context)
    for name, authority in (("ours", ours), ("theirs", theirs)):
        authority.cert_pem.write_to_path(tmp_path / name)

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(4096)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            except OSError:
                connection.close()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(FetchError, match="certificate"):
            fetch_json(url, ca=tmp_path / "theirs")
        assert fetch_json(url, ca=tmp_path / "ours") == {}
        thread.join()
