"""What a local deployment keeps in its state folder, so that any later command finds and ends it.

============================ ==========================================================================================
up.json                      what runs: addresses, processes (id and start time) and regions; absent: nothing runs
settings.json                regions and address of the last start, for the next one
admin.key                    the local admin's key, mode 0600
tls/                         the deployment's own authority and certificates; keys mode 0600
control-plane/               database and artifact store
regions/<region>/            the agent's folder and its jobs' files; ``ray/`` below it is the Ray cluster's
logs/<process>.log           what each process says
lock                         held while a command changes any of this
============================ ==========================================================================================
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSION = 1
STATE_DIR_VARIABLE = "SUANLI_STATE_DIR"
MAX_REGIONS = 16
INSTITUTION = "local"
"""The institution of jobs that name none: that of whoever sits at this machine."""
_MAX_FILE_BYTES = 1 << 20
_REGION = re.compile(r"[a-z][a-z0-9-]{0,62}")


class LocalError(Exception):
    """A local deployment does not do what was asked; the text says why and what to do, for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process of the deployment. ``start_time`` (clock ticks since boot) tells it from a later one with its id."""

    name: str
    pid: int
    start_time: int


@dataclasses.dataclass(frozen=True, slots=True)
class RegionSettings:
    """What the one node of a local region declares. GPUs are logical: nothing checks that they are there."""

    id: str
    cpus: int
    gpus: int
    memory_mib: int


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the next start takes when it is not told otherwise. ``address`` is empty before the first."""

    address: str
    regions: tuple[RegionSettings, ...]


@dataclasses.dataclass(slots=True)
class RunningRegion:
    """A region that has been started. ``ray_address`` is empty until its Ray cluster is up."""

    settings: RegionSettings
    ray_address: str = ""


@dataclasses.dataclass(slots=True)
class Up:
    """What runs. ``boot_id`` is of the machine's boot: after another, none of the processes is ours.

    ``agents`` is the control plane's address for agents, ``ca`` the file with the authority to trust; both are empty while a control
    plane runs that an earlier version has started, without TLS.
    """

    boot_id: str
    address: str = ""
    agents: str = ""
    ca: str = ""
    metrics: str = ""
    processes: dict[str, Process] = dataclasses.field(default_factory=dict)
    regions: dict[str, RunningRegion] = dataclasses.field(default_factory=dict)


class StateDir:
    """The paths in a state folder, and its two files. Reading raises LocalError for a damaged file."""

    def __init__(self, path: str | Path | None = None) -> None:
        chosen = path or os.environ.get(STATE_DIR_VARIABLE) or Path.home() / ".local" / "state" / "suanli"
        # Resolved: processes carry this path as their mark, and must be found by whatever name the folder is called.
        self.path = Path(chosen).expanduser().resolve()
        self.up_file = self.path / "up.json"
        self.settings_file = self.path / "settings.json"
        self.key_file = self.path / "admin.key"
        self.control_plane = self.path / "control-plane"
        self.tls = self.path / "tls"

    def region(self, region: str) -> Path:
        """The folder of a region."""
        return self.path / "regions" / region

    def ray(self, region: str) -> Path:
        """The folder of a region's Ray cluster."""
        return self.region(region) / "ray"

    def log(self, process: str) -> Path:
        """The log of a process."""
        return self.path / "logs" / f"{process.replace(':', '-')}.log"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands from changing this deployment; raises LocalError when one does so now."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LocalError(f"The state folder {self.path} cannot be used: {error.strerror}.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(f"Another command is starting or stopping Suanli in {self.path}; wait for it.") from None
        else:
            yield
        finally:
            os.close(fd)

    def read_up(self) -> Up | None:
        """What was recorded as running; None when nothing was."""
        document = _read(self.up_file)
        if document is None:
            return None
        try:
            up = Up(str(document.get("boot_id", "")), document["address"], metrics=document["metrics"])
            up.agents, up.ca = str(document.get("agents", "")), str(document.get("ca", ""))
            for item in document["processes"]:
                up.processes[item["name"]] = Process(item["name"], int(item["pid"]), int(item["start_time"]))
            for item in document["regions"]:
                settings = _region(item)
                up.regions[settings.id] = RunningRegion(settings, item["ray_address"])
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.up_file) from error
        return up

    def write_up(self, up: Up) -> None:
        """Record what runs."""
        document = {
            "version": VERSION,
            "boot_id": up.boot_id,
            "address": up.address,
            "agents": up.agents,
            "metrics": up.metrics,
            "key_file": str(self.key_file),
            "ca": up.ca,
            "institution": INSTITUTION,
            "processes": [dataclasses.asdict(process) for process in up.processes.values()],
            "regions": [
                {**dataclasses.asdict(region.settings), "ray_address": region.ray_address}
                for region in up.regions.values()
            ],
        }
        _write(self.up_file, document)

    def read_settings(self) -> Settings:
        """The settings of the last start; without one, no regions."""
        document = _read(self.settings_file)
        if document is None:
            return Settings("", ())
        try:
            return Settings(str(document["address"]), tuple(_region(item) for item in document["regions"]))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(self.settings_file) from error

    def write_settings(self, settings: Settings) -> None:
        """Keep the settings for the next start."""
        _write(self.settings_file, {"version": VERSION, **dataclasses.asdict(settings)})


def parse_regions(text: str) -> tuple[str, ...]:
    """Read "east,west"; raises LocalError for what is no list of region names."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not _REGION.fullmatch(name):
            raise LocalError(
                f"{name[:80]!r} is no name for a region: use lower-case letters, digits and '-', beginning with a letter."
            )
    if not names or len(set(names)) < len(names) or len(names) > MAX_REGIONS:
        raise LocalError(f"Name 1 to {MAX_REGIONS} different regions, as in --regions east,west.")
    return names


def _region(item: dict[str, Any]) -> RegionSettings:
    return RegionSettings(str(item["id"]), int(item["cpus"]), int(item["gpus"]), int(item["memory_mib"]))


def _damaged(path: Path) -> LocalError:
    return LocalError(f"{path} is damaged. Remove it; then `suanli down` ends what still runs.")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LocalError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        document = json.loads(content)
    except ValueError as error:
        raise _damaged(path) from error
    if not isinstance(document, dict):
        raise _damaged(path)
    if document.get("version") != VERSION:
        raise LocalError(f"{path} was written by another version of Suanli; use that one's `suanli down`.")
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(document, indent=1) + "\n")
    draft.replace(path)
