"""A real Prometheus scrapes a control plane that is killed in the middle: what it stores is the ledger, at every scrape."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from scheduler.api.http import HttpServer
from scheduler.api.metrics import Metrics
from scheduler.domain.agent import StateReport
from scheduler.domain.records import InstitutionRecord, LedgerRecord
from scheduler.domain.resources import Resources
from scheduler.domain.states import EntryKind
from scheduler.metering import names
from scheduler.metering.lines import cost_of
from scheduler.metering.money import COST_UNITS_PER_MINOR
from scheduler.metering.price_text import read_prices
from scheduler.metering.prices import PriceBook
from scheduler.planning.policy import Policy
from scheduler.service import tenants
from scheduler.service.contract import Correction, PriceListDraft, Replacement
from scheduler.service.control_plane import ControlPlane
from scheduler.service.ids import RandomIds, WallClock
from scheduler.service.ports import LedgerQuery
from scheduler.service.state import Settings
from scheduler.store.sql import SqlStore
from tests.integration import control_plane_tools as tools
from tests.support.platform import free_port
from tests.support.prometheus import Labels, Prometheus, Sample, prometheus
from tests.unit.service.harness import CODEC, node, spec

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "dashboards.md"
SCRAPE_MS = 100
HOUR_MS = 3_600_000
PRICES = "name: ours\ncurrency: CNY\nrates:\n  - {cpu_core_hour: 0.37, memory_gib_hour: 0.013, gpu_hour: 7.9}\n"
NODES = (node("n1"), node("g1", Resources(16_000, 65_536, 4_000), "gpu", "A100"))
COUNTERS = (names.USAGE_CPU, names.USAGE_MEMORY, names.USAGE_GPU, names.USAGE_COST, names.LEDGER_ADJUSTED_COST)
Sums = dict[str, dict[Labels, Fraction]]


class JumpingClock(WallClock):
    """The time of day, and hours more whenever a test says so."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class Site:
    """A control plane on SQLite with its /metrics, put together as its process does; each start listens at its own address."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/state.db"
        self.clock = JumpingClock()
        self.ports = [free_port(), free_port()]
        self.starts = 0

    async def start(self) -> None:
        metrics = Metrics()
        self.store = SqlStore(self.url)
        # The clock jumps further than an agent may be silent otherwise.
        settings = Settings(lease_ttl_ms=1000 * HOUR_MS)
        self.plane = ControlPlane(self.store, self.clock, RandomIds(), CODEC, Policy(), settings, metrics)
        await asyncio.wait_for(self.plane.start(), tools.DEADLINE_S)

        async def page() -> tuple[int, bytes]:
            return 200, await metrics.page(self.plane)

        self.http = HttpServer({"/metrics": page})
        await self.http.start("127.0.0.1", self.ports[self.starts])
        self.starts += 1

    async def connect(self, held: dict[str, Any] | None = None, events: int = 0) -> tools.LiveAgent:
        self.agent = agent = tools.LiveAgent(self.plane)
        agent.held, agent.events, agent.reports = dict(held or {}), events, 1
        await agent.hello()
        await agent.session.receive(StateReport(agent.reports, agent.events, NODES, tuple(agent.held.values())))
        return agent

    async def kill(self) -> None:
        await self.http.stop()
        await tools.kill(self.plane, self.store)
        self.agent.listening.cancel()

    async def ledger(self) -> list[LedgerRecord]:
        return await self.plane.ledger(LedgerQuery(limit=100_000))


def scrape_config(ports: list[int]) -> dict[str, Any]:
    """As the documentation says, but more often and without rules."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (job,) = next(found for found in map(yaml.safe_load, blocks) if "scrape_configs" in found)["scrape_configs"]
    job |= {"scrape_interval": f"{SCRAPE_MS}ms", "scrape_timeout": f"{SCRAPE_MS}ms"}
    job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in ports]}]
    return {"scrape_configs": [job]}


def labels_of(record: LedgerRecord, **more: str) -> Labels:
    values = {name: getattr(record, name) for name in names.USAGE_LABELS} | more | {"job": "suanli"}
    return frozenset((name, value) for name, value in values.items() if value)


