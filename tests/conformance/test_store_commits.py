"""What one commit promises: fenced, whole or not at all, once however often it is repeated."""

from __future__ import annotations

import random

import pytest

from scheduler.domain.errors import Deposed, Internal
from scheduler.domain.states import AttemptState, JobState
from scheduler.service.ports import CommitBatch, EventQuery, LedgerQuery, Store, UsageQuery
from tests.conformance.conftest import Writer
from tests.support import rows


def test_an_empty_store_loads_empty(store: Store) -> None:
    state = store.load()

    assert state.jobs == state.attempts == state.requests == state.institutions == state.nodes == []
    assert state.requests_complete
    assert (state.last_job_no, state.last_event_seq, state.last_ledger_seq, state.last_launch_seq) == (0, 0, 0, 0)
    assert (state.last_commit_no, state.last_time_ms, state.last_budget_notice, state.ledger_hash) == (0, 0, 0, b"")
    assert (
        state.price_lists
        == state.months
        == state.budgets
        == state.budget_spending
        == state.data_sets
        == state.grants
        == []
    )
    assert store.last_sequences() == (0, 0)


def test_every_record_comes_back_as_it_was_given(store: Store, writer: Writer) -> None:
    tenants = {
        "institutions": [rows.institution(), rows.institution("fudan", title="复旦大学", weight=3)],
        "projects": [rows.project()],
        "users": [rows.user()],
        "api_keys": [rows.api_key()],
        "enrolments": [rows.enrolment()],
        "quotas": [rows.quota(), rows.quota(project="nlp", pending_jobs=5)],
        "budgets": [rows.budget(), rows.budget("b2", projects='["nlp"]', amount=2**62, title="教学")],
        "budget_spending": [rows.budget_spending(), rows.budget_spending("b2", spent="-12", threshold=80)],
        "data_sets": [rows.data_set(), rows.data_set(version="2025", replicas='{"east": ["/d", 5, ""]}', minors=1)],
        "grants": [rows.grant(), rows.grant("g2", actions="[1, 2]", to_ms=2**62, decision_reason="'\\")],
        "months": [rows.month("2026-09"), rows.month("2026-10", digest=bytes(range(32)))],
        "price_lists": [rows.price_list(1, to_ms=9), rows.price_list(2, document="# 'A' \\ B\n", currency="EUR")],
        "regions": [rows.region()],
        "nodes": [rows.node(), rows.node("n2", labels='{"rack":"7"}', draining=1)],
        "fair_usage": [rows.fair_usage(), rows.fair_usage(""), rows.fair_usage("", project="")],
    }
    work = {
        "new_jobs": [
            rows.job(1, message="等待 'quoted' \\ and\nlines\ttabs"),
            rows.job(2, spec=bytes(range(256)) * 20, done_ms=2**62),
        ],
        "new_attempts": [
            rows.attempt(1, logs="sha256:ab", saved_ms=rows.T0_MS + 1),
            rows.attempt(2, placement='[["n1",[0,1]]]', memory_mib=2**62),
        ],
        "events": [rows.event(1), rows.event(2, 2, message="\\N")],
        "ledger": [
            rows.segment(1, start_ms=rows.T0_MS, end_ms=rows.T0_MS + 5, hash=bytes(range(256))),
            rows.segment(
                2, kind=2, revision=1, cpu_milli=-5, reference=1, reason="因为 'x' \\", author="li", purpose="nlp"
            ),
        ],
        "budget_notices": [rows.budget_notice(1), rows.budget_notice(2, budget="b2", spent=-3)],
        "requests": [rows.request(1), rows.request(2, fingerprint=bytes(32))],
        "policies": [
            rows.policy(1),
            rows.policy(2, document="order: {shortness: 1}  # 'why' \\ not\n", comment="公平"),
        ],
    }

    writer.commit(**tenants, **work)

    state = store.load()
    assert state.jobs == work["new_jobs"]
    assert state.attempts == work["new_attempts"]
    assert state.requests == work["requests"]
    assert [store.find_policy(version) for version in (1, 2)] == work["policies"]
    assert [store.find_price_list(version) for version in (1, 2)] == tenants["price_lists"]
    assert store.list_budget_notices("", "", 0, 9) == work["budget_notices"][::-1]
    assert (state.last_budget_notice, state.ledger_hash) == (2, work["ledger"][1].hash)
    for name, given in tenants.items():
        assert sorted(getattr(state, name)) == sorted(given), name
    assert store.events(EventQuery(after=0, limit=10)) == work["events"]
    assert store.ledger(LedgerQuery()) == work["ledger"]


