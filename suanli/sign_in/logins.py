"""The file with what ``suanli login`` got: a key or tokens for each control plane. Only its owner may read it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from suanli.errors import ConfigurationError

_MAX_FILE_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Login:
    """What to show to the control plane at ``address``: ``api_key``, or else ``access_token`` of ``issuer``.

    ``expire_ms`` is when the access token ends, 0 when its issuer does not say. ``refresh_token`` is empty where the issuer gave none.
    """

    address: str
    ca: str = ""
    api_key: str = field(default="", repr=False)
    issuer: str = ""
    client_id: str = ""
    access_token: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    expire_ms: int = 0


def find_login(path: Path, address: str = "") -> Login | None:
    """The login at an address, or (empty) the newest. Raises ``ConfigurationError`` for a file that is damaged or open to others."""
    return next((one for one in reversed(_read(path)) if address in ("", one.address)), None)


def keep_login(path: Path, login: Login) -> None:
    """Write a login, in the place of an earlier one at the same address."""
    with _locked(path):
        _write(path, [*(one for one in _read(path) if one.address != login.address), login])


def replace_login(path: Path, login: Login) -> None:
    """Write what a login has become, in its place; nothing when it is there no more."""
    with _locked(path):
        _write(path, [login if one.address == login.address else one for one in _read(path)])


def forget_login(path: Path, address: str = "") -> Login | None:
    """Delete the login at an address, or (empty) the newest. Gives what was deleted."""
    with _locked(path):
        found = find_login(path, address)
        if found is not None:
            _write(path, [one for one in _read(path) if one != found])
        return found


@contextlib.contextmanager
def renewing(path: Path) -> Iterator[None]:
    """Let one process at a time renew tokens; the file may be read and written within."""
    with _lock(path, "renew"):
        yield


def _read(path: Path) -> list[Login]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigurationError(
                    f"{path} holds keys and can be read by others; run: chmod 600 {path}", reason="LOGINS_NOT_PRIVATE"
                )
            text = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        return [_login(entry) for entry in json.loads(text)["logins"]]
    except (ValueError, TypeError, KeyError):
        raise ConfigurationError(f"{path} is damaged; delete it and run 'suanli login' again.") from None


def _login(entry: Any) -> Login:
    login = Login(**entry)
    for one in dataclasses.fields(Login):
        if type(getattr(login, one.name)) is not type(one.default if one.name != "address" else ""):
            raise ValueError(one.name)
    return login


def _write(path: Path, logins: list[Login]) -> None:
    """Replace the file, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"logins": [dataclasses.asdict(one) for one in logins]}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


@contextlib.contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.{name}"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _locked(path: Path) -> contextlib.AbstractContextManager[None]:
    """Keep other processes out between reading and writing."""
    return _lock(path, "lock")
