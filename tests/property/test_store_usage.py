"""The rollup against its definition: sums over the ledger, in every store."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.records import LedgerRecord
from scheduler.service.ports import CommitBatch, LedgerQuery, Store, UsageKey, UsageQuery
from scheduler.store.memory import MemoryStore
from scheduler.store.sql import SqlStore
from tests.support import rows


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
    cpu_milli=st.integers(0, 2**63 - 1),
    memory_mib=st.integers(0, 2**63 - 1),
    gpu_milli=st.integers(0, 10**6),
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


def _whole_ledger(store: Store) -> list[LedgerRecord]:
    return store.ledger(LedgerQuery(limit=10_000))


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@settings(max_examples=40, deadline=None)
@given(batches=st.lists(st.lists(SEGMENTS, max_size=12), max_size=5))
def test_the_rollup_is_the_sum_of_the_ledger(kind: str, template: Path, batches: list[list[dict[str, object]]]) -> None:
    with _open(kind, template) as store:
        epoch = store.acquire_leadership("test", 1).epoch
        sequence = 0
        for number, batch in enumerate(batches, 1):
            records = [_record(sequence + at, drawn) for at, drawn in enumerate(batch, 1)]
            sequence += len(batch)
            store.commit(epoch, number, CommitBatch(ledger=records))
            store.commit(epoch, number, CommitBatch(ledger=records))

        expected: dict[UsageKey, list[int]] = defaultdict(lambda: [0] * 5)
        for record in _whole_ledger(store):
            month = datetime.fromtimestamp(record.start_ms / 1000, UTC).strftime("%Y-%m")
            key = UsageKey(*record[1:4], record.region, record.pool, record.accelerator, month)
            held_ms = record.end_ms - record.start_ms
            added = (record.cpu_milli * held_ms, record.memory_mib * held_ms, record.gpu_milli * held_ms)
            for at, amount in enumerate((*added, 1, int(record.segment == 0))):
                expected[key][at] += amount
        found = store.usage_sums(UsageQuery())
        assert {total.key: list(total[1:]) for total in found} == expected
        assert store.usage_sums(UsageQuery("fudan", "nlp")) == [t for t in found if t.key[:2] == ("fudan", "nlp")]