def test_many_rows_come_back_as_they_were_given(store: Store, writer: Writer) -> None:
    jobs = [rows.job(n, name=f"a\\b\t{n}\n\r{n}", spec=b"\\x00\n\t" * (n % 3)) for n in range(1, 301)]
    attempts = [rows.attempt(n, message="\\.") for n in range(1, 301)]
    events = [rows.event(n, n, message="" if n % 2 else "it's") for n in range(1, 301)]

    writer.commit(new_jobs=jobs, new_attempts=attempts, events=events)

    state = store.load()
    assert state.jobs == jobs
    assert state.attempts == attempts
    assert store.events(EventQuery(after=0, limit=1000)) == events


def test_a_record_replaces_the_one_of_its_key(store: Store, writer: Writer) -> None:
    writer.commit(institutions=[rows.institution()], projects=[rows.project()], regions=[rows.region()])
    writer.commit(
        new_jobs=[rows.job(1), rows.job(2)],
        new_attempts=[rows.attempt(1)],
        nodes=[rows.node(), rows.node("n2")],
        quotas=[rows.quota()],
        fair_usage=[rows.fair_usage(), rows.fair_usage("wang")],
        budgets=[rows.budget()],
        budget_spending=[rows.budget_spending()],
        data_sets=[rows.data_set(), rows.data_set(version="2025")],
        grants=[rows.grant(), rows.grant("g2")],
    )
    running = rows.job(1, state=int(JobState.RUNNING), region="east", attempt=1)
    started = rows.attempt(1, start_ms=rows.T0_MS + 9)

    writer.commit(
        jobs=[running],
        attempts=[started],
        institutions=[rows.institution(weight=7)],
        projects=[rows.project(title="New")],
        regions=[rows.region(spool_id="s", acked_event_seq=12)],
        nodes=[rows.node(up=0)],
        quotas=[rows.quota(cpu_milli=5)],
        fair_usage=[rows.fair_usage(as_of_ms=rows.T0_MS + 1)],
        budgets=[rows.budget(closed=1)],
        budget_spending=[rows.budget_spending(spent="5", threshold=50)],
        data_sets=[rows.data_set(withdrawn_ms=9)],
        grants=[rows.grant("g2", status=4)],
    )

    state = store.load()
    assert state.jobs == [running, rows.job(2)]
    assert state.attempts == [started]
    assert state.institutions == [rows.institution(weight=7)]
    assert state.projects == [rows.project(title="New")]
    assert state.regions == [rows.region(spool_id="s", acked_event_seq=12)]
    assert state.nodes == [rows.node(up=0), rows.node("n2")]
    assert state.quotas == [rows.quota(cpu_milli=5)]
    assert state.budgets == [rows.budget(closed=1)]
    assert state.budget_spending == [rows.budget_spending(spent="5", threshold=50)]
    assert state.data_sets == [rows.data_set(withdrawn_ms=9), rows.data_set(version="2025")]
    assert state.grants == [rows.grant(), rows.grant("g2", status=4)]
    assert state.fair_usage == [rows.fair_usage(as_of_ms=rows.T0_MS + 1), rows.fair_usage("wang")]


def test_one_batch_may_add_and_change_a_row(store: Store, writer: Writer) -> None:
    last = rows.job(1, state=int(JobState.STARTING))

    writer.commit(new_jobs=[rows.job(1)], jobs=[last])

    assert store.get_jobs(["j0000000001"]) == [last]


def test_gone_nodes_are_deleted_and_unknown_ones_are_no_error(store: Store, writer: Writer) -> None:
    writer.commit(regions=[rows.region()], nodes=[rows.node("n1"), rows.node("n2")])

    writer.commit(gone_nodes=[("east", "n1"), ("west", "n9")])

    assert store.load().nodes == [rows.node("n2")]


def test_a_deposed_leader_writes_nothing(store: Store, writer: Writer) -> None:
    writer.commit(new_jobs=[rows.job(1)])
    store.release_leadership(writer.epoch)
    newer = store.acquire_leadership("second", 60_000)
    assert newer is not None
    assert newer.epoch == writer.epoch + 1

    with pytest.raises(Deposed):
        store.commit(writer.epoch, 2, CommitBatch(new_jobs=[rows.job(2)]))
    with pytest.raises(Deposed):
        # Nor is its last one, which is durable, confirmed to it: it has to step down.
        store.commit(writer.epoch, 1, CommitBatch(new_jobs=[rows.job(1)]))

    store.commit(newer.epoch, 2, CommitBatch(new_jobs=[rows.job(3)]))
    assert [job.job_no for job in store.load().jobs] == [1, 3]