def sums_of(records: list[LedgerRecord], prices: PriceBook) -> Iterator[Sums]:
    """What the counters must be before the first record and after each, reckoned from the records alone."""
    sums: Sums = {name: defaultdict(Fraction) for name in COUNTERS}
    yield {name: dict(values) for name, values in sums.items()}
    for record in records:
        ms = record.end_ms - record.start_ms
        # To fen, and a hundred of those to the yuan.
        cost = Fraction(cost_of(record, prices), COST_UNITS_PER_MINOR * 100)
        if record.kind == EntryKind.USAGE:
            sums[names.USAGE_CPU][labels_of(record)] += Fraction(record.cpu_milli * ms, 1_000_000)
            sums[names.USAGE_GPU][labels_of(record)] += Fraction(record.gpu_milli * ms, 1_000_000)
            sums[names.USAGE_MEMORY][labels_of(record)] += Fraction(record.memory_mib * ms, 1024 * 1000)
            sums[names.USAGE_COST][labels_of(record, currency="CNY")] += cost
        else:
            credit = record.kind in (EntryKind.REVERSAL, EntryKind.CREDIT)
            key = labels_of(record, currency="CNY", direction="credit" if credit else "debit")
            sums[names.LEDGER_ADJUSTED_COST][key] += -cost if credit else cost
        yield {name: dict(values) for name, values in sums.items()}


def as_floats(values: dict[Labels, Fraction]) -> dict[Labels, float]:
    return {key: float(value) for key, value in values.items()}


