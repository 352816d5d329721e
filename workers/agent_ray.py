"""The tokens of ray jobs' clusters: made from a secret that never leaves the agent's state folder, and kept nowhere."""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import os
import secrets
from pathlib import Path

from workers.executor import types as ex

SECRET_FILE = "ray_secret"  # noqa: S105
_BYTES = 32


class RayTokens:
    """Each attempt of a ray job has a token of its own: the same for all its ranks, and after a restart of the agent.

    It is put into a launch on its way out of the agent: neither the spool nor a log ever holds one.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, job_id: str, attempt: int) -> str:
        """64 hex digits: HMAC-SHA256 of the attempt's name."""
        return hmac.digest(self._secret, f"suanli ray job\0{job_id}\0{attempt}".encode(), "sha256").hex()

    def equip(self, launch: ex.Launch) -> ex.Launch:
        """The launch with its token, if it is of a ray job."""
        if launch.ray is None:
            return launch
        token = self.token(launch.job_id, launch.attempt)
        return dataclasses.replace(launch, ray=dataclasses.replace(launch.ray, token=token))


def load_tokens(state_dir: Path) -> RayTokens:
    """The tokens of this agent. The secret is made at the first start, readable by the agent's user only; raises OSError."""
    path = state_dir / SECRET_FILE
    state_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Whole or not at all: a second agent that starts beside this one must not find half of it.
        scratch = state_dir / f"{SECRET_FILE}.{os.getpid()}"
        scratch.unlink(missing_ok=True)
        fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
                file.flush()
                os.fsync(file.fileno())
            os.link(scratch, path)
        finally:
            scratch.unlink()
    secret = path.read_bytes()
    if len(secret) != _BYTES:
        raise OSError(f"{path} does not hold {_BYTES} bytes; delete it, and a new one is made")
    return RayTokens(secret)
