"""The applier trusts no plan: what does not fit the newest state is refused, whole, and the rest is applied."""

from __future__ import annotations

import pytest

from scheduler.domain.agent import ReplicaPlacement
from scheduler.domain.resources import Resources
from scheduler.planning.types import Plan, PoolKey, Start
from tests.unit.service.harness import Site, node

NODES = [
    node("n1", Resources(4_000, 8_192, 0)),
    node("n2", Resources(4_000, 8_192, 0)),
    node("g1", Resources(8_000, 8_192, 2_000), "gpu", "A100"),
]


def on(*places: str | tuple[str, tuple[int, ...]], region: str = "east") -> Start:
    """A start of the only job there is."""
    placed = [(place, ()) if isinstance(place, str) else place for place in places]
    return Start(1, region, "cpu", "", tuple(ReplicaPlacement(*each) for each in placed))


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"cpu": 3_000, "replicas": 2}, on("n1")),
        ({"cpu": 3_000, "replicas": 2}, on("n1", "n1")),
        ({"cpu": 3_000, "replicas": 2}, on("n1", "nowhere")),
        ({"cpu": 3_000}, on("n1", region="west")),
        ({"cpu": 3_000}, on("n1", region="mars")),
        ({"cpu": 5_000}, on("n1")),
        ({"cpu": 1_000}, on(("g1", (0,)))),
        ({"gpu": 1_000}, on("g1")),
        ({"gpu": 1_000}, on(("g1", (2,)))),
        ({"gpu": 1_000}, on(("g1", (0, 1)))),
        ({"gpu": 2_000}, on(("g1", (0, 0)))),
        ({"gpu": 600, "replicas": 2}, on(("g1", (0,)), ("g1", (0,)))),
        ({"cpu": 3_000}, on("n1")._replace(job_no=99)),
    ],
)
def test_a_decision_that_does_not_fit_is_refused(
    values: dict[str, int], start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(waiting(**values), start, monkeypatch, accepted=0)


def test_a_decision_that_fits_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    decide(waiting(cpu=3_000, replicas=2), on("n1", "n2"), monkeypatch, accepted=1)


@pytest.mark.parametrize("project", ["", "default"])
def test_a_decision_above_a_quota_is_refused(project: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site = waiting(cpu=3_000)
    site.quota(project=project, cpu=2_999)
    decide(site, on("n1"), monkeypatch, accepted=0)


def waiting(**values: int) -> Site:
    """A site with one job that nobody has placed yet, and a region "west" that is not connected."""
    site = Site(nodes=NODES)
    site.add_region("west", [node("n1")]).hang_up()
    site.east.hang_up()
    site.submit_one(**values)
    return site


def decide(site: Site, start: Start, monkeypatch: pytest.MonkeyPatch, *, accepted: int) -> None:
    """Have a round decide on this start; a refused one leaves no trace."""
    monkeypatch.setattr(site.engine.state.planner, "plan", lambda *_: Plan((start,)))
    before = dict(site.engine.state.pools[PoolKey("east", "cpu")])
    site.east.connect()
    assert len(site.engine.state.attempts) == accepted
    assert (site.engine.state.pools[PoolKey("east", "cpu")] == before) == (accepted == 0)


def test_the_same_decision_twice_is_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(nodes=NODES)
    site.east.hang_up()
    site.submit_one(cpu=1_000)
    monkeypatch.setattr(site.engine.state.planner, "plan", lambda *_: Plan((on("n1"), on("n2"))))
    site.east.connect()
    assert len(site.engine.state.attempts) == 1
    assert list(site.east.held) == ["j000001"]
