"""The agent's configuration: one YAML file, every key optional but ``region``.

=================== ===================================================================================================
region              the region's id
control_plane       ``host:port``; default ``127.0.0.1:50051``
agents_address      ``host:port`` of the control plane for agents that show a certificate (its ``agents_listen``); the agent enrols at
                    ``control_plane``, and does the rest here. Empty: all at ``control_plane``, without a certificate
tls_cert            with ``agents_address``: the agent's certificate (PEM), when you bring it; needs ``tls_key``. Without, the
                    agent has one made when it enrols, and renews it
tls_key             the private key of ``tls_cert`` (PEM)
tls_ca              file with the authorities to trust (PEM); empty: the system's, or no TLS at all to a loopback host
token_file          file with the single-use enrolment token; default ``<state_dir>/token``
credential_file     where the agent's own key is kept (mode 0600); default ``<state_dir>/credential``
ray_address         as for ``ray.init``; default ``auto``
state_dir           folder for the spool, the credential and the secret behind the tokens of ray jobs; default ``~/.local/state/suanli/<region>``
node_dir            folder for the jobs' files on every node; ``{node_id}`` stands for the node's id; default
                    ``<state_dir>/nodes/{node_id}``
artifacts_url       where results and checkpoints are kept; empty: what the control plane says
ready_file          written when the agent serves, with its process id in it; empty: none
pools               list of ``{name, labels, isolation}``: nodes with all these labels are in that pool; the first that fits
                    counts; ``isolation`` is optional, and of the form of the next key
isolation           ``{tier, network, extra_read_only, disk_mib, processes, pod}`` for the pools that declare nothing: tier
                    ``auto`` (default: the sandbox where the node can have one, else a process, with a warning), ``sandbox``,
                    ``pod`` or ``process``; network ``none``, ``gangs`` (default: only for gangs) or ``host``; paths that
                    jobs may read; disk in MiB (default 102400, 0: no limit); processes (default 4096); and, with the tier
                    ``pod``, ``{runtime_class, image, gpu_resource, priority_class, labels, start_timeout_ms, switch_ms}``:
                    the RuntimeClass (default ``gvisor``, "": the cluster's own), the image (default: the worker's), the
                    resource that counts GPUs (default ``nvidia.com/gpu``), a PriorityClass, more labels, how long a pod may
                    take to start (default 600000) and after how long without a sign of its keeper it ends itself
                    (default 30000, 0: never)
data_sets           map of a data set's name to its folder on every node
stop_grace_ms       what jobs get to end when the region is shut down; default 10000
log_level           debug, info, warning or error; default info
=================== ===================================================================================================
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from workers.core_types import PoolRule
from workers.executor.isolation import Isolation, Isolations, Network, PodSettings, Tier

MAX_CONFIG_BYTES = 1 << 20
LOG_LEVELS = ("debug", "info", "warning", "error")

_NEVER_SHOWN = ("dev", "proc", "sys", "tmp")
"""Top folders that the sandbox makes itself."""
_FEWEST_PROCESSES = 16
LEAST_SWITCH_MS = 10_000
"""Below that a busy node would end its own jobs."""

_SLUG = re.compile(r"[a-z][a-z0-9-]{0,62}")
_OBJECT_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_LABEL_NAME = re.compile(r"([a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_OWN_LABELS = ("suanli.io", "ray.io", "kubernetes.io", "k8s.io")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:\[\]/]+):(\d{1,5})")


class ConfigError(Exception):
    """The configuration is not in order; the text is a sentence that names the key."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """See the table above. Paths are absolute."""

    region: str
    control_plane: str
    agents_address: str
    tls_cert: Path | None
    tls_key: Path | None
    tls_ca: Path | None
    token_file: Path
    credential_file: Path
    ray_address: str
    state_dir: Path
    node_dir: str
    artifacts_url: str
    ready_file: Path | None
    stop_grace_ms: int
    log_level: str
    pools: tuple[PoolRule, ...] = ()
    data_sets: Mapping[str, str] = field(default_factory=dict)
    isolations: Isolations = field(default_factory=Isolations)

    @property
    def loopback(self) -> bool:
        """Whether the control plane is on this very machine, where plain text is good enough."""
        host = self.control_plane.rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def load_config(path: Path) -> AgentConfig:
    """Read a file; raises ConfigError."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return parse_config({} if document is None else document, path.resolve().parent)


