"""The rows the store keeps, as plain immutable tuples of strings, integers and bytes.

They are the border between the service and the store: the service makes them, the store writes and returns them, and neither knows more
of the other. Field names are the column names. Instants are ms since 1970 UTC; 0: "not yet". ``*_seq`` numbers rise and are given once.
"""

from __future__ import annotations

from typing import NamedTuple


class JobRecord(NamedTuple):
    """A job, an array (``array_size`` > 0) or a started task of an array (``array_id`` not empty).

    ``state`` is a ``JobState``; ``array_next`` the first index of an array not started yet; ``eligible_ms`` the end of a
    retry's back-off; ``sequence`` the job's newest event; ``done_ms`` the run time of ended attempts that its checkpoint saves.
    ``spec`` is empty for a task: it has its array's.
    """

    job_no: int
    job_id: str
    institution: str
    project: str
    user: str
    name: str
    state: int
    reason: str
    message: str
    priority: int
    spec: bytes
    submit_ms: int
    start_ms: int
    end_ms: int
    eligible_ms: int
    attempt: int
    failures: int
    losses: int
    cancel_requested: int
    region: str
    pool: str
    exit_code: int
    exit_signal: int
    results: str
    checkpoint: str
    array_id: str
    array_index: int
    array_size: int
    array_next: int
    array_succeeded: int
    array_failed: int
    array_cancelled: int
    sequence: int
    done_ms: int


class AttemptRecord(NamedTuple):
    """One try at running a job, and its allocation.

    ``state`` is an ``AttemptState``, ``outcome`` an ``AttemptOutcome`` or 0. ``placement`` is canonical JSON: a list, by rank, of [node
    id, [gpu indexes]]. ``cpu_milli``, ``memory_mib``, ``gpu_milli`` are those of the whole gang. ``end_ms`` is when the allocation was
    released. ``stop_outcome`` is the outcome asked for when a stop was ordered, else 0. ``logs`` is the manifest of the logs of all
    ranks, empty until the end and when there is none. ``saved_ms`` is when its newest checkpoint was kept, 0 without one. ``cpu_used_ms``
    and the three like it are what its processes used so far. Up to ``metered_ms``, in ``metered_segments`` segments, its allocation is in
    the ledger (0: none of it is), with ``metered_cpu_used_ms`` and ``metered_gpu_used_milli_ms`` of what was used.
    """

    job_no: int
    attempt: int
    job_id: str
    lease_epoch: int
    launch_seq: int
    institution: str
    project: str
    user: str
    region: str
    pool: str
    accelerator: str
    placement: str
    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    state: int
    grant_ms: int
    start_ms: int
    end_ms: int
    outcome: int
    exit_code: int
    exit_signal: int
    message: str
    cpu_used_ms: int
    peak_memory_mib: int
    stop_outcome: int
    logs: str
    saved_ms: int
    gpu_used_milli_ms: int
    gpu_peak_memory_mib: int
    metered_ms: int
    metered_segments: int
    metered_cpu_used_ms: int
    metered_gpu_used_milli_ms: int


class EventRecord(NamedTuple):
    """Something that happened to a job, in the order it was committed."""

    sequence: int
    job_no: int
    job_id: str
    array_id: str
    institution: str
    project: str
    time_ms: int
    kind: str
    state: int
    attempt: int
    region: str
    pool: str
    reason: str
    message: str


