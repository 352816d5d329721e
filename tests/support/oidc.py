"""An issuer whose keys and tokens a test makes as it likes: good ones, and such as no issuer would make."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

AUDIENCE = "suanli"


def private_key(name: str, algorithm: str = "RS256", bits: int = 2048) -> Any:
    """The key of this name: the same in every test of the process."""
    return _made(name, algorithm, bits)


@cache
def _made(name: str, algorithm: str, bits: int) -> Any:
    del name
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, bits)


def jwk(name: str, algorithm: str = "RS256", bits: int = 2048, **changes: Any) -> dict[str, Any]:
    """The public half as a JWK, whose id is its name."""
    kind: Any = {"ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}.get(algorithm, RSAAlgorithm)
    public = kind.to_jwk(private_key(name, algorithm, bits).public_key(), as_dict=True)
    return {**public, "kid": name, "use": "sig", "alg": algorithm, **changes}


def token(
    issuer: str,
    *,
    key: str = "k1",
    algorithm: str = "RS256",
    bits: int = 2048,
    header: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = (),
    **claims: Any,
) -> str:
    """A token as ``issuer`` would sign it now; ``claims`` change it."""
    now = int(time.time())
    body = {"iss": issuer, "aud": AUDIENCE, "sub": "ada", "iat": now, "exp": now + 600, **claims}
    body = {name: value for name, value in body.items() if name not in without}
    head = {"kid": key, "typ": "at+jwt", **(header or {})}
    return jwt.encode(body, private_key(key, algorithm, bits), algorithm=algorithm, headers=head)


Answer = Callable[[str, dict[str, str]], tuple[int, bytes]]
"""Of path and form fields: status and body."""


@contextmanager
def web(answer: Answer) -> Iterator[str]:
    """A web server on the loopback; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            status, body = answer(self.path, {name: values[0] for name, values in parse_qs(text).items()})
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def issuing(keys: list[dict[str, Any]]) -> Iterator[str]:
    """An issuer that serves these keys, which a test may exchange; gives its URL."""

    def answer(path: str, fields: dict[str, str]) -> tuple[int, bytes]:
        del fields
        found = {
            "/.well-known/openid-configuration": {"issuer": url, "jwks_uri": f"{url}/keys"},
            "/keys": {"keys": keys},
        }.get(path)
        return (200, json.dumps(found).encode()) if found else (404, b"{}")

    with web(answer) as url:
        yield url