def parse_config(document: object, base: Path) -> AgentConfig:
    """Check a document; relative paths count from ``base``. Raises ConfigError."""
    if not isinstance(document, dict):
        raise ConfigError("the configuration must be a map of keys to values")
    keys = _Keys(dict(document), base)
    region = keys.text("region", "")
    if not _SLUG.fullmatch(region):
        raise ConfigError("region: must be an id such as 'east': lower-case letters, digits and '-', at most 63")
    state_dir = keys.path("state_dir") or Path.home() / ".local/state/suanli" / region
    control_plane = keys.text("control_plane", "127.0.0.1:50051")
    agents_address = keys.text("agents_address", "")
    _check_address("control_plane", control_plane)
    if agents_address:
        _check_address("agents_address", agents_address)
    log_level = keys.one_of("log_level", "info", LOG_LEVELS)
    artifacts_url = keys.text("artifacts_url", "")
    if artifacts_url and "://" not in artifacts_url:
        artifacts_url = str(base / Path(artifacts_url).expanduser())
    pools = keys.take("pools", [])
    config = AgentConfig(
        region=region,
        control_plane=control_plane,
        agents_address=agents_address,
        tls_cert=keys.path("tls_cert"),
        tls_key=keys.path("tls_key"),
        tls_ca=keys.path("tls_ca"),
        token_file=keys.path("token_file") or state_dir / "token",
        credential_file=keys.path("credential_file") or state_dir / "credential",
        ray_address=keys.text("ray_address", "auto"),
        state_dir=state_dir,
        node_dir=str(keys.path("node_dir") or state_dir / "nodes" / "{node_id}"),
        artifacts_url=artifacts_url,
        ready_file=keys.path("ready_file"),
        stop_grace_ms=keys.number("stop_grace_ms", 10_000, 3_600_000),
        log_level=log_level,
        pools=_pools(pools),
        data_sets=_text_map(keys.take("data_sets", {}), "data_sets"),
        isolations=Isolations(
            _isolation(keys.take("isolation", {}), "isolation"),
            {
                item["name"]: _isolation(item["isolation"], f"pools[{number}].isolation")
                for number, item in enumerate(pools)
                if "isolation" in item
            },
        ),
    )
    keys.none_left()
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("tls_cert, tls_key: give both or neither")
    if config.tls_cert is not None and not agents_address:
        raise ConfigError("tls_cert: give agents_address too, where certificates are asked for")
    if "{node_id}" not in config.node_dir:
        raise ConfigError("node_dir: must contain {node_id}, since two nodes may share a machine")
    return config


def _check_address(key: str, address: str) -> None:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ConfigError(f"{key}: {address!r} is not host:port")


