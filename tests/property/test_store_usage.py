"""The rollup against its definition: sums over the ledger, in every store."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.records import LedgerRecord
from scheduler.domain.states import EntryKind
from scheduler.service.ports import CommitBatch, LedgerQuery, UsageKey, UsageQuery
from scheduler.store.memory import MemoryStore
from scheduler.store.sql import SqlStore
from tests.support import rows
from tests.support.sums import usage_by, usage_by_day


class _Still:
    def now_ms(self) -> int:
        return 0


MONTH_STARTS = [int(datetime(2026, month, 1, tzinfo=UTC).timestamp() * 1000) for month in (10, 11, 12)]
SEGMENTS = st.builds(
    dict,
    institution=st.sampled_from(["tongji", "fudan"]),
    project=st.sampled_from(["default", "nlp"]),
    user=st.sampled_from(["li", "wang"]),
    pool=st.sampled_from(["cpu", "gpu"]),
    accelerator=st.sampled_from(["", "a100"]),
    month=st.integers(0, 1),
    offset_ms=st.integers(0, 10**9),
    held_ms=st.integers(0, 10**9),
    segment=st.integers(0, 3),
    cpu_milli=st.integers(-(2**50), 2**50),
    memory_mib=st.integers(-(2**50), 2**50),
    gpu_milli=st.integers(-(10**6), 10**6),
    kind=st.sampled_from(sorted(map(int, EntryKind))),
    priority=st.integers(1, 2),
    preemptible=st.integers(0, 1),
    purpose=st.sampled_from(["", "thesis"]),
    price_list=st.integers(0, 1),
    rate=st.integers(-1, 1),
    discount_bp=st.sampled_from([0, 500]),
    period=st.sampled_from(["2026-10", "2026-11"]),
    cpu_used_ms=st.integers(-(2**53), 2**53),
    peak_memory_mib=st.integers(-(2**50), 2**50),
    gpu_used_milli_ms=st.integers(-(2**62), 2**62),
)
QUERIES = st.builds(
    UsageQuery,
    institution=st.sampled_from(["", "fudan"]),
    project=st.sampled_from(["", "nlp"]),
    from_month=st.sampled_from(["", "2026-11"]),
    to_month=st.sampled_from(["", "2026-10"]),
    period=st.sampled_from(["", "2026-11"]),
    group_by=st.lists(st.sampled_from(UsageKey._fields), unique=True).map(tuple),
)


def _record(sequence: int, drawn: dict[str, object]) -> LedgerRecord:
    values = dict(drawn)
    start_ms = MONTH_STARTS[values.pop("month")] + values.pop("offset_ms")
    return rows.segment(sequence, start_ms=start_ms, end_ms=start_ms + values.pop("held_ms"), **values)


@contextlib.contextmanager
def _open(kind: str, template: Path):
    if kind == "memory":
        yield MemoryStore(_Still())
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "suanli.db"
        path.write_bytes(template.read_bytes())
        store = SqlStore(f"sqlite:///{path}")
        yield store
        store.close()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "suanli.db"
    store = SqlStore(f"sqlite:///{path}")
    store.migrate()
    store.close()
    return path


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(SEGMENTS, max_size=12), max_size=5), query=QUERIES)
def test_the_rollup_is_the_sum_of_the_ledger(
    kind: str, template: Path, batches: list[list[dict[str, object]]], query: UsageQuery
) -> None:
    with _open(kind, template) as store:
        epoch = store.acquire_leadership("test", 1).epoch
        sequence = 0
        for number, batch in enumerate(batches, 1):
            records = [_record(sequence + at, drawn) for at, drawn in enumerate(batch, 1)]
            sequence += len(batch)
            store.commit(epoch, number, CommitBatch(ledger=records))
            store.commit(epoch, number, CommitBatch(ledger=records))

        records = store.ledger(LedgerQuery(limit=10_000))
        assert len(records) == sequence
        assert store.usage_sums(UsageQuery()) == usage_by(records, UsageQuery())
        assert store.usage_sums(query) == usage_by(records, query)
        assert store.usage_days("", "", "") == usage_by_day(records)