class LedgerRecord(NamedTuple):
    """One segment of an allocation: these amounts were held in [start_ms, end_ms). Append-only.

    ``kind`` is an ``EntryKind``; a reversal and a credit have negative amounts, what was used included. ``revision`` is 0 for what was
    metered and counts the corrections of the segment; ``reference`` is the record that this one corrects, 0 for none.

    ``price_list`` is the version in force (0: none), ``rate`` the number of the rate in it that applies (-1: none), ``discount_bp``
    hundredths of a per cent off. ``period`` is the accounting month it was posted to, at ``posted_ms``. ``cpu_used_ms`` and
    ``gpu_used_milli_ms`` are what was used in the segment; the peaks are those of the attempt up to its end.

    ``hash`` is the SHA-256 over the hash of the record before and all other fields (``scheduler.metering.chain``).
    """

    sequence: int
    institution: str
    project: str
    user: str
    job_id: str
    attempt: int
    segment: int
    region: str
    pool: str
    accelerator: str
    start_ms: int
    end_ms: int
    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    outcome: int
    kind: int
    revision: int
    priority: int
    preemptible: int
    purpose: str
    price_list: int
    rate: int
    discount_bp: int
    period: str
    posted_ms: int
    cpu_used_ms: int
    peak_memory_mib: int
    gpu_used_milli_ms: int
    gpu_peak_memory_mib: int
    reference: int
    reason: str
    author: str
    hash: bytes


class MonthRecord(NamedTuple):
    """An accounting month that is closed: nothing is posted to it any more.

    ``ledger_sequence`` and ``head_hash`` are the newest record's when it was closed, ``digest`` the SHA-256 of the month's sums,
    ``records`` how many were posted to it. Append-only.
    """

    month: str
    close_ms: int
    author: str
    ledger_sequence: int
    head_hash: bytes
    digest: bytes
    records: int


class PriceListRecord(NamedTuple):
    """A version of the price list. Append-only.

    ``document`` is the YAML text as it was given, ``effective`` all that it meant when it was put, as JSON
    (``scheduler.metering.price_text``); both are empty where lists are listed. ``to_ms`` is 0 for one without end.
    """

    version: int
    document: str
    effective: str
    name: str
    currency: str
    from_ms: int
    to_ms: int
    comment: str
    author: str
    create_ms: int


class BudgetRecord(NamedTuple):
    """What an institution's jobs may cost in [from_ms, to_ms). ``projects`` (those that share it; none: all) and ``thresholds`` are JSON.

    ``unit`` is a ``BudgetUnit`` and ``amount`` so many of it; ``hard`` and ``closed`` are 0 or 1.
    """

    budget: str
    institution: str
    projects: str
    unit: int
    amount: int
    from_ms: int
    to_ms: int
    hard: int
    thresholds: str
    title: str
    author: str
    create_ms: int
    closed: int


class BudgetSpendingRecord(NamedTuple):
    """What of a budget the ledger says is spent, as a decimal number of its unit's exact parts (``scheduler.metering.budgets``).

    ``threshold`` is the highest one of which notice was given.
    """

    budget: str
    spent: str
    threshold: int


class BudgetNoticeRecord(NamedTuple):
    """A budget has passed a threshold. Append-only."""

    number: int
    budget: str
    institution: str
    threshold: int
    time_ms: int
    spent: int
    amount: int
    unit: int


class AuditRecord(NamedTuple):
    """A decision that matters: who did what, to what, on whose behalf, and what came of it. Append-only.

    ``actor`` is a user ("": nobody known; "system": the control plane itself), ``role`` and ``institution`` are the actor's;
    ``on_behalf_of`` is the institution whose thing ``target`` is ("": the platform's, or not known). ``outcome`` is an
    ``AuditOutcome``; ``before`` and ``after`` are JSON objects, or empty. ``calls`` is how many calls the record tells of.

    ``hash`` is the SHA-256 over the hash of the record before and all other fields (``scheduler.domain.chain``).
    """

    sequence: int
    time_ms: int
    actor: str
    role: int
    institution: str
    action: str
    target: str
    on_behalf_of: str
    outcome: int
    reason: str
    before: str
    after: str
    peer: str
    key_prefix: str
    calls: int
    hash: bytes


class AuditHeadRecord(NamedTuple):
    """At ``time_ms`` the newest audit record was this one, with this hash; signed (Ed25519) with the private key of ``key``. Append-only."""

    sequence: int
    hash: bytes
    time_ms: int
    key: bytes
    signature: bytes


