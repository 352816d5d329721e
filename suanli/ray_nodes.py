"""One node of a private Ray cluster: the command line that starts it, its environment, and ports for it.

Shared by the clusters of local regions (``suanli.local``) and by those of jobs (``suanli.ray_job``): both have their own folder,
ports and token, no dashboard, and nothing to do with any other cluster or with the user's home.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Iterator, Mapping

LOOPBACK = "127.0.0.1"
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray replaces 127.0.0.1 by the host's outward address unless clusters of several machines are switched off, a switch
that it named after the systems for which that is the default."""
STARTED = "Ray runtime started"
"""What ``ray start`` says when the node is there."""
MAX_FOLDER = 40
"""Characters: Ray adds up to 65 to its folder for its sockets, whose paths may have 107."""
ANY_PORTS = (0, 0, 0, 0, 0)
_JOIN = """
import sys
from ray._private import ray_constants, services
ray_constants.ENABLE_RAY_CLUSTER = True
services.resolve_ip_for_localhost = lambda host: host
from ray.scripts.scripts import main
sys.exit(main())
"""
"""``ray start`` for a second node on the loopback interface, which the switch above would refuse."""


@dataclasses.dataclass(frozen=True, slots=True)
class NodeStart:
    """What a node offers and where it stands. ``host`` is the address it listens on, ``folder`` Ray's own folder.

    ``memory_mib`` is what tasks may ask for (None: what Ray finds). ``ports``: of node manager, object manager, dashboard agent,
    metrics and runtime environment agent; 0 is any.
    """

    name: str
    host: str
    folder: str
    num_cpus: int
    num_gpus: int
    object_store_mib: int
    memory_mib: int | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ports: tuple[int, int, int, int, int] = ANY_PORTS


def head_options(port: int, client_port: int, dashboard_port: int) -> list[str]:
    """The options that make a node a cluster's first one, which others reach at ``port``."""
    return [
        *("--head", f"--port={port}", "--include-dashboard=false"),
        *(f"--ray-client-server-port={client_port}", f"--dashboard-port={dashboard_port}"),
    ]


def join_options(address: str) -> list[str]:
    """The options that make a node one of the cluster at ``address``."""
    return [f"--address={address}"]


def start_command(python: str, node: NodeStart, options: list[str]) -> list[str]:
    """The command line that starts a node and lives as long as it does. Modules of the folder it is run in are not seen."""
    joins_on_loopback = "--head" not in options and node.host == LOOPBACK
    ports = node.ports
    argv = [
        *(python, "-P", *(("-c", _JOIN) if joins_on_loopback else ("-m", "ray.scripts.scripts")), "start"),
        *("--block", "--disable-usage-stats", *options),
        *(f"--node-ip-address={node.host}", f"--temp-dir={node.folder}", f"--node-name={node.name}"),
        *(f"--num-cpus={node.num_cpus}", f"--num-gpus={node.num_gpus}"),
        *(f"--node-manager-port={ports[0]}", f"--object-manager-port={ports[1]}"),
        *(f"--dashboard-agent-listen-port={ports[2]}", f"--metrics-export-port={ports[3]}"),
        *(f"--runtime-env-agent-port={ports[4]}", f"--object-store-memory={node.object_store_mib << 20}"),
        "--log-style=record",
    ]
    if node.labels:
        argv.append(f"--labels={','.join(f'{key}={value}' for key, value in sorted(node.labels.items()))}")
    if node.memory_mib is not None:
        argv.append(f"--memory={node.memory_mib << 20}")
    return argv


def client_environment(token_path: str, host: str) -> dict[str, str]:
    """The variables that nodes and clients of a cluster need before they import ray, to be let in. The address is no part of it."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": token_path,
        "RAY_USAGE_STATS_ENABLED": "0",
        **(LOOPBACK_ONLY if host == LOOPBACK else {}),
    }


@contextlib.contextmanager
def free_ports(count: int, host: str = LOOPBACK) -> Iterator[list[int]]:
    """Give distinct ports that nobody listens on; held until the context ends, so that they cannot be the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((host, 0))
        yield [int(one.getsockname()[1]) for one in sockets]
