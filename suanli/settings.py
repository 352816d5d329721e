"""Where the control plane is and with which key: from arguments, environment, profile file or local deployment."""

from __future__ import annotations

import ipaddress
import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from suanli.errors import ConfigurationError
from suanli.sign_in.logins import Login, find_login

ADDRESS_VARIABLE: Final = "SUANLI_ADDRESS"
KEY_VARIABLE: Final = "SUANLI_API_KEY"
CA_VARIABLE: Final = "SUANLI_CA"
STATE_DIR_VARIABLE: Final = "SUANLI_STATE_DIR"
PROFILE_VARIABLE: Final = "SUANLI_PROFILE"
_MAX_FILE_BYTES: Final = 1 << 20
_PROFILE_KEYS: Final = ("address", "api_key", "ca")


@dataclass(frozen=True)
class _Source:
    """One place that says where the control plane is. ``name`` is for people."""

    name: str
    address: str = ""
    api_key: str = field(default="", repr=False)
    ca: str = ""
    institution: str = ""


@dataclass(frozen=True)
class Settings:
    """A control plane's address, the caller's key, and the certificates to trust.

    ``ca`` is a PEM file; empty: plaintext to this machine itself, and the system's authorities for all others.
    ``origin`` says for people where the address was found. ``institution`` is for jobs that name none: the admin's
    key of ``suanli up`` belongs to no institution, which a job must. ``login`` has tokens of ``suanli login``, where there is no
    ``api_key``.
    """

    address: str
    api_key: str = field(default="", repr=False)
    ca: str = ""
    state_dir: Path = Path()
    origin: str = "argument"
    institution: str = ""
    login: Login | None = field(default=None, repr=False)

    @classmethod
    def resolve(
        cls,
        address: str | None = None,
        api_key: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        ca: str | os.PathLike[str] | None = None,
        profile: str | None = None,
    ) -> Settings:
        """Find what is not given. Raises ``ConfigurationError`` when there is no address.

        An argument goes before the environment (SUANLI_ADDRESS, SUANLI_API_KEY, SUANLI_CA), then come the profile file
        (``config.toml``, table SUANLI_PROFILE or "default") and what ``suanli up`` runs in the state folder; a state
        folder that is named goes before the profile file, and the newest ``suanli login`` comes last. A key found in a file is only
        used for that file's address. What ``suanli login`` got for the address goes before a key in a file that was not named.
        """
        environment = os.environ
        named = state_dir or environment.get(STATE_DIR_VARIABLE)
        folder = Path(named or Path.home() / ".local" / "state" / "suanli").expanduser()
        address = address or environment.get(ADDRESS_VARIABLE) or ""
        api_key = api_key or environment.get(KEY_VARIABLE) or ""
        ca_file = str(ca or environment.get(CA_VARIABLE) or "")
        origin = "argument or environment"
        institution = ""
        wanted = profile or environment.get(PROFILE_VARIABLE)
        in_login = not api_key
        if not (address and api_key and ca_file):
            found = _sources(folder, wanted, local_first=bool(named) and not wanted, strict=not address)
            chosen = next((one for one in found if one.address and address in ("", one.address)), None)
            if chosen is not None:
                origin = origin if address else chosen.name
                institution = "" if api_key else chosen.institution
                address, api_key, ca_file = chosen.address, api_key or chosen.api_key, ca_file or chosen.ca
                in_login = in_login and not (api_key and (wanted or named))
        login = find_login(logins_file(), address) if in_login else None
        if login is not None:
            origin = origin if address else "suanli login"
            address, api_key, ca_file, institution = login.address, login.api_key, ca_file or login.ca, ""
        if not address:
            raise ConfigurationError(
                "No control plane is known: give an address (SUANLI_ADDRESS), write one to "
                f"{profile_file()}, or start one on this machine with 'suanli up'.",
                reason="NO_ADDRESS",
                field="address",
            )
        _split(address)
        return cls(
            address, api_key, ca_file, folder, origin, institution, login if login and login.access_token else None
        )

    @property
    def loopback(self) -> bool:
        """Whether the address is this machine itself."""
        host, _ = _split(self.address)
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def profile_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The file with the profiles."""
    home = environment.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "suanli" / "config.toml"


def logins_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The file with what ``suanli login`` got."""
    return profile_file(environment).with_name("logins.json")


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or "/" in host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65_536:
        raise ConfigurationError(
            f"{address[:200]!r} is not an address; write HOST:PORT, as in 127.0.0.1:50051.",
            reason="BAD_ADDRESS",
            field="address",
        )
    return host, int(port)


def _sources(folder: Path, profile: str | None, *, local_first: bool, strict: bool) -> list[_Source]:
    def read_local() -> _Source | None:
        return _local(folder)

    def read_profile() -> _Source | None:
        return _profile(profile_file(), profile)

    found: list[_Source] = []
    for read in (read_local, read_profile) if local_first else (read_profile, read_local):
        try:
            source = read()
        except ConfigurationError:
            # Everything needed may stand elsewhere: a damaged file matters only when it would have been used.
            if strict and not any(one.address for one in found):
                raise
            continue
        if source is not None:
            found.append(source)
    return found


def _local(folder: Path) -> _Source | None:
    """What ``suanli up`` runs; None when it does not."""
    path = folder / "up.json"
    text = _read(path)
    if text is None:
        return None
    try:
        document = json.loads(text)
        source = {name: str(document.get(name) or "") for name in ("address", "key_file", "ca", "institution")}
    except (ValueError, AttributeError):
        raise ConfigurationError(f"{path} is damaged; 'suanli down' and 'suanli up' write it anew.") from None
    if not source["address"]:
        return None
    key = _read(folder / source["key_file"]) if source["key_file"] else None
    name = f"suanli up in {folder}"
    return _Source(name, source["address"], (key or "").strip(), source["ca"], source["institution"])


def _profile(path: Path, name: str | None) -> _Source | None:
    text = _read(path)
    try:
        document = tomllib.loads(text or "")
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not readable TOML: {error}", reason="BAD_PROFILE") from None
    table = document.get(name or "default")
    if table is None:
        if name:
            known = ", ".join(sorted(document)) or "none"
            raise ConfigurationError(f"{path} has no profile {name!r}; there are: {known}.", reason="NO_PROFILE")
        return None
    where = f"{path}, profile {name or 'default'}"
    values: dict[str, Any] = dict(table) if isinstance(table, dict) else {"": table}
    for key, value in values.items():
        if key not in _PROFILE_KEYS or not isinstance(value, str):
            raise ConfigurationError(
                f"{where}: {key!r} is not understood; there are {', '.join(_PROFILE_KEYS)}, each a text.",
                reason="BAD_PROFILE",
            )
    if values.get("api_key") and path.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"{path} holds a key and can be read by others; run: chmod 600 {path}", reason="PROFILE_NOT_PRIVATE"
        )
    return _Source(where, values.get("address", ""), values.get("api_key", ""), values.get("ca", ""))


def _read(path: Path) -> str | None:
    """A small text file; None when there is none."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE_BYTES).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