def test_a_repeated_commit_is_made_once(store: Store, writer: Writer) -> None:
    batch = CommitBatch(new_jobs=[rows.job(1)], events=[rows.event(1)], ledger=[rows.segment(1)])

    for _ in range(3):
        store.commit(writer.epoch, 1, batch)

    assert store.load().jobs == [rows.job(1)]
    assert store.usage_sums(UsageQuery())[0].segments == 1
    assert store.load().last_commit_no == 1


@pytest.mark.parametrize("commit_no", [0, 1, 4])
def test_a_commit_out_of_turn_is_a_defect(store: Store, writer: Writer, commit_no: int) -> None:
    writer.commit(new_jobs=[rows.job(1)])
    writer.commit(new_jobs=[rows.job(2)])

    with pytest.raises(Internal, match="after commit 2"):
        store.commit(writer.epoch, commit_no, CommitBatch(new_jobs=[rows.job(9)]))

    assert [job.job_no for job in store.load().jobs] == [1, 2]


REFUSED = {
    "a job number twice": {"new_jobs": [rows.job(1, job_id="other")]},
    "a job id twice": {"new_jobs": [rows.job(50, job_id=rows.job(1).job_id)]},
    "a job id twice in the batch": {"new_jobs": [rows.job(50, job_id="x"), rows.job(51, job_id="x")]},
    "a changed job with another's id": {"jobs": [rows.job(50, job_id=rows.job(1).job_id)]},
    "an attempt twice": {"new_attempts": [rows.attempt(1)]},
    "an event twice": {"events": [rows.event(1, 2)]},
    "a ledger number twice": {"ledger": [rows.segment(1, job_id="other")]},
    "a segment twice": {"ledger": [rows.segment(50, job_id=rows.segment(1).job_id)]},
    "a request twice": {"requests": [rows.request(50, "r1")]},
    "a policy's version twice": {"policies": [rows.policy(1, comment="another")]},
    "a month twice": {"months": [rows.month(records=4)]},
    "a price list's version twice": {"price_lists": [rows.price_list(comment="another")]},
    "a notice twice": {"budget_notices": [rows.budget_notice(1, threshold=80)]},
    "a budget of nobody": {"budgets": [rows.budget("b2")]},
    "spending of no budget": {"budget_spending": [rows.budget_spending("b2")]},
    "a data set of nobody": {"data_sets": [rows.data_set()]},
    "a grant of nobody": {"grants": [rows.grant()]},
    "a project of nobody": {"projects": [rows.project()]},
    "a quota of nobody": {"quotas": [rows.quota()]},
    "a node of nowhere": {"nodes": [rows.node()]},
    "a token of nowhere": {"enrolments": [rows.enrolment()]},
    "a segment in two months": {"ledger": [rows.segment(50, end_ms=rows.T0_MS + 40 * 86_400_000)]},
    "a segment beyond all sums": {"ledger": [rows.segment(50, memory_mib=2**63 - 1, end_ms=rows.T0_MS + 10**8)]},
    "a segment that ends before it starts": {"ledger": [rows.segment(50, end_ms=rows.T0_MS - 1)]},
}


@pytest.mark.parametrize("others", [1, 100], ids=["few", "many"])
def test_one_bad_row_undoes_the_whole_commit(store: Store, writer: Writer, others: int) -> None:
    writer.commit(
        new_jobs=[rows.job(1)],
        new_attempts=[rows.attempt(1)],
        events=[rows.event(1)],
        ledger=[rows.segment(1)],
        requests=[rows.request(1)],
        policies=[rows.policy(1)],
        months=[rows.month()],
        price_lists=[rows.price_list()],
        budget_notices=[rows.budget_notice(1)],
    )

    def everything() -> tuple[object, ...]:
        return store.load(), store.usage_sums(UsageQuery()), store.usage_days("", "", ""), store.last_sequences()

    before = everything()
    good = {
        "new_jobs": [rows.job(100 + n) for n in range(others)],
        "new_attempts": [rows.attempt(100 + n) for n in range(others)],
        "events": [rows.event(100 + n) for n in range(others)],
        "ledger": [rows.segment(100 + n) for n in range(others)],
        "users": [rows.user()],
    }
    for case, bad in REFUSED.items():
        batch = good | {name: [*good.get(name, []), *extra] for name, extra in bad.items()}

        with pytest.raises(Internal):
            writer.commit(**batch)

        assert everything() == before, case
    writer.commit(**good)
    assert len(store.load().jobs) == 1 + others


