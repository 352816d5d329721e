"""The server's configuration file."""

from __future__ import annotations

import difflib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from scheduler.api.blobs import MAX_BLOB_BYTES
from scheduler.api.tls import ConfigurationError, Tls
from scheduler.governance.limits import Limits
from scheduler.identity.issuers import NO_OIDC, Oidc

DATABASE_VARIABLE = "SUANLI_DATABASE_URL"
MAX_CONFIG_BYTES = 256 * 1024
_SHIPPED_ALGORITHMS = Path(__file__).resolve().parent.parent / "algorithms"


@dataclass(frozen=True)
class Config:
    """All settings, with their defaults. Relative paths are relative to the configuration file."""

    state_dir: Path
    """Where the server keeps what it needs on disk."""
    listen: str = "127.0.0.1:50051"
    """HOST:PORT of gRPC; port 0 takes a free one. Other hosts than the loopback need ``tls``."""
    agents_listen: str = ""
    """HOST:PORT of a second gRPC address, for agents: callers must show a certificate of ``tls.agent_ca_cert``. Empty: none."""
    metrics_listen: str = "127.0.0.1:9464"
    """HOST:PORT of /metrics, /healthz and /readyz; empty: none."""
    database_url: str = ""
    """sqlite:////path or postgresql://…; empty: the variable SUANLI_DATABASE_URL, else a file in ``state_dir``."""
    tls: Tls | None = None
    """The keys below; none: plaintext, on the loopback only."""
    artifacts_url: str = ""
    """A folder or an fsspec URL such as s3://bucket/prefix; empty: a folder in ``state_dir``."""
    algorithms_dir: Path = field(default=_SHIPPED_ALGORITHMS)
    """The catalogue: a folder with one folder for each algorithm."""
    heartbeat_interval_ms: int = 5_000
    """How often an agent reports. 100 to 60,000."""
    lease_ttl_ms: int = 30_000
    """How long an agent may go on unheard. At least three heartbeats, at most 600,000."""
    max_blob_bytes: int = MAX_BLOB_BYTES
    """The largest file that may be uploaded."""
    shutdown_grace_ms: int = 10_000
    """How long calls under way may take to end after SIGTERM. 0 to 600,000."""
    bootstrap_admin_key_file: Path | None = None
    """When no operator's key exists: make the user "admin", whose key is the one in this file; where there is no such file, a
    new key is written to it."""
    ready_file: Path | None = None
    """Written when this process serves: JSON with the bound addresses."""
    verify_ledger_hours: int = 24
    """How often the leader verifies the whole ledger and the audit log by itself, slowly, in hours; 0: never. The first time within an
    hour after it began."""
    audit_key_file: Path | None = None
    """The Ed25519 key that signs heads of the audit log, in PEM form, and after it the public keys of earlier ones that still count.
    None: ``audit-key.pem`` in ``state_dir``, made when it is missing. Processes that share a database need the same key."""
    limits: Limits = field(default_factory=Limits)
    """The keys below: how much of the server one caller may take up."""
    oidc: Oidc = NO_OIDC
    """Whose tokens are taken beside API keys: the keys below; none: nobody's."""
    collect_artifacts_hours: int = 24
    """How often blobs that nobody holds are removed from the artifact store, in hours; 0: never. The first time an hour after the start."""
    artifacts_grace_hours: int = 24
    """A blob is removed so many hours after it was stored last, at the earliest. 2 to 8,760."""
    results_retention_days: int = 0
    """Results, checkpoints and logs of jobs that have ended are deleted so many days after they were stored; 0: never."""
    uploads_retention_days: int = 0
    """Uploads are deleted so many days after they were first sent, unless unfinished jobs need them; 0: never."""
    log_level: str = "info"
    """debug, info, warning or error."""

    def __post_init__(self) -> None:
        split_address(self.listen, "listen")
        if self.agents_listen:
            split_address(self.agents_listen, "agents_listen")
            if self.tls is None or self.tls.agent_ca_cert is None:
                raise ConfigurationError(
                    "agents_listen: give tls.agent_ca_cert, which signs the certificates of agents."
                )
        if self.metrics_listen:
            split_address(self.metrics_listen, "metrics_listen")
        _bounded("collect_artifacts_hours", self.collect_artifacts_hours, 0, 8_760)
        # Not less than clocks may differ, and than a blob goes on being taken for young (an hour).
        _bounded("artifacts_grace_hours", self.artifacts_grace_hours, 2, 8_760)
        _bounded("results_retention_days", self.results_retention_days, 0, 36_500)
        _bounded("uploads_retention_days", self.uploads_retention_days, 0, 36_500)
        _bounded("heartbeat_interval_ms", self.heartbeat_interval_ms, 100, 60_000)
        _bounded("verify_ledger_hours", self.verify_ledger_hours, 0, 8_760)
        _bounded("lease_ttl_ms", self.lease_ttl_ms, 3 * self.heartbeat_interval_ms, 600_000)
        _bounded("max_blob_bytes", self.max_blob_bytes, 1, 1 << 50)
        _bounded("shutdown_grace_ms", self.shutdown_grace_ms, 0, 600_000)
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigurationError(f"log_level: {self.log_level!r} is none; give debug, info, warning or error.")

    @property
    def database(self) -> str:
        """The database's URL, from wherever it is given."""
        default = f"sqlite:///{self.state_dir.absolute() / 'suanli.db'}"
        return self.database_url or os.environ.get(DATABASE_VARIABLE, "") or default

    @property
    def artifacts(self) -> str:
        """The artifact store's URL or folder."""
        return self.artifacts_url or str(self.state_dir.absolute() / "artifacts")


