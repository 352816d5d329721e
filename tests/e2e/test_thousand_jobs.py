"""A thousand one-second jobs of two institutions: all end, the ledger is the sum of the intervals, nothing stays."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from protos.suanli.v1 import usage_pb2
from suanli import Client
from suanli.local.control import Control
from suanli.local.demo import tenants
from suanli.local.state import StateDir
from tests.e2e.tools import running

JOBS_EACH = 500
CPUS = "64"
BATCH = 100


def test_a_thousand_jobs_of_two_institutions(tmp_path: Path) -> None:
    options = ("--regions", "east,west", "--cpus-per-region", CPUS, "--memory-per-region", "65536")
    with running(tmp_path / "state", *options) as folder:
        state = StateDir(folder)
        up = state.read_up()
        assert up is not None
        with Control(up.address, state.key_file, up.ca) as control:
            jobs = {}
            for tenant in tenants.TENANTS:
                with Client(up.address, tenants.create(control, tenant), ca=up.ca) as client:
                    one = {"command": ["sleep", "1"], "project": tenant.project, "memory": "64MiB"}
                    for _ in range(JOBS_EACH // BATCH):
                        jobs.update({job.id: tenant.id for job in client.submit_many([one] * BATCH)})
            with Client(state_dir=folder) as client:
                ended = client.wait_all(list(jobs), timeout=240)
            usage = control.call(
                control.usage.GetUsage,
                usage_pb2.GetUsageRequest(group_by=[usage_pb2.USAGE_DIMENSION_INSTITUTION]),
            )
            records = list(_ledger(control))

    assert Counter(info.state for info in ended) == {"SUCCEEDED": 2 * JOBS_EACH}
    assert {record.job_id: record.institution for record in records} == jobs
    assert len(records) == len(jobs)
    assert {record.region for record in records} == {"east", "west"}
    ends = {info.id: info.end_time_ms for info in ended}
    for record in records:
        assert record.end_ms - record.start_ms >= 1_000
        assert record.end_ms <= ends[record.job_id]
    for row in usage.rows:
        own = [record for record in records if record.institution == row.key[0]]
        assert int(row.cpu_milli_ms) == sum(record.cpu_milli * (record.end_ms - record.start_ms) for record in own)
        assert int(row.memory_mib_ms) == sum(record.memory_mib * (record.end_ms - record.start_ms) for record in own)
        assert row.attempts == JOBS_EACH
    assert len(usage.rows) == 2
    _assert_capacity_kept(records)


def _ledger(control: Control) -> list[usage_pb2.LedgerRecord]:
    request = usage_pb2.ListLedgerRequest(page_size=300)
    records: list[usage_pb2.LedgerRecord] = []
    while True:
        page = control.call(control.usage.ListLedger, request)
        records += page.records
        if not page.next_page_token:
            return records
        request.page_token = page.next_page_token


def _assert_capacity_kept(records: list[usage_pb2.LedgerRecord]) -> None:
    """At no instant was more held in a region than it has."""
    for region in ("east", "west"):
        changes = [(r.start_ms, r.cpu_milli) for r in records if r.region == region]
        changes += [(r.end_ms, -r.cpu_milli) for r in records if r.region == region]
        held = most = 0
        for _, change in sorted(changes):
            held += change
            most = max(most, held)
        assert most <= int(CPUS) * 1000
        assert held == 0
