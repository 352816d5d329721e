"""A very small HTTP server for probes and Prometheus: /metrics, /healthz, /readyz."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)
REQUEST_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 16 * 1024
MAX_CONNECTIONS = 64
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Page = Callable[[], Awaitable[tuple[int, bytes]]]
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 500: "Internal Server Error"}


class HttpServer:
    """Serves GET and HEAD of fixed paths; each page gives its status and text. Every answer closes the connection."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port."""
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEADER_BYTES)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await self._answer(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            log.debug("an HTTP connection ended before its answer")
        finally:
            self._connections -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            head = b""
        method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        status, body = await self._page(method, rest.partition(" ")[0].partition("?")[0])
        reason = _REASONS.get(status, "Service Unavailable")
        writer.write(
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(body)
        await writer.drain()

    async def _page(self, method: str, path: str) -> tuple[int, bytes]:
        if not path.startswith("/"):
            return 400, b"not an HTTP request\n"
        if method not in ("GET", "HEAD"):
            return 405, b"GET only\n"
        page = self._pages.get(path)
        if page is None:
            return 404, f"there are {' '.join(sorted(self._pages))}\n".encode()
        try:
            return await page()
        except Exception:
            log.exception("the page %s failed", path)
            return 500, b"failed; the server's log says why\n"
