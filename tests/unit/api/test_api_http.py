"""The small HTTP server."""

import asyncio

import pytest

from scheduler.api.http import HttpServer


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    ("request_", "status", "body"),
    [
        (b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n", b"200 OK", b"hello"),
        (b"GET /x?a=b HTTP/1.0\r\n\r\n", b"200 OK", b"hello"),
        (b"HEAD /x HTTP/1.1\r\n\r\n", b"200 OK", b""),
        (b"POST /x HTTP/1.1\r\n\r\n", b"405 ", b"GET only\n"),
        (b"GET /y HTTP/1.1\r\n\r\n", b"404 ", b"there are /bad /x\n"),
        (b"GET /bad HTTP/1.1\r\n\r\n", b"500 ", b"failed; the server's log says why\n"),
        (b"\x16\x03\x01 nonsense\r\n\r\n", b"400 ", b"not an HTTP request\n"),
        (b"GET /x HTTP/1.1\r\nA: " + b"a" * 20_000 + b"\r\n\r\n", b"400 ", b"not an HTTP request\n"),
    ],
)
async def test_answers(request_: bytes, status: bytes, body: bytes) -> None:
    async def hello() -> tuple[int, bytes]:
        return 200, b"hello"

    async def bad() -> tuple[int, bytes]:
        raise RuntimeError("no")

    server = HttpServer({"/x": hello, "/bad": bad})
    port = await server.start("127.0.0.1", 0)
    try:
        answer = await ask(port, request_)
        head, _, found = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        assert found == body
    finally:
        await server.stop()


async def test_a_silent_caller_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.api.http.REQUEST_TIMEOUT_S", 0.05)
    server = HttpServer({})
    port = await server.start("127.0.0.1", 0)
    assert await ask(port, b"GET") == b""
    await server.stop()
