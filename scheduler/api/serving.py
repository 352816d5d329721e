"""The gRPC server: its services, bounds and transport."""

from __future__ import annotations

import asyncio
import ipaddress
from functools import partial
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.suanli.v1 import admin_pb2, artifacts_pb2, audit_pb2, data_pb2, jobs_pb2, regions_pb2, usage_pb2
from scheduler.api.accounting import AccountingApi
from scheduler.api.admin import AdminApi
from scheduler.api.artifact_access import ArtifactAccess
from scheduler.api.artifacts import ArtifactApi
from scheduler.api.audit import AuditApi
from scheduler.api.blobs import MAX_BLOB_BYTES, Artifacts, BlobApi
from scheduler.api.credentials import Credentials
from scheduler.api.data import DataApi
from scheduler.api.exports import ExportApi
from scheduler.api.gate import Gate, RpcObserver
from scheduler.api.identity import IdentityApi
from scheduler.api.jobs import JobApi
from scheduler.api.limiting import Limiting, LimitObserver
from scheduler.api.logs import LogBroker
from scheduler.api.policies import PolicyApi
from scheduler.api.prices import PriceApi
from scheduler.api.regions import RegionApi
from scheduler.api.statements import StatementApi
from scheduler.api.tls import AgentAuthority, ConfigurationError, ExpiryObserver, ReloadingCertificates, Tls
from scheduler.api.usage import UsageApi
from scheduler.api.verification import VerificationApi
from scheduler.catalog.catalogue import Catalogue
from scheduler.governance.limits import Limits
from scheduler.identity.fetching import fetch_json
from scheduler.identity.issuers import NO_OIDC, Oidc
from scheduler.identity.tokens import Tokens
from scheduler.service.contract import Service
from scheduler.service.ids import WallClock
from scheduler.wire.spec import SpecCodec

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
SERVICES = (
    jobs_pb2.DESCRIPTOR.services_by_name["JobService"],
    regions_pb2.DESCRIPTOR.services_by_name["RegionService"],
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
    usage_pb2.DESCRIPTOR.services_by_name["UsageService"],
    audit_pb2.DESCRIPTOR.services_by_name["AuditService"],
    data_pb2.DESCRIPTOR.services_by_name["DataService"],
    artifacts_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 4 * MAX_MESSAGE_BYTES),
    # Two processes on one port would share callers between them, the standby's refusals included.
    ("grpc.so_reuseport", 0),
    # An agent behind a firewall that forgets idle connections is found out, and may itself ping that often.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_MAX_CONCURRENT_RPCS = 20_000
DEFAULT_LIMITS = Limits()


class ServerObserver(RpcObserver, LimitObserver, ExpiryObserver, Protocol):
    """Counts calls and refusals, and shows when certificates run out."""


class ApiServer:
    """All services on one gRPC server. Health says NOT_SERVING until ``serving(True)``."""

    def __init__(
        self,
        service: Service,
        codec: SpecCodec,
        catalogue: Catalogue,
        artifacts: Artifacts,
        observer: ServerObserver,
        *,
        artifacts_url: str = "",
        max_blob_bytes: int = MAX_BLOB_BYTES,
        oidc: Oidc = NO_OIDC,
        limits: Limits = DEFAULT_LIMITS,
        tls: Tls | None = None,
    ) -> None:
        logs = LogBroker()
        self.limiting = limiting = Limiting(limits, observer)
        access = ArtifactAccess(service, artifacts)
        self._tls = tls
        self._observer = observer
        authority = None
        if tls is not None and tls.agent_ca_cert is not None and tls.agent_ca_key is not None:
            authority = AgentAuthority(tls.agent_ca_cert, tls.agent_ca_key)
        servicers = (
            JobApi(service, codec, catalogue, artifacts, access, logs),
            BlobApi(service, artifacts, access, limiting, max_blob_bytes),
            ArtifactApi(service, access),
            RegionApi(service, codec, logs, artifacts_url, authority),
            AdminApi(service),
            IdentityApi(service, oidc),
            PolicyApi(service),
            UsageApi(service),
            AccountingApi(service),
            PriceApi(service, codec),
            StatementApi(service),
            ExportApi(service),
            VerificationApi(service),
            AuditApi(service),
            DataApi(service, codec),
        )
        self.grpc = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=_MAX_CONCURRENT_RPCS)
        tokens = Tokens(oidc.issuers, WallClock().now_ms, lambda issuer: partial(fetch_json, ca=issuer.ca))
        need = tls is not None and tls.agents_need_certificates
        self._gate = Gate(Credentials(service, tokens), service, observer, service, limiting, need)
        self._watch: asyncio.Task[None] | None = None
        for descriptor in SERVICES:
            self._gate.add(self.grpc, descriptor, servicers)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        names = [descriptor.full_name for descriptor in SERVICES]
        self._names = ["", *names]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME],
            self.grpc,
        )

    def listen(self, host: str, port: int) -> int:
        """Bind; returns the port. Raises ``ConfigurationError`` for plaintext beyond this machine."""
        if self._tls is None:
            require_loopback(host)
            return self._bind("listen", host, port, None)
        certificates = ReloadingCertificates(self._tls, self._tls.client_ca, "client_ca", self._observer)
        return self._bind("listen", host, port, certificates)

    def listen_for_agents(self, host: str, port: int) -> int:
        """Bind a second address, whose callers must show a certificate of ``tls.agent_ca_cert``; returns the port.

        gRPC for Python either requires a client's certificate or does not ask for one, so that people, who have none, and agents
        cannot share an address. Everything is served on both.
        """
        if self._tls is None or self._tls.agent_ca_cert is None:
            raise ConfigurationError("agents_listen: give tls.agent_ca_cert, which signs the certificates of agents.")
        certificates = ReloadingCertificates(self._tls, self._tls.agent_ca_cert, "agent_ca_cert", self._observer)
        return self._bind("agents_listen", host, port, certificates)

    def _bind(self, name: str, host: str, port: int, certificates: ReloadingCertificates | None) -> int:
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificates is None:
                return self.grpc.add_insecure_port(address)
            return self.grpc.add_secure_port(address, certificates.credentials())
        except RuntimeError as error:
            raise ConfigurationError(f"{name}: {address} cannot be bound; is it in use? ({error})") from error

    async def start(self) -> None:
        """Begin to take connections; calls are refused until ``serving(True)``."""
        await self.serving(False)
        await self.grpc.start()
        self._watch = asyncio.create_task(self._gate.keep_watch())

    async def serving(self, yes: bool) -> None:
        """Tell health checks whether calls are answered."""
        self._gate.open = yes
        states = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._health.set(name, states.SERVING if yes else states.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give those under way ``grace_s`` seconds."""
        self._gate.close()
        if self._watch is not None:
            self._watch.cancel()
        await self._health.enter_graceful_shutdown()
        await self.grpc.stop(grace_s)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_loopback(host: str) -> None:
    """Refuse plaintext on an address that others can reach."""
    if not is_loopback(host):
        raise ConfigurationError(
            f"listen: {host} can be reached from other machines, and keys would cross the network in plain text; give "
            "tls.cert and tls.key, or listen on 127.0.0.1."
        )