class Watch:
    """A Prometheus that scrapes one site; its blocking calls run in a thread, as the site serves in this one."""

    def __init__(self, server: Prometheus) -> None:
        self.server = server

    async def until(self, condition: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(self.server.until, condition)

    async def query(self, expression: str, at: float | None = None) -> dict[Labels, Sample]:
        return await asyncio.to_thread(self.server.query, expression, at)

    async def stored(self, name: str) -> dict[Labels, list[Sample]]:
        return await asyncio.to_thread(self.server.samples, name, "10m")

    async def has_seen(self, sequence: int) -> float:
        """Wait for a scrape that counts this record, and give its instant."""

        def seen() -> float:
            (newest,) = self.server.samples(names.LEDGER_LAST_SEQUENCE, "10m").values()
            return newest[-1].at if newest[-1].value == sequence else 0.0

        return float(await self.until(seen))


@contextmanager
def watching(folder: Path, site: Site) -> Iterator[Watch]:
    with prometheus(folder, scrape_config(site.ports)) as server:
        yield Watch(server)


async def work(site: Site, agent: tools.LiveAgent, hours: int, watch: Watch | None = None) -> None:
    """Jobs of two institutions on both pools; they end one after another, the clock going on an uneven time between.

    With a watch, each end is seen by a scrape before the next.
    """
    ids: list[str] = []
    for number, institution in enumerate(("north", "south", "north")):
        gpu = spec(institution, cpu=1_000 + 500 * number, memory=700 + number, gpu=500 * 2**number)
        plain = spec(institution, cpu=333, memory=64)
        ids += (await site.plane.submit(tools.make(gpu, plain, user=f"{institution}-user"))).job_ids
    await tools.until(lambda: set(ids) <= set(agent.held))
    for done, job_id in enumerate(ids, 1):
        site.clock.ahead_ms += hours * HOUR_MS // len(ids) + 12_345
        await agent.finish(job_id)
        await tools.until(lambda ended=ids[:done]: not set(ended) & set(site.plane.engine.state.jobs))
        if watch is not None:
            await watch.has_seen((await site.ledger())[-1].sequence)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """With two institutions, prices, and an agent with nodes in two pools."""
    one = Site(tmp_path)
    await one.start()
    for name in ("north", "south"):
        await one.plane.put_institution(InstitutionRecord(name, "", 1000, "", 0), "op")
    await one.plane.put_price_list(PriceListDraft(PRICES, read_prices(PRICES)), "fin")
    tenants.ensure_region(one.plane.engine.state, "east")
    await one.connect()
    yield one
    await one.kill()


async def test_what_prometheus_stores_is_the_ledger_at_every_scrape_and_over_a_kill(site: Site, tmp_path: Path) -> None:
    agent = site.agent
    with watching(tmp_path, site) as watch:
        # Two institutions on two pools are there, at zero, before anything is used.
        zeros = await watch.until(lambda: len(found := watch.server.query(names.USAGE_CPU)) == 4 and found)
        assert {sample.value for sample in zeros.values()} == {0}
        began = min(sample.at for sample in zeros.values())
        await work(site, agent, hours=5)
        usage = await site.ledger()
        await site.plane.correct_ledger(Correction(usage[0].sequence, "outage", credit=True), "", "fin")
        replacement = Replacement(cpu_milli=250)
        await site.plane.correct_ledger(Correction(usage[1].sequence, "typing error", replacement), "", "fin")
        (long_job,) = (await site.plane.submit(tools.make(spec("south", cpu=2_000)))).job_ids
        await tools.until(lambda: long_job in agent.held)
        await check_instant(site, watch)
        await site.kill()
        await site.start()
        agent = await site.connect(agent.held, agent.events)
        await work(site, agent, hours=40, watch=watch)
        await agent.finish(long_job)
        await tools.until(lambda: long_job not in site.plane.engine.state.jobs)
        ended = await check_instant(site, watch)
        await check_every_scrape(site, watch)
        await check_increase(site, watch, began, ended)
        await check_verified(site, watch)
        assert len(await watch.query("count_over_time(up{job='suanli'}[10m])")) == 2


async def check_instant(site: Site, watch: Watch) -> float:
    """The counters at the scrape that counts the newest record are the ledger's sums; gives its instant."""
    records = await site.ledger()
    at = await watch.has_seen(records[-1].sequence)
    *_, expected = sums_of(records, site.plane.price_book())
    for name in COUNTERS:
        found = {key: sample.value for key, sample in (await watch.query(name, at)).items() if sample.value}
        assert found == {key: value for key, value in as_floats(expected[name]).items() if value}, name
    return at


async def check_every_scrape(site: Site, watch: Watch) -> None:
    """Each stored sample is what the records up to that scrape's newest one sum up to, so none ever falls."""
    records = await site.ledger()
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    expected = list(sums_of(records, site.plane.price_book()))
    (sequences,) = (await watch.stored(names.LEDGER_LAST_SEQUENCE)).values()
    newest = {sample.at: int(sample.value) for sample in sequences}
    assert len(set(newest.values())) > 5, "the ledger was not seen while it grew"
    for name in COUNTERS:
        stored = await watch.stored(name)
        for key, samples in stored.items():
            for sample in samples:
                assert sample.value == float(expected[newest[sample.at]][name].get(key, 0)), (name, key)
            assert all(a.value <= b.value for a, b in itertools.pairwise(samples))
        for at, sequence in newest.items():
            shown = {key for key, samples in stored.items() if any(sample.at == at for sample in samples)}
            assert shown >= expected[sequence][name].keys(), name


async def check_increase(site: Site, watch: Watch, began: float, ended: float) -> None:
    """From before the first use to a scrape, increase() is exact.

    It stretches the difference of the first and the last sample in the window to the window's ends, but not below zero: a
    series that begins at zero is not stretched backwards. The last sample lies on the window's end, so there is nothing to
    stretch there either.
    """
    *_, expected = sums_of(await site.ledger(), site.plane.price_book())
    window_ms = round((ended - began) * 1000) + 5_000
    for name in (names.USAGE_CPU, names.USAGE_MEMORY, names.USAGE_GPU, names.USAGE_COST):
        grown = {key: s.value for key, s in (await watch.query(f"increase({name}[{window_ms}ms])", ended)).items()}
        assert grown == as_floats(expected[name]), name
        delta = await watch.query(f"{name} - {name} offset {round((ended - began) * 1000)}ms", ended)
        assert {key: sample.value for key, sample in delta.items()} == grown


async def check_verified(site: Site, watch: Watch) -> None:
    """What the alerts on the ledger read is shown once it has been verified."""
    assert not await watch.query(names.LEDGER_CHAIN_OK)
    async for _ in site.plane.verify_ledger(0, None):
        pass
    await watch.until(lambda: watch.server.query(f"{names.LEDGER_CHAIN_OK} == 1"))
    assert await watch.query(f"{names.LEDGER_RECONCILE_DIFFERENCE} == 0")
    (verified,) = (await watch.query(names.LEDGER_LAST_VERIFIED)).values()
    assert site.clock.now_ms() - verified.value * 1000 < tools.DEADLINE_S * 1000
