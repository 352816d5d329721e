"""Documents of an issuer, fetched within bounds of size and time. Blocks: call it in a thread."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scheduler.identity.issuers import require_secure

MAX_BYTES = 256 * 1024
TIMEOUT_S = 5.0


class FetchError(Exception):
    """Nothing usable came; the text says why."""


def fetch_json(url: str, *, timeout_s: float = TIMEOUT_S, ca: Path | None = None) -> dict[str, Any]:
    """The JSON object at a URL.

    Follows no redirect and uses no proxy: the host that is configured answers, or nobody. ``timeout_s`` is for all of it, however
    slowly the bytes come. Raises ``FetchError``.
    """
    try:
        require_secure("url", url)
        text = _get(url, timeout_s, ca)
        document = json.loads(text)
    except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
        raise FetchError(f"{url}: {type(error).__name__}: {error}") from error
    if not isinstance(document, dict):
        raise FetchError(f"{url}: it is not a JSON object")
    return document


def _get(url: str, timeout_s: float, ca: Path | None) -> bytes:
    parts = urlsplit(url)
    host = parts.hostname or ""
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=ca)
        connection = http.client.HTTPSConnection(host, parts.port, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
    late = threading.Event()

    def hang_up() -> None:
        late.set()
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    # A socket's timeout begins anew with every byte.
    watchdog = threading.Timer(timeout_s, hang_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        query = f"?{parts.query}" if parts.query else ""
        connection.request("GET", f"{parts.path or '/'}{query}", headers={"Accept": "application/json"})
        response = connection.getresponse()
        text = response.read(MAX_BYTES + 1)
        if response.status != http.client.OK:
            raise FetchError(f"{url}: it answers with status {response.status}")
        if len(text) > MAX_BYTES:
            raise FetchError(f"{url}: it is larger than {MAX_BYTES:,} bytes")
        if late.is_set():
            raise FetchError(f"{url}: it takes longer than {timeout_s:g} s")
        return text
    finally:
        watchdog.cancel()
        connection.close()
