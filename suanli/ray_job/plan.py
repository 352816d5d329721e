"""What the supervisor of a ray job is told, and what follows from it: pure functions of arguments and environment."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

from suanli.ray_nodes import LOOPBACK, NodeStart, client_environment

CLUSTER_FAILED = 70
"""Exit code when the cluster, not the command, is why the job ends (sysexits.h: EX_SOFTWARE)."""
NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit codes of a command that cannot be run, as of a shell."""
SAYS = "suanli: "
"""Begins the last line on stderr of a supervisor that exits with one of these, which says why."""
OVERHEAD_MIB = 512
"""What Ray's own processes are taken to need of a node's memory, and tasks therefore cannot ask for."""
MIN_STORE_MIB = 80
"""Ray refuses less than 75."""
UNLIMITED_STORE_MIB = 256
"""The object store of a job without a memory limit."""
_RANK_VARIABLES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"),
)
"""Of a gang whose ranks all run the command. Here it runs once, and libraries that read these would wait for the others."""
_PATIENT = {
    "RAY_agent_register_timeout_ms": "100000",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "100",
    "RAY_gcs_server_port_wait_time_s": "60",
}
_LAST = "SUANLI_ATTEMPT_ROOT"
"""By this the executor knows a job's processes: it goes last, for Ray's write their titles over the beginning."""


class RayJobError(Exception):
    """The cluster cannot be had, or is lost; the text is a sentence for people."""


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """One rank. ``folder`` is Ray's, ``link_to`` where it really is if it is to be reached by a link; memory 0 is no limit."""

    argv: tuple[str, ...]
    python: str
    folder: str
    link_to: str
    token_path: str
    cpu_milli: int
    gpus: int
    memory_mib: int
    store_mib: int
    rank: int
    world_size: int
    master_host: str
    master_port: int
    start_s: float
    join_s: float
    hold_s: float

    @property
    def is_head(self) -> bool:
        """It has the head, and runs the command."""
        return self.rank == 0


def read(arguments: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the command line, and of the environment what says who is who in a gang. Exits when there is something wrong."""
    parser = argparse.ArgumentParser(prog="suanli.ray_job", description=__doc__)
    parser.add_argument("--python", required=True, help="Interpreter that has Ray and the job's packages.")
    parser.add_argument("--folder", required=True, help="Ray's folder; short, for the sockets in it.")
    parser.add_argument("--link-to", default="", help="Make the folder's parent a link to this folder.")
    parser.add_argument("--token", required=True, help="File with the cluster's token.")
    for name in ("cpu-milli", "gpus", "memory-mib", "store-mib"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--start-s", type=float, default=120.0, help="How long a node may take to start.")
    parser.add_argument("--join-s", type=float, default=180.0, help="How long the ranks wait for each other.")
    parser.add_argument("--hold-s", type=float, default=5.0, help="How long a rank leaves it to a lost one to say why.")
    parser.add_argument("argv", nargs="+")
    given = parser.parse_args(arguments)
    return Settings(
        argv=tuple(given.argv),
        python=given.python,
        folder=given.folder,
        link_to=given.link_to,
        token_path=given.token,
        cpu_milli=given.cpu_milli,
        gpus=given.gpus,
        memory_mib=given.memory_mib,
        store_mib=given.store_mib,
        rank=int(environ.get("RANK", "0")),
        world_size=int(environ.get("WORLD_SIZE", "1")),
        master_host=environ.get("MASTER_ADDR", LOOPBACK),
        master_port=int(environ.get("MASTER_PORT", "0")),
        start_s=given.start_s,
        join_s=given.join_s,
        hold_s=given.hold_s,
    )


def node_start(settings: Settings, host: str) -> NodeStart:
    """The Ray node of a rank: no more than the rank was granted. Parts of a core count for nothing, but there is one at least."""
    store_mib = settings.store_mib or default_store_mib(settings.memory_mib)
    left_mib = max(1, settings.memory_mib - store_mib - OVERHEAD_MIB) if settings.memory_mib else None
    return NodeStart(
        name=f"rank-{settings.rank}",
        host=host,
        folder=settings.folder,
        num_cpus=max(1, settings.cpu_milli // 1000),
        num_gpus=settings.gpus,
        object_store_mib=store_mib,
        memory_mib=left_mib,
    )


def default_store_mib(memory_mib: int) -> int:
    """The object store of a node whose job does not say: three tenths of the memory, as Ray's own default."""
    return max(MIN_STORE_MIB, memory_mib * 3 // 10) if memory_mib else UNLIMITED_STORE_MIB


def node_environment(environ: Mapping[str, str], token_path: str, host: str) -> dict[str, str]:
    """The variables of Ray's processes, tasks included: those of the job, and what lets them in."""
    kept = {
        name: value for name, value in environ.items() if name not in _RANK_VARIABLES and not name.startswith("RAY_")
    }
    marker = {_LAST: kept.pop(_LAST)} if _LAST in kept else {}
    return {
        **kept,
        **client_environment(token_path, host),
        # Else its tasks would run at a niceness of 15.
        "RAY_worker_niceness": "0",
        # It watches the memory of the whole machine, where others run too. The platform watches the job's.
        "RAY_memory_monitor_refresh_ms": "0",
        # On a node that others load Ray's helpers take longer to start than it waits for them by itself: we wait, too.
        **_PATIENT,
        **marker,
    }


def command_environment(environ: Mapping[str, str], token_path: str, host: str, address: str) -> dict[str, str]:
    """The variables of the job's command: with these, ``ray.init()`` needs no argument."""
    kept = {
        name: value for name, value in environ.items() if name not in _RANK_VARIABLES and not name.startswith("RAY_")
    }
    return {**kept, **client_environment(token_path, host), "RAY_ADDRESS": address}
