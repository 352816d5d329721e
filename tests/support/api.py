"""The whole API on a free port of this machine, over the real control plane and a store in memory; and an agent to talk to it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from protos.suanli.v1 import (
    admin_pb2_grpc,
    artifacts_pb2_grpc,
    audit_pb2_grpc,
    common_pb2,
    data_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    regions_pb2,
    regions_pb2_grpc,
    usage_pb2_grpc,
)
from scheduler.api.blobs import Artifacts
from scheduler.api.metrics import Metrics
from scheduler.api.permissions import Role
from scheduler.api.serving import DEFAULT_LIMITS, ApiServer
from scheduler.api.tls import Tls
from scheduler.audit_key import AuditKey
from scheduler.catalog.catalogue import Catalogue
from scheduler.domain.isolation import ISOLATION_LABEL
from scheduler.domain.records import InstitutionRecord, ProjectRecord, UserRecord
from scheduler.governance.limits import Limits
from scheduler.identity.issuers import NO_OIDC, Oidc
from scheduler.planning.policy import Policy
from scheduler.service.control_plane import ControlPlane
from scheduler.service.ids import RandomIds, WallClock
from scheduler.service.ports import Store
from scheduler.service.state import Settings
from scheduler.store.memory import MemoryStore
from scheduler.wire.spec import SpecCodec
from tests.unit.catalog.stores import FolderStore

DEADLINE_S = 20.0
DEFAULT_SETTINGS = Settings()
PEOPLE = {
    "op": ("", Role.OPERATOR),
    "ada": ("uni-a", Role.RESEARCHER),
    "abe": ("uni-a", Role.RESEARCHER),
    "ann": ("uni-a", Role.INSTITUTION_ADMIN),
    "fay": ("uni-a", Role.FINANCE),
    "sam": ("uni-a", Role.STEWARD),
    "sue": ("uni-a", Role.STEWARD),
    "stu": ("uni-b", Role.STEWARD),
    "bob": ("uni-b", Role.RESEARCHER),
    "ben": ("uni-b", Role.INSTITUTION_ADMIN),
    "fin": ("", Role.FINANCE),
    "lea": ("uni-a", Role.PROJECT_LEAD),
    "aud": ("uni-a", Role.AUDITOR),
    "pau": ("", Role.AUDITOR),
}
LED = "lab"
"""The project of uni-a that lea leads."""


class Client:
    """The services, called with one key."""

    def __init__(self, address: str, key: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.key = key
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)]
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=options)
        self.jobs = _Keyed(jobs_pb2_grpc.JobServiceStub(self.channel), key)
        self.admin = _Keyed(admin_pb2_grpc.AdminServiceStub(self.channel), key)
        self.regions = _Keyed(regions_pb2_grpc.RegionServiceStub(self.channel), key)
        self.data = _Keyed(data_pb2_grpc.DataServiceStub(self.channel), key)
        self.artifacts = _Keyed(artifacts_pb2_grpc.ArtifactServiceStub(self.channel), key)
        self.audit = _Keyed(audit_pb2_grpc.AuditServiceStub(self.channel), key)
        self.usage = _Keyed(usage_pb2_grpc.UsageServiceStub(self.channel), key)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    async def submit(self, *argv: str, **changes: Any) -> str:
        spec = jobs_pb2.JobSpec(command=jobs_pb2.Command(argv=argv or ("true",)), **changes)
        response = await self.jobs.SubmitJobs(jobs_pb2.SubmitJobsRequest(jobs=[spec]))
        return str(response.job_ids[0])

    async def upload(self, data: bytes, **holder: str) -> str:
        """Have a blob held; returns its digest."""
        digest = digest_of(data)
        messages = [
            jobs_pb2.UploadBlobRequest(digest=digest, data=data[: 1 << 20], **holder),
            *(jobs_pb2.UploadBlobRequest(data=data[at : at + (1 << 20)]) for at in range(1 << 20, len(data), 1 << 20)),
        ]
        await self.jobs.UploadBlob(iter(messages))
        return digest

    async def upload_folder(self, files: dict[str, bytes], **holder: str) -> str:
        """Have a folder held; returns its manifest, in the form of ``FolderStore``."""
        entries = [(path, await self.upload(data, **holder), len(data)) for path, data in sorted(files.items())]
        return await self.upload(json.dumps(entries).encode(), **holder)

    async def job(self, job_id: str) -> jobs_pb2.Job:
        job: jobs_pb2.Job = (await self.jobs.GetJob(jobs_pb2.GetJobRequest(job_id=job_id))).job
        return job


class _Keyed:
    def __init__(self, stub: object, key: str) -> None:
        self._stub = stub
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._stub, name)

        def call(*arguments: Any, timeout: float | None = DEADLINE_S) -> Any:
            return method(*arguments, metadata=self._metadata, timeout=timeout)

        return call


@dataclass
class Api:
    """A running API. ``clients`` by user; ``anonymous`` has no key."""

    control_plane: ControlPlane
    server: ApiServer
    address: str
    store: FolderStore
    uploads: Path
    metrics: Metrics
    codec: SpecCodec
    agents_address: str = ""
    clients: dict[str, Client] = field(default_factory=dict)

    def __getitem__(self, user: str) -> Client:
        return self.clients[user]


@asynccontextmanager
async def running_api(
    folder: Path,
    *,
    catalogue: Catalogue | None = None,
    tls: Tls | None = None,
    max_blob_bytes: int = 3 << 20,
    oidc: Oidc = NO_OIDC,
    limits: Limits = DEFAULT_LIMITS,
    settings: Settings = DEFAULT_SETTINGS,
    store: Store | None = None,
    files: Any = None,
) -> AsyncIterator[Api]:
    """Serve, with the people of ``PEOPLE`` in two institutions."""
    catalogue = catalogue or Catalogue()
    codec = SpecCodec(catalogue)
    clock = WallClock()
    metrics = Metrics()
    memory, key = store or MemoryStore(clock), AuditKey(Ed25519PrivateKey.generate())
    control_plane = ControlPlane(memory, clock, RandomIds(), codec, Policy(), settings, metrics, key)
    files = files or FolderStore(folder / "artifacts")
    artifacts = Artifacts(files, folder / "uploads")
    server = ApiServer(
        control_plane,
        codec,
        catalogue,
        artifacts,
        metrics,
        artifacts_url="file:///a",
        max_blob_bytes=max_blob_bytes,
        oidc=oidc,
        limits=limits,
        tls=tls,
    )
    port = server.listen("127.0.0.1", 0)
    with_agents = tls is not None and tls.agent_ca_cert is not None
    agents = f"127.0.0.1:{server.listen_for_agents('127.0.0.1', 0)}" if with_agents else ""
    await server.start()
    await control_plane.start()
    await server.serving(True)
    api = Api(control_plane, server, f"127.0.0.1:{port}", files, folder / "uploads", metrics, codec, agents)
    try:
        if tls is None:
            await _people(api)
        yield api
    finally:
        for client in api.clients.values():
            await client.channel.close()
        await server.stop(1)
        await control_plane.stop()
        artifacts.close()


async def _people(api: Api) -> None:
    plane = api.control_plane
    for institution in ("uni-a", "uni-b"):
        await plane.put_institution(InstitutionRecord(institution, institution.upper(), 1000, "", 0), "test")
    await plane.put_project(ProjectRecord("uni-a", LED, "", 1000, 0), "test")
    for user, (institution, role) in PEOPLE.items():
        leads = LED if role is Role.PROJECT_LEAD else ""
        await plane.put_user(UserRecord(user, institution, "", int(role), 0, 0, leads), "test")
        _, key = await plane.create_api_key(user, "", 0, "test")
        api.clients[user] = Client(api.address, key)
    api.clients["anonymous"] = Client(api.address, "")


class Agent:
    """A region's agent, driven by a test: nodes with room, and whatever the test has it say."""

    stays_s: float | None = 60.0
    """How long its stream lasts at most; None: for ever."""

    def __init__(self, api: Api, region: str = "east") -> None:
        self._api = api
        self.region = region
        self.client: Client
        self.received: list[regions_pb2.ConnectResponse] = []
        self._seq = 0
        self._report = 0
        self._launched: list[regions_pb2.AttemptRef] = []

    async def enrol(self) -> None:
        token, _ = await self._api.control_plane.create_enrolment_token(self.region, 60_000, "test")
        request = regions_pb2.EnrolAgentRequest(token=token, region=self.region, agent_name="test")
        response = await self._api["anonymous"].regions.EnrolAgent(request)
        self.client = Client(self._api.address, response.api_key)
        self._api.clients[f"agent-{self.region}-{id(self)}"] = self.client

    async def connect(self, boot: str = "boot-1") -> None:
        self.call = self.client.regions.Connect(timeout=self.stays_s)
        hello = regions_pb2.Hello(
            region=self.region, boot_id=boot, spool_id=f"spool-{boot}", protocol_version=1, software_version="test"
        )
        await self.send(hello=hello)
        welcome = await self.take("welcome")
        assert welcome.welcome.artifacts_url == "file:///a"
        await self.report()

    async def send(self, **message: Any) -> None:
        await self.call.write(regions_pb2.ConnectRequest(sent_at_ms=WallClock().now_ms(), **message))

    async def report(self) -> None:
        self._report += 1
        node = regions_pb2.Node(
            id="n1",
            name="node-one",
            pool="cpu",
            capacity=common_pb2.Resources(cpu_milli=8000, memory_mib=32768),
            labels={ISOLATION_LABEL: "sandbox"},
        )
        state = regions_pb2.StateReport(
            report_seq=self._report, event_seq=self._seq, nodes=[node], attempts=self._launched
        )
        await self.send(state=state)
        await self.take("lease")

    async def take(self, kind: str) -> regions_pb2.ConnectResponse:
        """The next message of a kind; others are kept aside."""
        for index, message in enumerate(self.received):
            if message.WhichOneof("message") == kind:
                return self.received.pop(index)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                message = await self.call.read()
                assert message is not grpc.aio.EOF, "the stream has ended"
                if message.WhichOneof("message") == kind:
                    return message
                self.received.append(message)

    async def launch(self) -> regions_pb2.Launch:
        launch = (await self.take("launch")).launch
        self._launched.append(
            regions_pb2.AttemptRef(job_id=launch.job_id, attempt=launch.attempt, lease_epoch=launch.lease_epoch)
        )
        return launch

    async def event(self, launch: regions_pb2.Launch, **event: Any) -> None:
        """Report an event and wait until it is acknowledged."""
        self._seq += 1
        one = regions_pb2.AttemptEvent(
            seq=self._seq,
            job_id=launch.job_id,
            attempt=launch.attempt,
            lease_epoch=launch.lease_epoch,
            at_ms=WallClock().now_ms(),
            **event,
        )
        await self.send(events=regions_pb2.AttemptEvents(events=[one]))
        while (await self.take("ack")).ack.seq < self._seq:
            pass

    async def started(self, launch: regions_pb2.Launch) -> None:
        await self.event(launch, started=regions_pb2.AttemptStarted())

    async def finished(self, launch: regions_pb2.Launch, **left: str) -> None:
        end = regions_pb2.AttemptFinished(outcome=common_pb2.ATTEMPT_OUTCOME_SUCCEEDED, **left)
        await self.event(launch, finished=end)

    async def log(self, request: regions_pb2.LogRequest, offset: int, data: bytes, **more: Any) -> None:
        chunk = regions_pb2.LogChunk(
            request_id=request.request_id, stream=request.stream, offset=offset, data=data, **more
        )
        await self.send(log=chunk)


def info_of(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The ErrorInfo of a failed call."""
    packed = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(packed)
    assert status.message == error.details()
    assert status.code == error.code().value[0]
    detail: any_pb2.Any = status.details[0]
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    return info


def digest_of(data: bytes) -> str:
    """The digest of a blob."""
    return "sha256:" + hashlib.sha256(data).hexdigest()
