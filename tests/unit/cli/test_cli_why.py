"""How `suanli why` words the start that is expected."""

from __future__ import annotations

from datetime import datetime

import pytest

from protos.suanli.v1 import jobs_pb2
from suanli.cli import human
from suanli.cli.why import expected

NOW = int(datetime(2026, 10, 1, 14, 0).astimezone().timestamp() * 1000)
MINUTE = 60_000


def start(at: int, earliest: int = 0, latest: int = 0, confidence: str = "MEDIUM", basis: str = "FORECAST") -> str:
    times = [NOW + each * MINUTE if each else 0 for each in (at, earliest, latest)]
    return expected(
        jobs_pb2.ExpectedStart(
            at_ms=times[0], earliest_ms=times[1], latest_ms=times[2], confidence=confidence, basis=basis
        ),
        NOW,
    )


def test_a_range_and_how_sure_it_is() -> None:
    assert start(30, 10, 120, "HIGH") == "Expected to start about 14:30, between 14:10 and 16:00 (likely)."
    assert start(30, -1, 120) == "Expected to start about 14:30, between now and 16:00 (roughly)."
    assert start(30, 0, 120) == "Expected to start about 14:30, by 16:00 at the latest (roughly)."
    assert start(30, 10, 0, "LOW", "RATE") == "Expected to start about 14:30, not before 14:10 (a guess)."


def test_at_once_and_no_estimate() -> None:
    assert expected(jobs_pb2.ExpectedStart(at_ms=NOW, basis="PLAN"), NOW) == "Expected to start at once."
    told = expected(jobs_pb2.ExpectedStart(message="no estimate: its quota does not allow it"), NOW)
    assert told == "No estimate: its quota does not allow it."


@pytest.mark.parametrize(
    ("days", "text"),
    [(0, "14:00"), (1, "Fri 14:00"), (6, "Wed 14:00"), (7, "2026-10-08 14:00"), (-1, "2026-09-30 14:00")],
)
def test_the_clock_of_this_machine(days: int, text: str) -> None:
    then = datetime(2026, 10, 1, 14, 0).astimezone().timestamp() * 1000 + days * 86_400_000
    assert human.clock(int(then), NOW) == text