class _Keys:
    """Takes keys out of a document, so that what is left is not known."""

    def __init__(self, document: dict[Any, Any], base: Path, prefix: str = "") -> None:
        self._document = document
        self._base = base
        self._prefix = prefix

    def take(self, key: str, default: object) -> Any:
        value = self._document.pop(key, None)
        return default if value is None else value

    def text(self, key: str, default: str) -> str:
        value = self.take(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self._prefix}{key}: must be text")
        return value

    def one_of(self, key: str, default: str, choices: Sequence[str]) -> str:
        value = self.text(key, default)
        if value not in choices:
            raise ConfigError(f"{self._prefix}{key}: must be one of {', '.join(choices)}")
        return value

    def number(self, key: str, default: int, most: int) -> int:
        value = self.take(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise ConfigError(f"{self._prefix}{key}: must be a whole number from 0 to {most}")
        return value

    def path(self, key: str) -> Path | None:
        text = self.text(key, "")
        return self._base / Path(text).expanduser() if text else None

    def none_left(self) -> None:
        for key in self._document:
            raise ConfigError(f"{self._prefix}{key}: there is no such key")


def _pools(value: object) -> tuple[PoolRule, ...]:
    if not isinstance(value, list) or len(value) > 256:
        raise ConfigError("pools: must be a list of at most 256")
    rules = []
    for number, item in enumerate(value):
        if not isinstance(item, dict) or set(item) - {"isolation"} != {"name", "labels"}:
            raise ConfigError(f"pools[{number}]: must have the keys name and labels, and may have isolation")
        if not isinstance(item["name"], str) or not _SLUG.fullmatch(item["name"]):
            raise ConfigError(f"pools[{number}].name: must be an id such as 'gpu-a100'")
        rules.append(PoolRule(item["name"], _text_map(item["labels"], f"pools[{number}].labels")))
    return tuple(rules)


def _isolation(value: object, key: str) -> Isolation:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: must be a map")
    keys = _Keys(dict(value), Path("/"), f"{key}.")
    paths = keys.take("extra_read_only", [])
    if not isinstance(paths, list) or not all(isinstance(one, str) and one.startswith("/") for one in paths):
        raise ConfigError(f"{key}.extra_read_only: must be a list of absolute paths")
    for path in map(os.path.normpath, paths):
        if path.strip("/") == "" or path.split("/")[1] in _NEVER_SHOWN:
            raise ConfigError(f"{key}.extra_read_only: {path} cannot be shown to jobs; name what they need of it")
    isolation = Isolation(
        tier=Tier(keys.one_of("tier", Tier.AUTO, [*Tier])),
        network=Network(keys.one_of("network", Network.GANGS, [*Network])),
        extra_read_only=tuple(paths),
        disk_mib=keys.number("disk_mib", Isolation().disk_mib, 1 << 30),
        processes=keys.number("processes", Isolation().processes, 1 << 20),
        pod=_pod(keys.take("pod", {}), f"{key}.pod"),
    )
    keys.none_left()
    if "pod" in value and isolation.tier is not Tier.POD:
        raise ConfigError(f"{key}.pod: is of the tier pod only")
    if isolation.processes < _FEWEST_PROCESSES:
        raise ConfigError(f"{key}.processes: must be at least {_FEWEST_PROCESSES}")
    return isolation


def _pod(value: object, key: str) -> PodSettings:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: must be a map")
    usual = PodSettings()
    keys = _Keys(dict(value), Path("/"), f"{key}.")
    labels = _text_map(keys.take("labels", {}), f"{key}.labels")
    for name, text in labels.items():
        if name.partition("/")[0].endswith(_OWN_LABELS):
            raise ConfigError(f"{key}.labels: {name} belongs to Suanli, Ray or Kubernetes")
        if not _LABEL_NAME.fullmatch(name) or not _LABEL_VALUE.fullmatch(text):
            raise ConfigError(f"{key}.labels: {name!r}: {text!r} is no label of Kubernetes")
    settings = PodSettings(
        runtime_class=keys.text("runtime_class", usual.runtime_class),
        image=keys.text("image", usual.image),
        gpu_resource=keys.text("gpu_resource", usual.gpu_resource),
        priority_class=keys.text("priority_class", usual.priority_class),
        labels=tuple(sorted(labels.items())),
        start_timeout_ms=keys.number("start_timeout_ms", usual.start_timeout_ms, 86_400_000),
        switch_ms=keys.number("switch_ms", usual.switch_ms, 3_600_000),
    )
    keys.none_left()
    for name in ("runtime_class", "priority_class"):
        if getattr(settings, name) and not _OBJECT_NAME.fullmatch(getattr(settings, name)):
            raise ConfigError(f"{key}.{name}: must be the name of an object in Kubernetes")
    if not _LABEL_NAME.fullmatch(settings.gpu_resource) or "/" not in settings.gpu_resource:
        raise ConfigError(f"{key}.gpu_resource: must be a resource such as 'nvidia.com/gpu'")
    if 0 < settings.switch_ms < LEAST_SWITCH_MS:
        raise ConfigError(f"{key}.switch_ms: must be 0 or at least {LEAST_SWITCH_MS}")
    return settings


def _text_map(value: object, key: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        raise ConfigError(f"{key}: must be a map of text to text")
    return value