class RequestRecord(NamedTuple):
    """A submission's idempotency key, kept in the submission's own transaction.

    ``fingerprint`` is the SHA-256 of the request without its id; ``first_job_no`` and ``job_count`` name its jobs.
    """

    user: str
    request_id: str
    fingerprint: bytes
    first_job_no: int
    job_count: int
    time_ms: int


class InstitutionRecord(NamedTuple):
    """A tenant. ``weight`` is its share beside the other institutions."""

    institution: str
    title: str
    weight: int
    home_region: str
    create_ms: int


class ProjectRecord(NamedTuple):
    """A project of an institution."""

    institution: str
    project: str
    title: str
    weight: int
    create_ms: int


class UserRecord(NamedTuple):
    """A person or program. ``institution`` is empty for the platform's own; ``role`` as in ``suanli.v1.Role``.

    ``projects``: ids, sorted, a comma between them, of the institution's projects that a project lead leads; else empty.
    """

    user: str
    institution: str
    title: str
    role: int
    disabled: int
    create_ms: int
    projects: str = ""

    @property
    def leads(self) -> frozenset[str]:
        """The projects, one by one."""
        return frozenset(filter(None, self.projects.split(",")))


class ApiKeyRecord(NamedTuple):
    """A credential. ``secret_hash`` is the SHA-256 of the 256-bit secret; ``region`` is set for an agent's key.

    The key may do what ``limit_role`` may (0: no such limit), within ``project`` (empty: in all), and only reads where ``read_only``
    is 1; never more than its user may. ``last_used_ms`` is behind the truth by up to an hour.
    """

    prefix: str
    secret_hash: bytes
    user: str
    institution: str
    role: int
    region: str
    title: str
    create_ms: int
    expire_ms: int
    revoked: int
    limit_role: int = 0
    project: str = ""
    read_only: int = 0
    last_used_ms: int = 0


class EnrolmentRecord(NamedTuple):
    """A single-use token with which one agent may enrol; ``used_ms`` is 0 until then."""

    token_hash: bytes
    region: str
    create_ms: int
    expire_ms: int
    used_ms: int


class QuotaRecord(NamedTuple):
    """Hard limits on what is held at once; ``project`` is empty for the institution as a whole; -1 is no limit."""

    institution: str
    project: str
    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    pending_jobs: int
    stored_mib: int = -1


class FairUsageRecord(NamedTuple):
    """The decayed average of what a tenant held up to ``as_of_ms``, in units of ``scheduler.planning.usage.Average``.

    ``user`` is empty for the project, both are for the institution as a whole. Written whenever what it holds changes, so since
    ``as_of_ms`` it has held what its live attempts hold.
    """

    institution: str
    project: str
    user: str
    cpu_average: int
    memory_average: int
    gpu_average: int
    as_of_ms: int


class PolicyRecord(NamedTuple):
    """A version of the policy. Append-only: the old ones stay and tell who changed what, when and why.

    ``document`` is the YAML text as it was given, ``effective`` every setting that it meant when it was put, as JSON
    (``scheduler.planning.policy_text``); both are empty where versions are listed.
    """

    version: int
    document: str
    effective: str
    comment: str
    author: str
    create_ms: int


class RegionRecord(NamedTuple):
    """A region. ``spool_id`` and ``acked_event_seq`` say how far its agent's spool has been accepted."""

    region: str
    spool_id: str
    acked_event_seq: int
    agent_version: str
    last_seen_ms: int
    create_ms: int


class NodeRecord(NamedTuple):
    """A node as its agent last reported it; ``labels`` is canonical JSON; ``up`` and ``draining`` are 0 or 1."""

    region: str
    node_id: str
    name: str
    pool: str
    accelerator: str
    cpu_milli: int
    memory_mib: int
    gpu_milli: int
    labels: str
    up: int
    draining: int
