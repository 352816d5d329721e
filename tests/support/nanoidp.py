"""A real OpenID provider on this machine: PyPI's nanoidp, with a person, a client for the command line and one for a program."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import yaml

from tests.support.platform import free_port

CLIENT, ROBOT, SECRET = "suanli-cli", "robot", "robot-secret"
DEADLINE_S = 60.0


class NanoIdp:
    """The provider at ``issuer``."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer

    def post(self, path: str, login: str = "", **fields: str) -> tuple[int, Any]:
        request = Request(f"{self.issuer}{path}", urlencode(fields).encode())
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urlopen(request, timeout=10) as response:
                status, text = response.status, response.read()
        except HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text[:1] == b"{" else text

    def confirm(self, user_code: str, user: str = "ada", password: str = "secret", action: str = "approve") -> None:
        """What a person does in the browser."""
        status, _ = self.post("/device", user_code=user_code, username=user, password=password, action=action)
        assert status == 200

    def robot_token(self) -> str:
        """The token of a program, by its client's credentials."""
        status, answer = self.post("/token", f"{ROBOT}:{SECRET}", grant_type="client_credentials")
        assert status == 200, answer
        return str(answer["access_token"])

    def rotate_keys(self) -> None:
        """Sign with a new key from now on; the old one is still in the set."""
        status, answer = self.post("/api/keys/rotate")
        assert status == 200, answer


@contextmanager
def running_nanoidp(folder: Path, **oauth: Any) -> Iterator[NanoIdp]:
    """Start it, and end it with the ``with``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    clients = [
        {"client_id": CLIENT, "token_endpoint_auth_method": "none"},
        {"client_id": ROBOT, "client_secret": SECRET},
    ]
    settings = {
        "config_version": 1,
        "server": {"host": "127.0.0.1", "port": port},
        "oauth": {"issuer": issuer, "audience": "suanli", "clients": clients, **oauth},
        "jwt": {"keys_dir": str(folder / "keys")},
        "device_flow": {"polling_interval": 1},
    }
    users = {name: {"password": "secret", "roles": ["researcher"], "tenant": "uni-a"} for name in ("ada", "eve")}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    (folder / "users.yaml").write_text(yaml.safe_dump({"config_version": 1, "users": users}))
    with (folder / "log").open("w") as log:
        argv = [sys.executable, "-m", "nanoidp", "--config", str(folder), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(argv, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                urlopen(f"{issuer}/.well-known/openid-configuration", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, "nanoidp does not answer"
                time.sleep(0.1)
        yield NanoIdp(issuer)
    finally:
        process.terminate()
        process.wait(30)