def split_address(address: str, name: str) -> tuple[str, int]:
    """HOST and PORT of "host:port" or "[v6]:port"."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"{name}: {address!r} is not an address; write HOST:PORT, as in 127.0.0.1:50051.")
    return host, int(port)


def load_config(path: Path) -> Config:
    """Read a YAML file. ``ConfigurationError`` names the key that is wrong, and the nearest one for an unknown."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigurationError(f"{path} is larger than {MAX_CONFIG_BYTES:,} bytes; is it the right file?")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{path} is not readable YAML: {str(error).splitlines()[0]}") from error
    return config_from(document, path.absolute().parent)


def config_from(document: object, folder: Path) -> Config:
    """The configuration of a parsed document; relative paths are below ``folder``."""
    config: Config = _read(Config, document, "", folder)
    return config


def _read(kind: Any, document: object, prefix: str, folder: Path) -> Any:
    if not isinstance(document, Mapping):
        raise ConfigurationError(
            f"{prefix.rstrip('.') or 'the file'}: give keys and values, as in 'listen: 127.0.0.1:0'."
        )
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known)}."
            raise ConfigurationError(f"{prefix}{key}: there is no such setting; {hint}")
        values[key] = _value(hints[key], value, f"{prefix}{key}", folder)
    required = [
        f.name for f in fields(kind) if f.name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    if required:
        raise ConfigurationError(f"{prefix}{required[0]}: it is missing, and there is no default for it.")
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigurationError(f"{prefix}{error}") from error


def _value(kind: Any, value: object, name: str, folder: Path) -> Any:
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if is_dataclass(kind):
        return _read(kind, value, f"{name}.", folder)
    if typing.get_origin(kind) in (tuple, Mapping):
        return _several(kind, value, name, folder)
    if kind is Path:
        if not isinstance(value, str) or not value:
            raise ConfigurationError(f"{name}: give a path.")
        return folder / Path(value).expanduser()
    if kind is str and isinstance(value, str):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    wanted = {int: "a whole number", bool: "true or false"}.get(kind, "a text")
    raise ConfigurationError(f"{name}: {value!r} is not {wanted}.")


def _several(kind: Any, value: object, name: str, folder: Path) -> Any:
    """A list, or a table of texts."""
    if typing.get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{name}: give keys and values, each a text.")
        return {_value(str, key, name, folder): _value(str, one, f"{name}.{key}", folder) for key, one in value.items()}
    if not isinstance(value, list):
        raise ConfigurationError(f"{name}: {value!r} is not a list; write [a, b].")
    one = typing.get_args(kind)[0]
    return tuple(_value(one, item, f"{name}[{index}]", folder) for index, item in enumerate(value))


def _bounded(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigurationError(f"{name}: {value} is out of range; give {low:,} to {high:,}.")