def test_load_leaves_out_what_has_ended(store: Store, writer: Writer) -> None:
    array = rows.job(1, array_size=3, state=int(JobState.FAILED))
    live_task = rows.job(2, array_id=array.job_id, array_index=1, spec=b"", state=int(JobState.RUNNING))
    ended = [rows.job(10 + state, state=int(state)) for state in JobState if state >= JobState.SUCCEEDED]
    held = rows.job(30, state=int(JobState.HELD))
    writer.commit(
        new_jobs=[array, live_task, *ended, held],
        new_attempts=[rows.attempt(2, 1, state=int(AttemptState.ENDED)), rows.attempt(2, 2)],
    )

    state = store.load()

    assert state.jobs == [array, live_task, held]
    assert state.attempts == [rows.attempt(2, 2)]


def test_counters_are_the_highest_ever_seen(store: Store, writer: Writer) -> None:
    late = rows.T0_MS + 10**9
    writer.commit(
        new_jobs=[rows.job(7), rows.job(5)],
        new_attempts=[rows.attempt(7, launch_seq=41), rows.attempt(5, launch_seq=40)],
        events=[rows.event(3, time_ms=late), rows.event(9, time_ms=rows.T0_MS)],
        ledger=[rows.segment(4)],
    )
    writer.commit(jobs=[rows.job(5, state=int(JobState.CANCELLED))])
    writer.commit(events=[rows.event(10)], ledger=[rows.segment(6, start_ms=late, end_ms=late + 1, posted_ms=late + 2)])

    state = store.load()

    assert (state.last_job_no, state.last_event_seq, state.last_ledger_seq) == (7, 10, 6)
    assert (state.last_launch_seq, state.last_commit_no, state.last_time_ms) == (41, 3, late + 2)
    assert store.last_sequences() == (10, 6)


def test_only_the_newest_requests_are_loaded(store: Store, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sql", "memory"):
        monkeypatch.setattr(f"scheduler.store.{module}.REQUESTS_LOADED", 3)
    writer.commit(requests=[rows.request(n) for n in (1, 2, 3)])
    assert store.load().requests_complete

    writer.commit(requests=[rows.request(4)])

    state = store.load()
    assert not state.requests_complete
    assert state.requests == [rows.request(n) for n in (2, 3, 4)]
    assert store.find_request("li", "r1") == rows.request(1)


def test_requests_are_found_by_user_and_key(store: Store, writer: Writer) -> None:
    writer.commit(requests=[rows.request(1, "same"), rows.request(2, "same", user="wang")])

    assert store.find_request("wang", "same") == rows.request(2, "same", user="wang")
    assert store.find_request("wang", "other") is None
    assert store.find_request("zhao", "same") is None


def test_usage_is_summed_exactly_beyond_64_bits(store: Store, writer: Writer) -> None:
    chance = random.Random(3)
    records = [
        rows.segment(
            number,
            institution=chance.choice(["tongji", "fudan"]),
            segment=chance.randrange(2),
            end_ms=rows.T0_MS + chance.randrange(1, 10**9),
            cpu_milli=chance.randrange(2**49, 2**50),
            memory_mib=10**15 - 1,
            gpu_milli=chance.randrange(2),
        )
        for number in range(1, 201)
    ]
    for start in range(0, len(records), 40):
        writer.commit(ledger=records[start : start + 40])

    found = {total.key.institution: total for total in store.usage_sums(UsageQuery())}

    for name in ("tongji", "fudan"):
        own = [(record, record.end_ms - record.start_ms) for record in records if record.institution == name]
        assert found[name].cpu_milli_ms == sum(record.cpu_milli * held for record, held in own) > 2**64
        assert found[name].memory_mib_ms == sum(record.memory_mib * held for record, held in own)
        assert found[name].gpu_milli_ms == sum(record.gpu_milli * held for record, held in own)
        assert found[name].segments == len(own)
        assert found[name].attempts == sum(record.segment == 0 for record, _ in own)
    assert store.usage_sums(UsageQuery("fudan")) == [found["fudan"]]
    assert store.usage_sums(UsageQuery("fudan", "nlp")) == []


def test_an_attempt_over_two_months_counts_once(store: Store, writer: Writer) -> None:
    cut = 1_793_491_200_000  # 2026-11-01 00:00 UTC
    first = rows.segment(1, job_id="j", start_ms=cut - 10, end_ms=cut)
    second = rows.segment(2, job_id="j", segment=1, start_ms=cut, end_ms=cut + 5)

    writer.commit(ledger=[first, second])

    months = [(total.key.month, total.cpu_milli_ms, total.attempts) for total in store.usage_sums(UsageQuery())]
    assert months == [("2026-10", 20_000, 1), ("2026-11", 10_000, 0)]
